import jax
import jax.numpy as jnp
import pytest

from flamingo_jax.train.profile import Profile


@pytest.fixture
def traced(monkeypatch):
    """Tells whether a trace is being written."""
    running = []
    start, stop = jax.profiler.start_trace, jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "start_trace", lambda f: (running.append(f), start(f)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (running.clear(), stop()))
    return lambda: bool(running)


def test_the_chosen_steps_are_traced(traced, tmp_path):
    profile = Profile(tmp_path / "profile", (2, 2))
    running = []
    for step in range(1, 6):
        profile.step(step, jnp.ones(3) * step)
        running.append(traced())
    profile.close()
    assert running == [False, True, True, False, False]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_run_that_ends_early_ends_its_trace(traced, tmp_path):
    profile = Profile(tmp_path / "profile", (2, 2))
    profile.step(2, jnp.ones(3))
    assert traced()
    profile.close()
    assert not traced()


def test_nothing_is_traced_unless_asked(traced, tmp_path):
    profile = Profile(tmp_path / "profile", ())
    profile.step(0, jnp.ones(3))
    assert not traced()
    profile.close()
    assert not (tmp_path / "profile").exists()
