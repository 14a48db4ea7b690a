import json
from types import SimpleNamespace

import pytest

from flamingo_jax.schema import build
from flamingo_jax.train import speed
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.flops import step_flops
from flamingo_jax.train.speed import Throughput, read_ledger, seconds_at_peak
from tests import tiny


class Clock:
    """Stands for the `time` module: time passes when a test says so."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


def test_rates_and_shares_of_the_time(clock, tmp_path):
    facts = Throughput(
        tmp_path / "ledger",
        start=0,
        per_step={"tokens": 50},
        seconds_at_peak=0.25,
        counters={"compiled": lambda: 1},
    )
    clock.now += 20  # start-up and compilation
    facts.begin(1, {"compilation": 20})
    assert facts.facts(1) == {}
    clock.now += 6
    with facts.paused("data"):
        clock.now += 3
    with facts.paused("save"):
        clock.now += 1
    assert facts.facts(11) == pytest.approx(
        {
            "steps_per_second": 1.0,
            "tokens_per_second": 50.0,
            "data_wait": 0.3,
            "goodput": 6 / 30,
            "mfu": 0.25,
            "compiled": 1,
        }
    )
    clock.now += 10
    assert facts.facts(21)["goodput"] == pytest.approx(16 / 40)
    assert read_ledger(tmp_path / "ledger")[1]["start_up"] == {"compilation": 20}


def test_time_beside_the_devices_work_is_not_lost(clock, tmp_path):
    facts = Throughput(tmp_path / "ledger", start=0, per_step={})
    facts.begin(1, {})
    for idle in (False, True):
        with facts.paused("data", pending=SimpleNamespace(is_ready=lambda idle=idle: idle)):
            clock.now += 2
    assert facts.facts(2)["data_wait"] == pytest.approx(1 / 2)


def test_the_ledger_survives_restarts_and_lost_steps_do_not_count(clock, tmp_path):
    ledger = tmp_path / "ledger"
    first = Throughput(ledger, start=0, per_step={})
    first.begin(1, {})
    for step in (10, 20):
        clock.now += 5
        first.facts(step)
    with ledger.open("a") as file:
        file.write('{"step": 30, "produc')  # killed while writing
        file.write("\n")
    clock.now += 10  # nothing ran
    second = Throughput(ledger, start=10, per_step={})  # steps 11 to 20 were lost
    second.begin(11, {})
    clock.now += 5
    assert second.facts(21)["goodput"] == pytest.approx((5 + 5) / 25)
    lines = [line for line in read_ledger(ledger) if "first_step" not in line]
    assert [line.get("start", line.get("step")) for line in lines] == [0, 10, 20, 10, 21]


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("NVIDIA A100-SXM4-40GB", 312e12), ("TPU v5 lite", 197e12), ("TPU v5", 459e12)],
)
def test_the_fastest_possible_step(kind, peak):
    config = build(TrainConfig, tiny.get_config().to_dict())
    device = SimpleNamespace(device_kind=kind)
    assert seconds_at_peak(config, [device] * 4) == step_flops(config).total / (4 * peak)
    assert seconds_at_peak(config, [SimpleNamespace(device_kind="cpu")]) is None


def test_a_process_that_does_not_log_writes_no_ledger(clock, tmp_path):
    facts = Throughput(None, start=0, per_step={"images": 2})
    facts.begin(1, {})
    clock.now += 1
    assert facts.facts(2)["images_per_second"] == 2
    assert json.dumps(list(tmp_path.iterdir())) == "[]"
