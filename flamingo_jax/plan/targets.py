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
from flamingo_jax.runtime.chips import CHIPS, Chip

CHIPS_FOLDER = Path(__file__).parent / "chips"
GPUS_PER_NODE = 8


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
    """Sets JAX up for machines without an accelerator; call it before JAX looks for devices."""
    os.environ.update(TPU_ENVIRONMENT)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    jax.config.update("jax_platforms", "cpu")  # the CUDA plugin raises where there is no GPU
    jax.config.update("jax_enable_compilation_cache", False)


def open_target(topology: str) -> Target:
    """Returns the machine that `a100-40gb:8`, `v5e:2x4` or `cpu:8` names.

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
