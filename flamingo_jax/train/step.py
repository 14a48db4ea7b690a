"""The training step: one pure function of (state, frozen, batch), jitted once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from flamingo_jax.models.params import ModelGraph, Params
from flamingo_jax.models.vlm import VisionLanguageModel
from flamingo_jax.train.losses import LOSSES

# stream → images (B, T, F, H, W, 3) or their features (B, T, F, P, D); tokens, segments, weights
Batch = Mapping[str, Mapping[str, Array]]
Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that training changes: trained parameters only, never a frozen one."""

    step: Int[Array, ""]  # updates done, skipped ones included
    nonfinite_steps: Int[Array, ""]  # updates skipped in a row, because of NaN or inf
    params: Params  # float32
    opt_state: optax.OptState


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, params, optimizer.init(params))


def stream_losses(
    graph: ModelGraph,
    params: Params,
    frozen: Params,
    batch: Batch,
    totals: Mapping[str, Array],
    row_parts: Mapping[str, int] | None = None,
    losses: Mapping[str, str] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Returns each stream's loss: its sum over rows, over `totals`, the Σ weight it is part of.

    `row_parts`: of each stream, see `VisionLanguageModel.hidden_states`; none: 1.
    `losses`: of each stream, a name in `LOSSES`; none: "next_token".
    """
    model: VisionLanguageModel = graph.merge(params, frozen)
    streams = encode_images(model, batch).values()
    vectors = model.connect([stream["features"] for stream in streams])
    texts = model.hidden_states(
        vectors,
        [stream["tokens"] for stream in streams],
        [stream["segments"] for stream in streams],
        [(row_parts or {}).get(name, 1) for name in batch],
    )
    return {
        name: LOSSES[(losses or {}).get(name, "next_token")](model, x_BLD, batch[name])
        / totals[name]
        for name, x_BLD in zip(batch, texts, strict=True)
    }


def encode_images(model: VisionLanguageModel, batch: Batch) -> Batch:
    """Returns the batch with the features of its images instead of the images."""
    unseen = [name for name, stream in batch.items() if "features" not in stream]
    features = dict(zip(unseen, model.encode([batch[n]["images"] for n in unseen]), strict=True))
    return {
        name: {k: v for k, v in stream.items() if k != "images"}
        | ({"features": features[name]} if name in features else {})
        for name, stream in batch.items()
    }


def make_train_step(
    graph: ModelGraph,
    optimizer: optax.GradientTransformation,
    stream_weights: Mapping[str, float],
    accumulation_steps: int = 1,
    micro_clip_norm: float | None = None,
    row_parts: Mapping[str, int] | None = None,
    trains_encoder: bool = True,
    losses: Mapping[str, str] | None = None,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]:
    """The update of `state` by one batch; jit it with `state` donated.

    The loss is Σ stream weight · (mean over the stream's counted tokens). With accumulation, each
    micro-batch is divided by the token count of the whole batch, so that the sum of gradients is
    the whole batch's, also when micro-batches count different numbers of tokens. An update that is
    not finite is skipped and counted.

    `micro_clip_norm` accumulates as OpenFlamingo does instead: the mean of the micro-batches' own
    means, its gradient clipped to this norm after every micro-batch; 0: not clipped.

    `row_parts`, `losses`: see `stream_losses`. `trains_encoder`: whether some of its parameters are
    trained.
    """

    def loss_fn(params, frozen, batch, totals):
        values = stream_losses(graph, params, frozen, batch, totals, row_parts, losses)
        return sum(stream_weights[name] * loss for name, loss in values.items()), values

    def gradients(params, frozen, batch, totals):
        if not trains_encoder:
            # Outside of what is differentiated, so that nothing of the encoder can be kept for it.
            model = graph.merge(params, frozen)
            batch = encode_images(model, batch)
        (_, values), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, frozen, batch, totals
        )
        return grads, values

    def accumulate(params, frozen, batch, totals):
        micro_batches = jax.tree.map(lambda x: split_micro_batches(x, accumulation_steps), batch)

        def body(sums, micro_batch):
            own = totals
            if micro_clip_norm is not None:
                own = {n: accumulation_steps * t for n, t in token_totals(micro_batch).items()}
            sums = jax.tree.map(jnp.add, sums, gradients(params, frozen, micro_batch, own))
            if micro_clip_norm:
                clip = optax.clip_by_global_norm(micro_clip_norm)
                sums = clip.update(sums[0], clip.init(params))[0], sums[1]
            return sums, None

        zeros = jax.tree.map(jnp.zeros_like, params), {name: jnp.zeros(()) for name in batch}
        return jax.lax.scan(body, zeros, micro_batches)[0]

    def train_step(state, frozen, batch):
        totals = token_totals(batch)
        compute = gradients if accumulation_steps == 1 else accumulate
        grads, values = compute(state.params, frozen, batch, totals)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        grad_norm = optax.tree.norm(grads)
        loss = sum(stream_weights[name] * value for name, value in values.items())
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        nonfinite_steps = jnp.where(finite, 0, state.nonfinite_steps + 1)
        metrics = {
            "loss": loss,
            **{f"loss/{name}": value for name, value in values.items()},
            **{f"tokens/{name}": total for name, total in totals.items()},
            "grad_norm": grad_norm,
            "nonfinite_steps": nonfinite_steps,
        }
        return TrainState(state.step + 1, nonfinite_steps, params, opt_state), metrics

    return train_step


def token_totals(batch: Batch) -> dict[str, Float[Array, ""]]:
    """Σ weight of each stream's tokens: what its loss is divided by, so never less than 1."""
    return {name: jnp.maximum(rows["weights"][:, 1:].sum(), 1.0) for name, rows in batch.items()}


def split_micro_batches(x: Array, parts: int) -> Array:
    """(B, …) → (parts, B/parts, …). Micro-batch k takes every `parts`-th row, so that each device
    keeps the rows it has."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
