import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flamingo_jax.convert.importing import import_state_dict
from flamingo_jax.convert.optimizer_state import read_adam_state
from flamingo_jax.train.optimizer import OptimizerConfig, make_optimizer
from flamingo_jax.train.step import init_state, make_train_step, stream_losses
from flamingo_jax.weights.views import export
from tests import golden_root
from tests.convert import goldens

RESUME = golden_root.find(goldens.FOLDER)
RESUMED = [name for name in goldens.NAMES if (RESUME / f"resume_{name}").is_dir()]
NEW_ROWS = "decoder/embedding/new_rows"
TRAINED = ("resampler/", "cross_attention/", NEW_ROWS)


class Training:
    """One family's parameters and gradient."""

    def __init__(self, golden):
        self.golden = golden
        self.trained = {p: v for p, v in golden.params.items() if p.startswith(TRAINED)}
        self.frozen = {p: v for p, v in golden.params.items() if p not in self.trained}

        def loss(trained, frozen, rows):
            totals = {"rows": rows["weights"][:, 1:].sum()}
            return stream_losses(golden.graph, trained, frozen, {"rows": rows}, totals)["rows"]

        self.gradient = jax.jit(jax.grad(loss))

    def torch(self, arrays):
        """Arrays of trained parameters, or of their gradients, under torch's names; without the
        token rows, of which torch trains two inside a large table."""
        plan = {p: s for p, s in self.golden.plan.items() if p in arrays and p != NEW_ROWS}
        return {name: make() for name, make in export(plan, arrays, np.float32).items()}


@functools.cache
def make_training(name):
    return Training(goldens.load(name))


@pytest.fixture(scope="session")
def training(golden):
    return make_training(golden.name)


@pytest.fixture
def whole(training):
    if not training.golden.whole:
        pytest.skip("the trajectories are not at hand")
    return training


def mmc4_gradient(training):
    return training.gradient(training.trained, training.frozen, training.golden.batch("mmc4"))


def relative(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def test_gradients_equal_the_originals(training):
    arrays = training.golden.arrays
    gradient = mmc4_gradient(training)
    assert optax.tree.norm(gradient) == pytest.approx(arrays["mmc4_grad_total_norm"], rel=1e-3)
    ours = training.torch(gradient)
    norms = {k.removeprefix("gradnorm/"): v for k, v in arrays.items() if k.startswith("gradnorm/")}
    embedding = training.golden.imported.family.embedding
    assert set(ours) == {name for name in norms if not name.endswith(embedding)}
    for name in ours:
        assert np.linalg.norm(ours[name]) == pytest.approx(norms[name], rel=1e-3), name
        if (expected := arrays.get(f"grad/{name}")) is not None:
            assert relative(goldens.sampled(ours[name]), expected) < 1e-3, name
    assert relative(gradient[NEW_ROWS], arrays[f"grad_rows/lang_encoder.{embedding}"]) < 1e-3


def test_one_adamw_step_equals_the_originals(whole):
    arrays = whole.golden.arrays
    gradient = mmc4_gradient(whole)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4), 100, whole.trained)
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(whole.trained), whole.trained)
    stepped = whole.torch(optax.apply_updates(whole.trained, updates))
    for name, value in stepped.items():
        large = np.abs(arrays[f"grad/{name}"]) >= 1e-6
        difference = np.abs(goldens.sampled(value) - arrays[f"adamw/{name}"])[large]
        # Within a hundredth of the step, which is as long as the learning rate. The weights' own
        # rounding is up to 2e-7, and small gradients carry the noise of large ones.
        assert difference.max(initial=0) < 0.01 * 1e-4, name


def train(training, order, weights, warmup, steps=1, state=None, frozen=None, idle=False):
    """Losses of both streams and gradient norms of training on batches A and B in this order.

    `steps` > 1 accumulates that many of them per update, as the original does. `idle`: the first
    update has learning rate 0.
    """
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=warmup)
    optimizer = make_optimizer(config, 100, training.trained)
    micro_clip_norm = config.clip_norm if steps > 1 else None
    step = jax.jit(
        make_train_step(training.golden.graph, optimizer, weights, steps, micro_clip_norm)
    )
    if state is None:
        state = init_state(training.trained, optimizer)
    losses, norms = [], []
    for first in range(0, len(order), steps):
        parts = [
            {stream: training.golden.batch(f"traj{name}_{stream}") for stream in weights}
            for name in order[first : first + steps]
        ]
        # Micro-batch k is every `steps`-th row.
        batch = jax.tree.map(
            lambda *rows: np.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:]), *parts
        )
        before = state.params
        state, metrics = step(state, training.frozen if frozen is None else frozen, batch)
        if idle and first == 0:
            state = dataclasses.replace(state, params=before)
        losses.append([metrics["loss/laion"], metrics["loss/mmc4"]])
        norms.append(metrics["grad_norm"])
    return np.array(losses), np.array(norms), state.params


def test_trajectory_equals_the_originals(whole):
    arrays = whole.golden.arrays
    losses, norms, trained = train(whole, "ABABAB", {"laion": 0.2, "mmc4": 1.0}, warmup=2)
    assert np.abs(losses - arrays["traj_losses"]).max() < 1e-3
    assert norms == pytest.approx(arrays["traj_gradnorm"], rel=1e-3)
    for name, value in whole.torch(trained).items():
        if (expected := arrays.get(f"traj_final/{name}")) is not None:
            # Six steps of 1e-3 at most; entries with tiny gradients are ill-conditioned.
            difference = np.abs(goldens.sampled(value)[: len(expected)] - expected)
            assert np.median(difference) < 2e-5, name


def test_accumulation_as_the_original_does_it(whole):
    weights = {"laion": 1.0, "mmc4": 1.0}
    losses, _, _ = train(whole, "ABABAB", weights, warmup=1, steps=2)
    expected = whole.golden.arrays["trajacc2_losses"].reshape(3, 2, 2).mean(axis=1)
    assert np.abs(losses - expected).max() < 1e-3


@pytest.mark.parametrize("name", golden_root.each(RESUMED, goldens.FOLDER))
def test_resuming_the_originals_optimizer(name):
    folder = RESUME / f"resume_{name}"
    training = make_training(name)
    imported = import_state_dict(
        training.golden.folder / "model.safetensors",
        training.golden.folder / "config.json",
        checkpoint=folder / "checkpoint_0.pt",
    )
    params = {p: jnp.asarray(leaf.read(np.float32)) for p, leaf in imported.leaves.items()}
    trained = {p: params[p] for p in training.trained}
    adam = read_adam_state(
        folder / "checkpoint_0.pt", imported.family, imported.config, training.trained
    )
    weights = {"laion": 0.2, "mmc4": 1.0}
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=2), 100, trained)
    fresh = init_state(trained, optimizer)
    losses, _, _ = train(
        training,
        "ABA",
        weights,
        warmup=2,
        state=dataclasses.replace(fresh, opt_state=adam.put_into(fresh.opt_state)),
        frozen={p: params[p] for p in training.frozen},
        # The original builds its schedule after loading the optimizer, which sets the learning rate
        # of the first update to that of a warm-up's start.
        idle=True,
    )
    with np.load(folder / "resume.npz") as expected:
        assert np.abs(losses - expected["losses_after_resume"]).max() < 1e-3
