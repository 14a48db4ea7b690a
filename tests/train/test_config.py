"""The settings of runs, those of earlier versions included."""

import json
import subprocess
import sys

from flamingo_jax import train
from flamingo_jax.schema import build, dump
from flamingo_jax.train.checkpoint import check_same_run
from flamingo_jax.train.config import TrainConfig, read_config
from tests import tiny

CONFIG = build(TrainConfig, tiny.get_config().to_dict())


def test_a_run_that_has_its_own_evaluation_of_the_demo_opens_and_goes_on(tmp_path):
    evaluation = {"split": "held_out", "shots": [0, 2], "num_examples": 6, "batch_size": 4}
    stored = {**dump(CONFIG), "evaluation": evaluation}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert read_config(tmp_path / "config.json") == CONFIG
    check_same_run(tmp_path, dump(CONFIG))
    assert "evaluation" not in json.loads((tmp_path / "config.json").read_text())


def test_the_room_names_what_it_gives_and_imports_it_late():
    assert set(train.__all__) == {"TrainConfig", "run"}
    assert train.TrainConfig is TrainConfig
    code = "import sys, flamingo_jax.train; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
