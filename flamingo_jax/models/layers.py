"""The smallest layers, and the letters of shapes.

Shape letters, here and in every file of `models/` and `ops/`:
B batch, L text length, S key length, N tokens of all texts, D width, E another width,
H query heads, G key/value heads, K head width, T images per row, F frames per image,
P patches per frame, R latents per image, M their width, V vocabulary, x an axis of length 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flamingo_jax.ops import fused
from flamingo_jax.ops.linear import linear, linear_of_scaled
from flamingo_jax.parallel.fsdp import gathered
from flamingo_jax.parallel.sharding import ParamFacts

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": fused.gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
ModuleT = TypeVar("ModuleT", bound=nnx.Module)


class Linear(nnx.Linear):
    """y = x · kernel + bias. Whoever needs the kernel itself asks for `weights`, and so for all
    that the layer is made of."""

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        bias: bool,
        split: Literal["out", "in"] | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """`split`: what lies over the mesh's `tensor` axis, see `ParamFacts`."""
        axis = {"out": -1, "in": -2, None: None}[split]
        super().__init__(
            in_width,
            out_width,
            use_bias=bias,
            dtype=dtype,
            rngs=rngs,
            kernel_metadata={"facts": ParamFacts(split=axis, contracted=-2)},
            bias_metadata={"facts": ParamFacts(split=-1 if split == "out" else None)},
        )
        self.dtype: DTypeLike = dtype

    def weights(self) -> tuple[Float[Array, "D E"], Float[Array, "E"] | None]:
        """Returns kernel and bias, whole on every device."""
        bias = None if self.bias is None else gathered(self.bias, self.dtype)
        return gathered(self.kernel, self.dtype), bias

    def __call__(self, x: Float[Array, "... D"], out_sharding: Any = None) -> Float[Array, "... E"]:
        return linear(x, *self.weights(), dtype=self.dtype)


class LayerNorm(nnx.LayerNorm):
    """y = (x − mean) / √(variance + eps) · scale + bias."""

    def __init__(
        self, width: int, *, eps: float = 1e-5, bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        super().__init__(width, epsilon=eps, use_bias=bias, dtype=dtype, rngs=rngs)
        self.dtype: DTypeLike = dtype

    def weights(self) -> tuple[Float[Array, "D"], Float[Array, "D"] | None]:
        """Returns scale and bias."""
        assert self.scale is not None
        bias = None if self.bias is None else gathered(self.bias, self.dtype)
        return gathered(self.scale, self.dtype), bias

    def __call__(self, x: Float[Array, "... D"], *, mask: Any = None) -> Float[Array, "... D"]:
        return fused.layer_norm(x, *self.weights(), self.epsilon, self.dtype)


class RMSNorm(nnx.RMSNorm):
    """y = x / √(mean of squares + eps) · scale."""

    def __init__(self, width: int, *, eps: float, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(width, epsilon=eps, dtype=dtype, rngs=rngs)
        self.dtype: DTypeLike = dtype

    def __call__(self, x: Float[Array, "... D"], mask: Any = None) -> Float[Array, "... D"]:
        assert self.scale is not None
        return fused.rms_norm(x, gathered(self.scale, self.dtype), self.epsilon, self.dtype)


class FeedForward(nnx.Module):
    """y = scale · gelu(norm(x) · up) · down, without biases (OpenFlamingo `FeedForward`).

    The scale enters before `down`, which is linear: after it, the gradient of a learned scale would
    need the output kept.
    """

    def __init__(self, width: int, multiple: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        wide = multiple * width
        self.up = Linear(width, wide, bias=False, split="out", dtype=dtype, rngs=rngs)
        self.down = Linear(wide, width, bias=False, split="in", dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "... D"], scale: Float[Array, ""] | float = 1.0
    ) -> Float[Array, "... D"]:
        return self.down(scale * fused.gelu(self.up(self.norm(x))))


def linear_of_norm(
    layer: Linear, norm: LayerNorm, standardized: Float[Array, "... D"]
) -> Float[Array, "... E"]:
    """Returns layer(norm(x)) of x that is standardized already; see `linear_of_scaled`."""
    (scale_D, shift_D), (kernel_DE, bias_E) = norm.weights(), layer.weights()
    assert shift_D is not None
    assert bias_E is None
    return linear_of_scaled(standardized, scale_D, shift_D, kernel_DE)


def value(param: nnx.Param, dtype: DTypeLike) -> Float[Array, "..."]:
    """Returns a parameter that is no layer's, in `dtype`."""
    return gathered(param, dtype).astype(dtype)


def stack(make: Callable[[nnx.Rngs], ModuleT], num_layers: int, rngs: nnx.Rngs) -> ModuleT:
    """Returns `num_layers` modules as one, whose every parameter has a leading layer axis."""

    def one(key: jax.Array) -> ModuleT:
        module = make(nnx.Rngs(key))
        for _, param in nnx.to_flat_state(nnx.state(module)):
            facts = param.get_metadata().get("facts", ParamFacts())
            param.set_metadata(facts=dataclasses.replace(facts, stacked=True))
        return module

    return jax.vmap(one)(jax.random.split(rngs.params(), num_layers))
