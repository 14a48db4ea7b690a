"""What the devices can do, by their vendors' data sheets."""

from dataclasses import dataclass

GIB = 2**30


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
        """Returns the bytes that a program may use."""
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
