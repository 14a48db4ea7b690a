"""What this machine reaches at best: matmuls, memory, transfers to the device; beside PyTorch.

Nothing else can be faster than these, so `benchmarks.floor` says from them what a training step
must at least take, and MFU is to be taken against them rather than a data sheet.

    python -m benchmarks.ceilings --json ceilings.json
    python -m benchmarks.ceilings --json ceilings.json --device gpu --size full
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from benchmarks.measuring import allow_tf32, seconds

Work = tuple[Callable[[], Any], Callable[[], Any] | None]  # ours, and PyTorch's
DTYPES = ("float32", "bfloat16")
TOKENS = 2048  # 8 rows of 256


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
      matmuls: rows, inner width and columns of each.
      megabytes: of an array in the tests of memory, larger than any cache.
      repeats: calls that are waited for together, so that an accelerator's queue never runs dry.
    """

    matmuls: dict[str, tuple[int, int, int]]
    megabytes: int
    repeats: int
    turns: int


SQUARES = {f"square_{n}": (n, n, n) for n in (1024, 2048, 4096, 8192)}
# A layer of OpenFlamingo-3B and -9B: the widening of their language models' MLPs, and the vision
# encoder's over 48 images.
LAYERS = {
    "layer_3b": (TOKENS, 2048, 8192),
    "layer_9b": (TOKENS, 4096, 16384),
    "layer_vision": (48 * 257, 1024, 4096),
}
SIZES = {
    "small": Size(
        {
            "square_1024": SQUARES["square_1024"],
            "square_2048": SQUARES["square_2048"],
            "layer_3b": (TOKENS // 4, *LAYERS["layer_3b"][1:]),
            "layer_9b": (TOKENS // 4, *LAYERS["layer_9b"][1:]),
        },
        megabytes=256,
        repeats=1,
        turns=15,
    ),
    "full": Size(SQUARES | LAYERS, megabytes=1024, repeats=20, turns=7),
    "tiny": Size({"square_64": (64, 64, 64)}, megabytes=1, repeats=2, turns=2),
}


def matmul(shape: tuple[int, int, int], dtype: str, repeats: int, torch_device: str | None) -> Work:
    rows, inner, columns = shape
    rng = np.random.default_rng(0)
    left = rng.standard_normal((rows, inner), np.float32)
    right = rng.standard_normal((inner, columns), np.float32)
    a, b = jnp.asarray(left, dtype), jnp.asarray(right, dtype)
    multiply = jax.jit(jnp.matmul)

    def ours() -> None:
        jax.block_until_ready([multiply(a, b) for _ in range(repeats)][-1])

    if torch_device is None:
        return ours, None
    import torch

    kind = getattr(torch, dtype)
    c, d = (torch.from_numpy(x).to(torch_device, kind) for x in (left, right))

    def peer() -> None:
        for _ in range(repeats):
            torch.matmul(c, d)
        _wait(torch_device)

    return ours, peer


def memory(arrays: int, megabytes: int, repeats: int, torch_device: str | None) -> Work:
    """In place, so that no system hands out new pages: x ← s·x (1), or x ← x + s·y (2 arrays)."""
    host = np.ones(megabytes * 2**20 // 4, np.float32)
    factor = 0.5

    def step(x: jax.Array, *y: jax.Array) -> jax.Array:
        return x + factor * y[0] if y else factor * x

    compiled = jax.jit(step, donate_argnums=0)
    x, *others = (jnp.array(host) for _ in range(arrays))

    def ours() -> None:
        nonlocal x
        for _ in range(repeats):
            x = compiled(x, *others)
        x.block_until_ready()

    if torch_device is None:
        return ours, None
    import torch

    z, *more = (torch.from_numpy(host.copy()).to(torch_device) for _ in range(arrays))

    def peer() -> None:
        for _ in range(repeats):
            if more:
                z.add_(more[0], alpha=factor)
            else:
                z.mul_(factor)
        _wait(torch_device)

    return ours, peer


def transfer(megabytes: int, torch_device: str | None) -> Work:
    """Times transfers from the host's memory to the device's."""
    host = np.ones(megabytes * 2**20 // 4, np.float32)

    def ours() -> None:
        jax.device_put(host, jax.devices()[0]).block_until_ready()

    if torch_device is None:
        return ours, None
    import torch

    def peer() -> None:
        torch.from_numpy(host).to(torch_device)
        _wait(torch_device)

    return ours, peer


def _wait(torch_device: str) -> None:
    if torch_device == "cuda":
        import torch

        torch.cuda.synchronize()


def matmul_flops_per_second(
    size: Size, dtype: str, torch_device: str | None
) -> tuple[float, float | None]:
    """Returns the best of JAX and PyTorch with matrices of this type; takes some seconds."""
    allow_tf32(torch_device)
    reached = []
    for shape in size.matmuls.values():
        taken = best(matmul(shape, dtype, size.repeats, torch_device), size.turns)
        work = 2.0 * size.repeats * math.prod(shape)
        reached.append([work / time for time in taken if time is not None])
    ours, *theirs = np.max(reached, axis=0).tolist()
    return ours, theirs[0] if theirs else None


def best(work: Work, turns: int) -> tuple[float, float | None]:
    """Returns the fewest seconds of both, in turns: other work of the machine only adds to them."""
    runs = [run for run in work if run is not None]
    for run in runs:
        run()  # compiles
    times = np.array([[seconds(run) for run in runs] for _ in range(turns)])
    ours, *peer = times.min(axis=0).tolist()
    return ours, peer[0] if peer else None


def main(argv: Sequence[str]) -> None:
    args = report.parse(report.parser(__doc__, sizes=tuple(SIZES)), argv)
    size, torch_device = SIZES[args.size], report.torch_device(args.device)
    allow_tf32(torch_device)
    table = report.Report("ceilings", args)

    def rate(name: str, unit: str, amount: float, work: Work) -> float:
        """Add a row; `amount`: of the unit, in one call of the work."""
        ours, peer = best(work, size.turns)
        theirs = amount / peer if peer else None
        table.add(name, amount / ours, theirs, unit=unit)
        return max(amount / ours, theirs or 0.0)

    for dtype in DTYPES:
        reached = [
            rate(
                f"matmul_{dtype}_{name}",
                "TFLOP/s",
                2e-12 * size.repeats * math.prod(shape),
                matmul(shape, dtype, size.repeats, torch_device),
            )
            for name, shape in size.matmuls.items()
        ]
        table.add(f"ceiling_{dtype}", max(reached), unit="TFLOP/s")
    gigabytes = size.megabytes * 2**20 / 1e9 * size.repeats
    reached = [
        rate(name, "GB/s", accesses * gigabytes, memory(*work))
        for name, accesses, work in (
            ("memory_scale", 2, (1, size.megabytes, size.repeats, torch_device)),
            ("memory_triad", 3, (2, size.megabytes, size.repeats, torch_device)),
        )
    ]
    table.add("ceiling_memory", max(reached), unit="GB/s")
    if args.device != "cpu":
        megabytes = size.megabytes
        gigabytes = megabytes * 2**20 / 1e9
        rate("host_to_device", "GB/s", gigabytes, transfer(megabytes, torch_device))
    table.note("rows: the best of some turns; ceilings: the best row of their kind, of either side")
    table.write()


if __name__ == "__main__":
    report.run(main)
