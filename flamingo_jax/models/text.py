"""Several texts whose tokens stand in one array."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Array, Shaped

from flamingo_jax.parallel.mesh import concat_per_device, split_per_device


@dataclass(frozen=True)
class Texts:
    """Shapes (B, L) of several texts whose tokens stand in one array (N, D), for all that looks at
    each token alone; see `join_rows`."""

    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, xs: Sequence[Shaped[Array, "_ _ ..."]]) -> "Texts":
        return cls(tuple((x.shape[0], x.shape[1]) for x in xs))

    def join(self, xs: Sequence[Shaped[Array, "_ _ ..."]]) -> Shaped[Array, "N ..."]:
        return concat_per_device([x.reshape(-1, *x.shape[2:]) for x in xs])

    def split(self, x_ND: Shaped[Array, "N ..."]) -> list[Shaped[Array, "_ _ ..."]]:
        parts = split_per_device(x_ND, [batch * length for batch, length in self.shapes])
        return [
            x.reshape(*shape, *x.shape[1:]) for x, shape in zip(parts, self.shapes, strict=True)
        ]
