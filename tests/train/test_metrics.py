import json

from flamingo_jax.train.metrics import MetricWriter, read_metrics

FACTS = {"steps_per_second": 2.0, "examples_per_second": 80.0, "data_wait": 0.25}


def writer(path, start=0):
    return MetricWriter(path, start=start, num_steps=10)


def test_lines_after_the_checkpoint_are_written_once(tmp_path, capsys):
    first = writer(tmp_path)
    for step in range(1, 6):
        first.write(step, {"loss": float(step), "loss/pairs": 0.5}, FACTS if step > 1 else {})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "lo')  # killed while writing
    second = writer(tmp_path, start=3)
    second.write(4, {"loss": 40.0}, {})
    second.close()
    assert [(m["step"], m["loss"]) for m in read_metrics(tmp_path)] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0),
    ]  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step  1/10  loss 1.0000  pairs 0.5000"
    assert lines[1].endswith("  80 examples/s  ETA 0:00:04  waiting for data 25%")


def test_metrics_are_exact(tmp_path):
    """Losses survive the file bit for bit."""
    value = 0.1 + 2**-50
    w = writer(tmp_path)
    w.write(1, {"loss": value}, {})
    w.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == value
