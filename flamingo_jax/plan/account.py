"""One training step compiled for a machine, and what it needs of each device."""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import jax

from flamingo_jax.plan.hlo import HloProgram
from flamingo_jax.plan.targets import Target
from flamingo_jax.runtime.chips import GIB
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.flops import PartFlops, step_flops
from flamingo_jax.train.kernels import attention_kernels
from flamingo_jax.train.setup import set_up
from flamingo_jax.train.traced_flops import jaxpr_flops


@dataclass(frozen=True)
class DeviceMemory:
    """GiB of one device.

    Attributes:
      arguments: of the arrays. `compiled_arguments` is the compiler's account of the same: on TPUs
        small arrays are padded to tiles. None where the program was refused.
      temporaries: activations, gathered weights and gradients, by the compiler's account; None
        where the program does not fit the compiler's own limit.
      peak: arguments, temporaries, and outputs that do not take the place of an argument.
    """

    trained_gib: float
    frozen_gib: float
    optimizer_gib: float
    batch_gib: float
    arguments_gib: float
    compiled_arguments_gib: float | None
    temporaries_gib: float | None
    peak_gib: float
    memory_gib: float | None
    capacity_gib: float | None
    fits: bool | None  # None: this target does not tell


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind, in one step, per device; in GB (10⁹ bytes).

    Attributes:
      gigabytes: of the arrays made whole, or summed.
      sent_gigabytes: over links inside of a node; `network_gigabytes`: between nodes.
    """

    kind: str
    count: int
    gigabytes: float
    sent_gigabytes: float
    network_gigabytes: float


@dataclass(frozen=True)
class Speed:
    """What the step takes at the stated efficiency of the matmuls.

    Attributes:
      intensity: FLOPs per byte that matmuls read and write; below `balance` of the chip, memory
        is the limit, not arithmetic.
      step_seconds: if communication is hidden behind computation; their sum otherwise.
    """

    efficiency: float
    intensity: float
    balance: float
    compute_seconds: float
    network_seconds: float
    step_seconds: float
    unhidden_seconds: float


@dataclass(frozen=True)
class StepCost:
    """What `python -m flamingo_jax.plan` tells of one config on one machine."""

    topology: str
    num_devices: int
    mesh: dict[str, int]
    batch: dict[str, int]
    remat: str
    attention: str  # which kernels the step was planned with
    per_device: DeviceMemory
    flops: dict[str, PartFlops]  # of the step on all devices
    traced_flops: float
    collectives: list[Traffic] | None  # None: there is no program that could be read
    speed: Speed | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(config: TrainConfig, target: Target, efficiency: float = 0.4) -> StepCost:
    """Compiles the training step of this config for a machine, and accounts for it.

    Raises:
      UserError: the config does not fit itself or the devices.
    """
    setup = set_up(config, target.devices)
    arguments = setup.arguments
    with jax.set_mesh(setup.mesh):
        traced = setup.train_step.trace(*arguments)
        lowered = traced.lower()
        try:
            compiled = lowered.compile(compiler_options=dict(target.compiler_options))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            memory, hlo = _too_large(arguments, target, str(error)), None
        else:
            memory = _memory(arguments, target, compiled.memory_analysis())
            hlo = readable_hlo(compiled)
    flops = jaxpr_flops(traced.jaxpr)
    traffic = speed = None
    if hlo:
        traffic = _traffic(hlo, target.node_size)
        if target.chip:
            per_device = flops / len(target.devices)
            speed = _speed(per_device, hlo.matmul_bytes(), traffic, target, efficiency)
    return StepCost(
        topology=target.topology,
        num_devices=len(target.devices),
        mesh=dict(setup.mesh.shape),
        batch={name: stream.batch_size for name, stream in config.streams.items()},
        remat=config.model.remat,
        attention=attention_kernels(config, setup.mesh),
        per_device=memory,
        flops={str(part): counts for part, counts in step_flops(config).by_part.items()},
        traced_flops=flops,
        collectives=traffic,
        speed=speed,
    )


def readable_hlo(compiled: jax.stages.Compiled) -> HloProgram | None:
    """None: JAX cannot read what this machine's compiler made, as with some programs of TPUs."""
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None
    return HloProgram(text) if text else None


def device_bytes(tree: Any) -> int:
    """Returns the bytes of a tree's shards on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _memory(arguments: tuple[Any, Any, Any], target: Target, analysis: Any) -> DeviceMemory:
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporaries = analysis.temp_size_in_bytes
    peak = device_bytes(arguments) + temporaries + max(outputs, 0)
    fits = peak <= target.chip.capacity if target.chip else None
    compiled = analysis.argument_size_in_bytes / GIB
    return _device_memory(arguments, target, compiled, temporaries / GIB, peak / GIB, fits)


def _too_large(arguments: tuple[Any, Any, Any], target: Target, message: str) -> DeviceMemory:
    """A compiler that knows its device's memory refused; it says how much it would have needed."""
    needed = re.search(r"[Uu]sed ([\d.]+)([MG])", message)
    gib = float(needed[1]) / (1024 if needed[2] == "M" else 1) if needed else math.inf
    return _device_memory(arguments, target, None, None, gib, fits=False)


def _device_memory(
    arguments: tuple[Any, Any, Any],
    target: Target,
    compiled_arguments: float | None,
    temporaries: float | None,
    peak: float,
    fits: bool | None,
) -> DeviceMemory:
    state, frozen, batch = arguments
    return DeviceMemory(
        trained_gib=device_bytes(state.params) / GIB,
        frozen_gib=device_bytes(frozen) / GIB,
        optimizer_gib=device_bytes(state.opt_state) / GIB,
        batch_gib=device_bytes(batch) / GIB,
        arguments_gib=device_bytes(arguments) / GIB,
        compiled_arguments_gib=compiled_arguments,
        temporaries_gib=temporaries,
        peak_gib=peak,
        memory_gib=target.chip.memory if target.chip else None,
        capacity_gib=target.chip.capacity / GIB if target.chip else None,
        fits=fits,
    )


def _traffic(hlo: HloProgram, node_size: int) -> list[Traffic]:
    collectives = hlo.collectives()
    kinds = sorted({collective.kind for collective in collectives})

    def gigabytes(values: Iterable[float]) -> float:
        return sum(values) / 1e9

    traffic = []
    for kind in kinds:
        of_kind = [c for c in collectives if c.kind == kind]
        sent = [c.sent_bytes(node_size) for c in of_kind]
        traffic.append(
            Traffic(
                kind,
                sum(c.trips for c in of_kind),
                gigabytes(c.trips * c.bytes for c in of_kind),
                gigabytes(inside for inside, _ in sent),
                gigabytes(between for _, between in sent),
            )
        )
    return traffic


def _speed(
    flops: float, matmul_bytes: int, traffic: list[Traffic], target: Target, efficiency: float
) -> Speed:
    chip = target.chip
    assert chip is not None
    compute = flops / (efficiency * chip.flops)
    network = 1e9 * sum(
        t.sent_gigabytes / chip.link + t.network_gigabytes / chip.network for t in traffic
    )
    return Speed(
        efficiency=efficiency,
        intensity=flops / max(matmul_bytes, 1),
        balance=chip.flops / chip.bandwidth,
        compute_seconds=compute,
        network_seconds=network,
        step_seconds=max(compute, network),
        unhidden_seconds=compute + network,
    )
