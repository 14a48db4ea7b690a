"""When two sides' steps count as the same work."""

import math

import numpy as np
import pytest

from benchmarks import train_step
from benchmarks.train_step_rows import make_batch, run_config
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


def test_packed_rows_have_the_documents_of_padded_ones():
    config = run_config("tiny", 0, 2, "none", "published")
    padded, packed = (make_batch(config, "published", packed=p) for p in (False, True))
    for name, rows in padded.items():
        own, images = packed[name], config.streams[name].num_images
        assert own["images"].size < rows["images"].size or images == 1
        assert own["tokens"].size < rows["tokens"].size or images > 1
        for key in ("tokens", "weights"):
            used = (x[key][x["segments"] != 0] for x in (rows, own))
            np.testing.assert_array_equal(*used, err_msg=f"{name}: {key}")
        shown = (
            [picture for row in x["images"] for picture in row if picture.any()]
            for x in (rows, own)
        )
        np.testing.assert_array_equal(*shown, err_msg=f"{name}: images")
