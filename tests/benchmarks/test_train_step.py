"""When two sides' steps count as the same work."""

import math

import pytest

from benchmarks import train_step
from flamingo_jax.errors import UserError


def both(theirs):
    ours = {"loss/pairs": 6.0, "grad_norm": 2.0}
    return {"ours": {"results": ours}, "original": {"results": ours | theirs}}


def test_sides_that_agree_may_be_timed():
    train_step.check_results([both({"grad_norm": 2.0001})], "float32")


@pytest.mark.parametrize(
    "theirs", [{"loss/pairs": 6.1}, {"grad_norm": 1.9}, {"grad_norm": math.nan}]
)
def test_a_loss_or_gradient_norm_that_differs_is_refused(theirs):
    (name,) = theirs
    with pytest.raises(UserError, match=f"step 2: {name}"):
        train_step.check_results([both({}), both(theirs)], "float32")
