"""Machines to compile for, whether or not they are there."""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from flamingo_jax.errors import UserError

GIB = 2**30
CHIPS_FOLDER = Path(__file__).parent / "chips"
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Chip:
    """A device, as its vendor's data sheet describes it: docs/planning.md names the sources.

    Attributes:
      flops: dense bfloat16 operations per second.
      memory: GiB; of a GPU what its driver tells, of a TPU what the compiler may use.
      bandwidth: of memory, bytes per second.
      link, network: bytes per second that one device sends to devices of its node (of its slice),
        and to others: half of what is quoted for both directions. For GPU clusters one InfiniBand
        port per GPU is assumed: HDR with A100, NDR with H100. Of a TPU host's network, each of its
        chips has its share.
      reserve: the share and the GiB of memory that a program cannot have: JAX leaves a tenth to
        others, the CUDA context and NCCL's buffers take one to two GB.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    reserve: tuple[float, float] = (0.0, 0.0)

    @property
    def capacity(self) -> float:
        """Bytes that a program may use."""
        share, fixed = self.reserve
        return ((1 - share) * self.memory - fixed) * GIB


GPU_RESERVE = 0.1, 1.5
CHIPS = {
    "a100-40gb": Chip(312e12, 42_331_013_120 / GIB, 1.555e12, 300e9, 25e9, GPU_RESERVE),
    "a100-80gb": Chip(312e12, 84_934_656_000 / GIB, 2.039e12, 300e9, 25e9, GPU_RESERVE),
    "h100": Chip(989e12, 84_934_656_000 / GIB, 3.35e12, 450e9, 50e9, GPU_RESERVE),
    "v4": Chip(275e12, 30.75, 1.2e12, 300e9, 6.25e9),  # its network is not published: v5p's
    "v5e": Chip(197e12, 15.75, 0.819e12, 200e9, 3.125e9),
    "v5p": Chip(459e12, 94.75, 2.765e12, 600e9, 6.25e9),
    "v6e": Chip(918e12, 31.25, 1.638e12, 400e9, 12.5e9),
}
TPU_OPTIONS: dict[str, dict[str, Any]] = {
    "v4": {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
}
# libtpu asks the machine that it is on unless it is told.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}
EXAMPLES = "a100-40gb:8, a100-80gb:64, h100:8, v4:4x4x4, v5e:2x4, v5p:2x2x1, v6e:2x4, cpu:8"


@dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      chip: None for `cpu`.
      node_size: neighbouring devices that are joined by fast links.
      compiler_options: for `lowered.compile`.
    """

    topology: str
    devices: list[jax.Device]
    chip: Chip | None
    node_size: int
    compiler_options: Mapping[str, Any]


def prepare_backends() -> None:
    """Settings of JAX for machines without an accelerator; before JAX looks for devices."""
    os.environ.update(TPU_ENVIRONMENT)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    jax.config.update("jax_platforms", "cpu")  # the CUDA plugin raises where there is no GPU
    jax.config.update("jax_enable_compilation_cache", False)


def open_target(topology: str) -> Target:
    """The machine that `a100-40gb:8`, `v5e:2x4` or `cpu:8` names.

    Raises:
      UserError: no such machine, or its compiler is not installed.
    """
    name, _, size = topology.partition(":")
    is_count = re.fullmatch(r"[1-9]\d*", size)
    if name == "cpu" and is_count:
        return Target(topology, _cpu_devices(int(size)), None, int(size), {})
    if name in CHIPS and not name.startswith("v") and is_count:
        return _gpu_target(topology, name, int(size))
    if name in CHIPS and re.fullmatch(r"\d+(x\d+)+", size) and name.startswith("v"):
        return _tpu_target(topology, name, size)
    raise UserError(f"topology {topology!r} is not known; it is one like: {EXAMPLES}")


def _cpu_devices(count: int) -> list[jax.Device]:
    with contextlib.suppress(RuntimeError):  # JAX has looked for devices already
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"cpu:{count} needs {count} CPU devices, JAX was started with {len(devices)}"
        )
    return devices[:count]


def _gpu_target(topology: str, name: str, count: int) -> Target:
    if not any(_installed(f"jax_plugins.xla_cuda{version}") for version in (12, 13)):
        raise UserError(_missing(topology, "plan-gpu"))
    per_node = min(count, GPUS_PER_NODE)
    if count % per_node:
        raise UserError(f"topology {topology!r}: more than 8 GPUs are a multiple of 8")
    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name=name,
        target_config=(CHIPS_FOLDER / f"{name}.txtpb").read_text(),
        topology=f"{count // per_node}x1x{per_node}",  # nodes × hosts of each × GPUs of each
    )
    # Without a GPU, kernels cannot be tried out, and Triton's matmuls cannot be compiled.
    options = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
    return Target(topology, list(described.devices), CHIPS[name], per_node, options)


def _tpu_target(topology: str, name: str, size: str) -> Target:
    if not _installed("libtpu"):
        raise UserError(_missing(topology, "plan-tpu"))
    options = TPU_OPTIONS.get(name, {})
    if set(size.split("x")) == {"1"}:
        options = options | {"chips_per_host_bounds": (1, 1, 1)}
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{name}:{size}", **options
        )
    except Exception as error:  # jaxlib's own type, whose message is many lines
        reason = str(error).splitlines()[0]
        raise UserError(f"topology {topology!r} was refused by libtpu: {reason}") from error
    count = math.prod(int(part) for part in size.split("x"))
    return Target(topology, list(described.devices), CHIPS[name], count, {})


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def _missing(topology: str, extra: str) -> str:
    return (
        f"planning for {topology} needs that machine's compiler; install it with "
        f"pip install 'flamingo-jax[{extra}]'"
    )
