"""The planner on targets that are always there, and on those that need their compilers."""

import dataclasses

import jax
import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.plan import __main__ as plan
from flamingo_jax.plan import targets
from flamingo_jax.plan.account import device_bytes, measure, readable_hlo
from flamingo_jax.plan.report import CPU_NOTE, text
from flamingo_jax.schema import build
from flamingo_jax.train.config import TrainConfig
from flamingo_jax.train.setup import set_up, shardings
from tests import wide

GIB = 2**30


@pytest.fixture(scope="module")
def account():
    config = wide.get_config().to_dict()
    config["mesh"] = {"data": 2, "fsdp": 4}
    return measure(build(TrainConfig, config), targets.open_target("cpu:8"))


def test_arguments_are_those_of_the_arrays(account):
    """Against the arrays of a run on these devices, and against the compiler's account."""
    config = wide.get_config().to_dict()
    config["mesh"] = {"data": 2, "fsdp": 4}
    setup = set_up(build(TrainConfig, config))
    state, frozen, batch = setup.arguments
    make = jax.jit(setup.random_state, out_shardings=shardings((state, frozen)))
    arrays = make(jax.random.key(0))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(arrays))
    memory = account.per_device
    assert held == device_bytes((state, frozen))
    assert memory.arguments_gib * GIB == held + device_bytes(batch)
    parts = memory.trained_gib + memory.frozen_gib + memory.optimizer_gib + memory.batch_gib
    assert memory.arguments_gib * GIB == pytest.approx(parts * GIB + 8)  # two counters
    with jax.set_mesh(setup.mesh):
        compiled = setup.train_step.lower(state, frozen, batch).compile()
    assert compiled.memory_analysis().argument_size_in_bytes == memory.arguments_gib * GIB


def test_the_cpu_does_not_say_what_fits(account):
    assert account.per_device.fits is None
    assert account.per_device.capacity_gib is None
    assert account.speed is None
    assert CPU_NOTE in text(account)
    assert "fits" not in text(account)


def test_flops_and_collectives_are_those_of_the_step(account):
    total = sum(part.total + part.recomputed for part in account.flops.values())
    assert account.traced_flops == pytest.approx(total, rel=0.03)
    kinds = {traffic.kind: traffic for traffic in account.collectives}
    assert kinds["all-gather"].sent_gigabytes > 0
    assert kinds["all-gather"].network_gigabytes == 0


def test_a_program_that_cannot_be_read_is_no_silent_zero(account, monkeypatch):
    """As JAX 0.10 cannot read some of those for TPU v5p."""

    def unread(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", unread)
    compiled = jax.jit(lambda x: x + 1).lower(1.0).compile()
    unknown = dataclasses.replace(account, collectives=readable_hlo(compiled))
    assert "collectives and seconds: not known" in text(unknown)
    assert "GB per device" not in text(unknown)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("a100:8", "topology 'a100:8' is not known; it is one like: a100-40gb:8"),
        ("h100:8x8", "topology 'h100:8x8' is not known"),
        ("h100:0", "topology 'h100:0' is not known"),
        ("cpu:0", "topology 'cpu:0' is not known"),
        ("v5e:8", "topology 'v5e:8' is not known"),
        ("cpu:16", "cpu:16 needs 16 CPU devices, JAX was started with 8"),
    ],
)
def test_topologies_that_are_none_say_so(topology, message):
    with pytest.raises(UserError, match=message):
        targets.open_target(topology)


@pytest.mark.parametrize(
    ("topology", "extra"), [("a100-40gb:8", "plan-gpu"), ("v5e:2x4", "plan-tpu")]
)
def test_a_missing_compiler_names_the_extra_that_brings_it(monkeypatch, topology, extra):
    monkeypatch.setattr(targets, "_installed", lambda module: False)
    with pytest.raises(UserError, match=rf"pip install 'flamingo-jax\[{extra}\]'"):
        targets.open_target(topology)


def test_a_search_on_a_mesh_that_does_not_fit_says_so(monkeypatch):
    known = dataclasses.replace(targets.open_target("cpu:8"), chip=targets.CHIPS["h100"])
    monkeypatch.setattr(plan, "open_target", lambda topology: known)
    command = ["plan", "--config=tests/tiny.py", "--topology=h100:8", "--config.mesh.fsdp=3"]
    with pytest.raises(UserError, match=r"^config\.mesh: mesh data=-1 × fsdp=3 .* 8 devices"):
        plan.main([*command, "--search-batch"])


def test_a_search_needs_a_machine_that_tells_what_fits():
    command = ["plan", "--config=tests/tiny.py", "--topology=cpu:8"]
    with pytest.raises(UserError, match="search on another topology"):
        plan.main([*command, "--search-batch"])
    with pytest.raises(UserError, match="no topology given"):
        plan.main(["plan", "--config=tests/tiny.py", "--topology="])
