import jax.numpy as jnp

from flamingo_jax.train.profile import Profile


def test_the_chosen_steps_are_traced(tmp_path):
    profile = Profile(tmp_path / "profile", (2, 2))
    running = []
    for step in range(1, 6):
        profile.begin(step)
        running.append(profile._running)
        profile.end(step, jnp.ones(3) * step)
    profile.close()
    assert running == [False, True, True, False, False]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_nothing_is_traced_unless_asked(tmp_path):
    profile = Profile(tmp_path / "profile", ())
    profile.begin(0)
    profile.close()
    assert not (tmp_path / "profile").exists()
