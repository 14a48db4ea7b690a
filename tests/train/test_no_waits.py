"""The loop never lets the devices wait: the order of what it does, compilations, the start."""

import dataclasses
import shutil
from pathlib import Path

import jax
import pytest

from flamingo_jax.data.pipeline import StepSource
from flamingo_jax.schema import build
from flamingo_jax.train import feed, loop
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.feed import DevicePrefetcher
from flamingo_jax.train.metrics import read_metrics
from flamingo_jax.train.progress import Progress
from flamingo_jax.train.setup import set_up
from flamingo_jax.train.speed import read_ledger
from tests import tiny

CONFIG = build(TrainConfig, tiny.get_config().to_dict())


def steps_and_events(monkeypatch) -> list[str]:
    """What the loop does from now on, in its order."""
    events: list[str] = []

    def note(event: str) -> None:
        events.append(f"{event} {1 + sum(e.startswith(event) for e in events)}")

    class NotingPrefetcher(DevicePrefetcher):
        def __init__(self, elements, count, put):
            def fetched():
                for element in elements:
                    note("fetch")
                    yield element

            def noted(element):
                note("put")
                return put(element)

            super().__init__(fetched(), count, noted)

    class NotingProgress(Progress):
        waiting = 0

        def defer(self, step, metrics):
            super().defer(step, metrics)
            self.waiting = step

        def flush(self):
            if self.waiting:
                events.append(f"wait {self.waiting}")
            self.waiting = 0
            super().flush()

    def note_steps(*args):
        setup = set_up(*args)

        def train_step(state, frozen, batch):
            note("step")
            return setup.train_step(state, frozen, batch)

        return dataclasses.replace(setup, train_step=train_step)

    monkeypatch.setattr(feed, "DevicePrefetcher", NotingPrefetcher)
    monkeypatch.setattr(loop, "Progress", NotingProgress)
    monkeypatch.setattr(loop, "set_up", note_steps)
    return events


def test_devices_have_the_next_step_before_anyone_waits_for_the_last(monkeypatch, tmp_path):
    """Between the end of a step and the start of the next one but one, nothing is read or moved."""
    events = steps_and_events(monkeypatch)
    # A save waits for its step.
    config = dataclasses.replace(CONFIG, checkpoint_every=CONFIG.num_steps)
    loop.run(config, tmp_path, jax.devices()[:1])
    when = {event: index for index, event in enumerate(events)}
    assert len(when) == len(events)
    for step in range(2, CONFIG.num_steps):
        # The input of the next step moves, and the one after it is read, while two steps are queued
        # on the devices: this one, and the last one, which nobody has waited for.
        during = events[when[f"step {step}"] + 1 : when[f"wait {step - 1}"]]
        assert during[0] == f"put {step + 1}"
        assert during[1:] == ([f"fetch {step + 2}"] if step + 2 <= CONFIG.num_steps else [])
        assert when[f"wait {step - 1}"] + 1 == when[f"step {step + 1}"]
    assert events[-2:] == ["wait 5", "wait 6"]


def test_batches_before_a_failure_are_all_used(monkeypatch, tmp_path):
    read = StepSource.read

    def fail(self, step):
        if step == 3:
            raise OSError("the disk is gone")
        return read(self, step)

    monkeypatch.setattr(StepSource, "read", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        loop.run(CONFIG, tmp_path, jax.devices()[:1])
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2, 3]


def facts(workdir: Path, name: str) -> list:
    return [line[name] for line in read_ledger(workdir / "ledger.jsonl") if name in line]


def test_one_compilation_serves_all_steps(tmp_path, capsys):
    loop.run(CONFIG, tmp_path, jax.devices()[:1])
    shutil.rmtree(tmp_path / "checkpoints/6")
    loop.run(CONFIG, tmp_path, jax.devices()[:1])  # from step 4 on
    assert facts(tmp_path, "compiled") == [1, 1, 1, 1, 1, 1]
    assert "compiled anew" not in capsys.readouterr().err


def test_another_compilation_is_counted_and_told(monkeypatch, tmp_path, capsys):
    read = StepSource.read

    def shorter(self, step):
        batches, drawn = read(self, step)
        if step == 3:
            rows = batches["interleaved"]
            for name in ("tokens", "segments", "weights"):
                rows[name] = rows[name][:, :-1]
        return batches, drawn

    monkeypatch.setattr(StepSource, "read", shorter)
    loop.run(CONFIG, tmp_path, jax.devices()[:1])
    # Told one step late: step 4 had been sent when step 3 was.
    assert facts(tmp_path, "compiled") == [1, 2, 2, 2, 2]
    warnings = [line for line in capsys.readouterr().err.splitlines() if "compiled anew" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: step 4 was compiled anew: interleaved/segments was")
    assert "interleaved/tokens was int32[8,14], is now int32[8,13]" in warnings[0]


def test_the_start_is_told_by_its_parts(tmp_path, capsys):
    loop.run(CONFIG, tmp_path, jax.devices()[:1])
    (parts,) = facts(tmp_path, "start_up")
    assert list(parts) == ["devices", "weights", "first batch", "compilation", "first step"]
    assert all(seconds >= 0 for seconds in parts.values())
    assert parts["compilation"] > 0
    said = [line for line in capsys.readouterr().out.splitlines() if "first step ended" in line]
    assert said == [f"the first step ended after {sum(parts.values()):.1f} s "
                    f"({', '.join(f'{k} {v:.1f}' for k, v in parts.items())})"]  # fmt: skip
