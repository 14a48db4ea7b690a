"""An account as text."""

from typing import Any

from flamingo_jax.plan.account import DeviceMemory, Speed, StepCost, Traffic
from flamingo_jax.plan.search import Search

TERA = 1e12
CPU_NOTE = (
    "The CPU's compiler keeps temporaries that accelerators do not, and the other way round: they "
    "are not representative. Arguments are exact."
)


def text(account: StepCost) -> str:
    """Returns the whole account as text for people."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in account.mesh.items())
    batch = ", ".join(f"{name} {rows}" for name, rows in account.batch.items())
    lines = [
        f"{account.topology}: {account.num_devices} devices, mesh {mesh}",
        f"rows per update: {batch}; remat: {account.remat}",
        account.attention,
        "",
        *_memory(account.per_device),
        "",
        *_flops(account),
    ]
    if account.collectives is None:
        lines += ["", "collectives and seconds: not known, there is no program that could be read"]
    elif account.collectives:
        lines += ["", *_collectives(account.collectives)]
    if account.speed:
        lines += ["", *_speed(account.speed)]
    return "\n".join(lines)


def search_text(search: Search) -> str:
    """Says what a search tried, and what it chose."""
    lines = [f"{'tried':16}{'peak GiB':>10}{'TFLOP per device':>18}"]
    for name, account in search.tried:
        flops = account.traced_flops / account.num_devices / TERA
        verdict = "fits" if account.per_device.fits else "does not fit"
        lines.append(f"{name:16}{account.per_device.peak_gib:10.2f}{flops:18.1f}  {verdict}")
    return "\n".join([*lines, f"chosen: {search.chosen or 'none fits'}"])


def search_json(search: Search) -> dict[str, Any]:
    tried = [
        {
            "name": name,
            "peak_gib": account.per_device.peak_gib,
            "fits": account.per_device.fits,
            "traced_flops": account.traced_flops,
        }
        for name, account in search.tried
    ]
    return {"chosen": search.chosen, "tried": tried}


def _memory(memory: DeviceMemory) -> list[str]:
    rows = [
        ("trained parameters", memory.trained_gib),
        ("frozen parameters", memory.frozen_gib),
        ("optimizer", memory.optimizer_gib),
        ("batch", memory.batch_gib),
        ("arguments", memory.arguments_gib),
    ]
    lines = ["per device, GiB"]
    lines += [f"  {name:24}{size:8.2f}" for name, size in rows]
    if memory.capacity_gib is None or memory.memory_gib is None:
        return [*lines, CPU_NOTE]
    if memory.temporaries_gib is not None:
        lines.append(f"  {'temporaries':24}{memory.temporaries_gib:8.2f}  activations and the like")
    verdict = "fits" if memory.fits else "does not fit"
    return [
        *lines,
        f"  {'peak':24}{memory.peak_gib:8.2f}  {verdict} {memory.capacity_gib:.2f} of "
        f"{memory.memory_gib:.2f}, the rest being reserved",
    ]


def _flops(account: StepCost) -> list[str]:
    lines = [
        "TFLOP of one update, all devices"
        f"\n  {'':16}{'forward':>12}{'backward':>12}{'recomputed':>12}"
    ]
    for part, flops in account.flops.items():
        numbers = (flops.forward, flops.backward, flops.recomputed)
        lines.append(f"  {part:16}" + "".join(f"{number / TERA:12.2f}" for number in numbers))
    per_device = account.traced_flops / account.num_devices / TERA
    return [*lines, f"  in the program, per device: {per_device:.2f}"]


def _collectives(collectives: list[Traffic]) -> list[str]:
    lines = [
        "collectives of one update, GB per device"
        f"\n  {'':20}{'count':>8}{'size':>10}{'in node':>10}{'between':>10}"
    ]
    for traffic in collectives:
        lines.append(
            f"  {traffic.kind:20}{traffic.count:8}{traffic.gigabytes:10.2f}"
            f"{traffic.sent_gigabytes:10.2f}{traffic.network_gigabytes:10.2f}"
        )
    return lines


def _speed(speed: Speed) -> list[str]:
    bound = "arithmetic" if speed.intensity >= speed.balance else "memory"
    return [
        f"matmuls: {speed.intensity:.0f} FLOP per byte (the chip's balance is {speed.balance:.0f}: "
        f"bound by {bound})",
        f"predicted step at {speed.efficiency:.0%} of the chip's peak: {speed.step_seconds:.2f} s "
        f"with communication hidden, {speed.unhidden_seconds:.2f} s without",
        f"  (compute {speed.compute_seconds:.2f} s, communication {speed.network_seconds:.2f} s)",
    ]
