"""The loss over a large vocabulary, without the logits of a whole batch in memory."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flamingo_jax.parallel.mesh import constrain_batch, rows_per_device

Parts = tuple[Array, ...]
Head = Callable[[Array, Parts], Array]  # (x, its parameters) → float32 logits


def weighted_nll(
    logits_BLV: Float[Array, "B L V"],
    tokens_BL: Int[Array, "B L"],
    weights_BL: Float[Array, "B L"],
) -> Float[Array, ""]:
    """Returns Σ weight · −log p(token | earlier tokens), in float32.

    `weights_BL[:, i]` weighs the prediction *of* token i (from position i − 1); the first token is
    never predicted. Divide by Σ weights for the mean.
    """
    return jnp.sum(_token_nll(logits_BLV, *_shifted(tokens_BL, weights_BL)))


def chunked_nll(
    head: Head,
    x_BLD: Float[Array, "B L D"],
    params: Parts,
    tokens_BL: Int[Array, "B L"],
    weights_BL: Float[Array, "B L"],
    *,
    max_logits_mib: int,
) -> Float[Array, ""]:
    """Returns `weighted_nll(head(x, params), tokens, weights)`, some positions of a row at a time.

    The gradient is made together with the value, so that no logits are kept or computed again; a
    parameter without a gradient costs nothing. That works for a sum over all rows alone: what each
    row's loss is multiplied by later is not known yet when the gradient of the head is summed over
    rows. Fold factors that are known before into `weights_BL`; for others, see `chunked_row_nll`.

    Args:
      head: logits of x by its parameters; to be the same object in every trace.
      x_BLD: what the head takes.
      params: of the head.
      tokens_BL: see `weighted_nll`.
      weights_BL: likewise.
      max_logits_mib: of float32 logits per device that are alive at once. With their gradient and
        the softmax, up to three times as much.
    """
    chunks = _split(head, x_BLD, params, tokens_BL, weights_BL, max_logits_mib)
    return _scanned_nll(head, params, *chunks)


def chunked_row_nll(
    head: Head,
    x_BLD: Float[Array, "B L D"],
    params: Parts,
    tokens_BL: Int[Array, "B L"],
    weights_BL: Float[Array, "B L"],
    *,
    max_logits_mib: int,
) -> Float[Array, "B"]:
    """Returns each row's part of `chunked_nll`, for losses that are no plain sum over rows.

    The gradient is exact whatever the loss makes of the rows, for x and for every parameter. Its
    price is that the logits are computed again on the way back, when each row's factor is known.
    The arguments are those of `chunked_nll`.
    """
    chunks = _split(head, x_BLD, params, tokens_BL, weights_BL, max_logits_mib)
    return _scanned_row_nll(head, params, *chunks)


def _split(
    head: Head, x_BLD: Array, params: Parts, tokens_BL: Array, weights_BL: Array, max_mib: int
) -> tuple[Array, Array, Array]:
    """Returns x, the targets and their weights as (chunks, B, chunk, …)."""
    batch, length = tokens_BL.shape
    vocabulary = jax.eval_shape(head, x_BLD[:, :1], params).shape[-1]
    row_bytes = 4 * rows_per_device(batch) * vocabulary
    chunk = chunk_length(length, max(1, max_mib * 2**20 // row_bytes))
    targets_BL, shifted_BL = _shifted(tokens_BL, weights_BL)

    def split(y_BL: Array) -> Array:
        """(B, L, …) → (chunks, B, chunk, …)."""
        padding = [(0, 0)] * y_BL.ndim
        padding[1] = (0, -length % chunk)
        y_BL = jnp.pad(y_BL, padding)
        return jnp.moveaxis(y_BL.reshape(batch, -1, chunk, *y_BL.shape[2:]), 1, 0)

    return split(x_BLD), split(targets_BL), split(shifted_BL)


def chunk_length(length: int, limit: int) -> int:
    """Positions at a time, at most `limit`: a divisor of `length`, if that is not much smaller."""
    if length <= limit:
        return length
    even = math.ceil(length / math.ceil(length / limit))
    divisor = max(n for n in range(1, limit + 1) if length % n == 0)
    return divisor if 2 * divisor > even else even


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scanned_nll(head, params, x_CBLD, targets_CBL, weights_CBL):
    def add(total, chunk):
        x, targets, weights = chunk
        return total + jnp.sum(_token_nll(head(constrain_batch(x), params), targets, weights)), None

    return jax.lax.scan(add, jnp.zeros(()), (x_CBLD, targets_CBL, weights_CBL))[0]


def _scanned_nll_forward(head, params, x_CBLD, targets_CBL, weights_CBL):
    wanted, fixed = [part.perturbed for part in params], [part.value for part in params]
    trained = [value for value, want in zip(fixed, wanted, strict=True) if want]

    def loss(trained, x, targets, weights):
        new = iter(trained)
        values = [next(new) if want else old for old, want in zip(fixed, wanted, strict=True)]
        return jnp.sum(_token_nll(head(constrain_batch(x), tuple(values)), targets, weights))

    def add(sums, chunk):
        total, gradients = sums
        value, (of_trained, of_x) = jax.value_and_grad(loss, argnums=(0, 1))(trained, *chunk)
        summed = [g + new.astype(g.dtype) for g, new in zip(gradients, of_trained, strict=True)]
        return (total + value, summed), of_x

    zeros = jnp.zeros(()), [jnp.zeros(value.shape, jnp.float32) for value in trained]
    chunks = x_CBLD.value, targets_CBL.value, weights_CBL.value
    (total, gradients), of_x_CBLD = jax.lax.scan(add, zeros, chunks)
    new = iter([g.astype(value.dtype) for g, value in zip(gradients, trained, strict=True)])
    of_params = tuple(next(new) if want else None for want in wanted)
    return total, (of_params, of_x_CBLD)


def _scanned_nll_backward(head, saved, scale):
    of_params, of_x_CBLD = jax.tree.map(lambda g: (scale * g).astype(g.dtype), saved)
    return of_params, of_x_CBLD, None, None


_scanned_nll.defvjp(_scanned_nll_forward, _scanned_nll_backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scanned_row_nll(head, params, x_CBLD, targets_CBL, weights_CBL):
    def add(total_B, chunk):
        x, targets, weights = chunk
        nll_BL = _token_nll(head(constrain_batch(x), params), targets, weights)
        return total_B + jnp.sum(nll_BL, axis=1), None

    zeros_B = jnp.zeros(x_CBLD.shape[1])
    return jax.lax.scan(add, zeros_B, (x_CBLD, targets_CBL, weights_CBL))[0]


def _scanned_row_nll_forward(head, params, x_CBLD, targets_CBL, weights_CBL):
    # None stands for what is in the other of the two, so that frozen parameters get no gradient.
    trained = tuple(part.value if part.perturbed else None for part in params)
    fixed = tuple(None if part.perturbed else part.value for part in params)
    chunks = x_CBLD.value, targets_CBL.value, weights_CBL.value
    rows_B = _scanned_row_nll(head, tuple(part.value for part in params), *chunks)
    return rows_B, (trained, fixed, chunks)


def _scanned_row_nll_backward(head, saved, scale_B):
    trained, fixed, (x_CBLD, targets_CBL, weights_CBL) = saved

    def total(trained, x_CBLD):
        params = tuple(old if new is None else new for new, old in zip(trained, fixed, strict=True))
        return _scanned_nll(head, params, x_CBLD, targets_CBL, weights_CBL * scale_B[:, None])

    return *jax.grad(total, (0, 1))(trained, x_CBLD), None, None


_scanned_row_nll.defvjp(_scanned_row_nll_forward, _scanned_row_nll_backward, symbolic_zeros=True)


def _shifted(tokens_BL: Array, weights_BL: Array) -> tuple[Array, Array]:
    """Targets and their weights, at the positions that predict them."""
    return jnp.roll(tokens_BL, -1, axis=1), jnp.roll(weights_BL, -1, axis=1).at[:, -1].set(0)


def _token_nll(logits_BLV: Array, targets_BL: Array, weights_BL: Array) -> Array:
    logits_BLV = logits_BLV.astype(jnp.float32)
    # Picking by comparison spares a copy of the logits.
    is_target_BLV = jnp.arange(logits_BLV.shape[-1]) == targets_BL[..., None]
    picked_BL = jnp.sum(jnp.where(is_target_BLV, logits_BLV, 0), axis=-1)
    return weights_BL * (jax.nn.logsumexp(logits_BLV, axis=-1) - picked_BL)
