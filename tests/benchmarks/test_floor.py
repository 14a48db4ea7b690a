import json

import pytest

from benchmarks import floor
from flamingo_jax.errors import UserError

CONFIG = "--config=tests/tiny.py"
MEASURED = {"ceiling_float32": 0.001, "ceiling_memory": 2.0}


@pytest.fixture
def ceilings(tmp_path):
    path = tmp_path / "ceilings.json"
    path.write_text(json.dumps(MEASURED))
    return path


def test_the_floor_of_a_config_is_printed_and_written(ceilings, tmp_path, capsys):
    out = tmp_path / "floor.json"
    floor.main(["floor", f"--ceilings={ceilings}", f"--json={out}", CONFIG])
    found = json.loads(out.read_text())
    parts = found["parts"]
    assert set(parts) == {"vision", "resampler", "cross_attention", "lm", "head", "optimizer"}
    for part in parts.values():
        work = part["tflop"] + part["tflop_recomputed"]
        moved = part["gigabytes_weights"] + part["gigabytes_activations"]
        assert part["ms_arithmetic"] == pytest.approx(work / 0.001 * 1e3)
        assert part["ms_memory"] == pytest.approx(moved / 2.0 * 1e3)
    longer = sum(max(part["ms_arithmetic"], part["ms_memory"]) for part in parts.values())
    assert found["ms"] == pytest.approx(longer)
    assert parts["optimizer"]["bound"] == "memory"
    shown = capsys.readouterr().out
    assert "cross_attention" in shown
    assert f"MFU there: {found['mfu']:.1%}" in shown


def test_overrides_reach_the_config(ceilings, tmp_path):
    def milliseconds(*overrides: str) -> float:
        out = tmp_path / "floor.json"
        floor.main(["floor", f"--ceilings={ceilings}", f"--json={out}", CONFIG, *overrides])
        return json.loads(out.read_text())["parts"]["lm"]["ms_arithmetic"]

    more = [f"--config.streams.{s}.batch_size=16" for s in ("pairs", "interleaved")]
    assert milliseconds(*more) == pytest.approx(2 * milliseconds())


def test_mistakes_are_told(ceilings, tmp_path):
    with pytest.raises(UserError, match="bfloat16, or measure the machine"):
        floor.main(["floor", "--chip=h100", CONFIG])
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    with pytest.raises(UserError, match="ceilings --json FILE"):
        floor.main(["floor", f"--ceilings={empty}", CONFIG])
    with pytest.raises(UserError, match="no config given"):
        floor.main(["floor", f"--ceilings={ceilings}"])
