from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.errors import UserError
from flamingo_jax.schema import build, dump, kinds_at


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int
    rate: float = 0.5

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size is {self.size}, it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    named: dict[str, Inner] = field(default_factory=dict)
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    maybe: int | None = None
    flag: bool = False


FULL = {
    "inner": {"size": 2, "rate": 1.0},
    "named": {"x": {"size": 3, "rate": 0.5}},
    "kind": "b",
    "names": ("one", "two"),
    "options": {"deep": [1]},
    "maybe": 4,
    "flag": True,
}


def test_dump_is_the_inverse_of_build():
    assert dump(build(Outer, FULL)) == FULL
    assert dump(build(Outer, {"inner": {"size": 1}}))["inner"] == {"size": 1, "rate": 0.5}


def test_an_int_is_a_valid_float():
    rate = build(Inner, {"size": 1, "rate": 2}).rate
    assert isinstance(rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iner": {}}, "unknown config key 'c.iner'; did you mean 'inner'?"),
        ({"zzz": 1}, "unknown config key 'c.zzz'; known here: flag, inner, kind, maybe, named"),
        ({"inner": {}}, "missing config key: c.inner.size"),
        ({"inner": {"size": "2"}}, "c.inner.size is '2' (str), expected int"),
        ({"inner": {"size": True}}, "c.inner.size is True (bool), expected int"),
        ({"inner": {"size": 0}}, "c.inner: size is 0, it must be at least 1"),
        ({"inner": 3}, "c.inner is 3 (int), expected Inner"),
        ({"named": {"x": {"sise": 1}}}, "unknown config key 'c.named.x.sise'"),
        ({"kind": "c"}, "c.kind is 'c', expected one of: 'a', 'b'"),
        ({"names": [1]}, "c.names[0] is 1 (int), expected str"),
        ({"flag": 1}, "c.flag is 1 (int), expected bool"),
        ({"maybe": "x"}, "c.maybe is 'x' (str), expected int"),
    ],
)
def test_errors_name_the_key(change, message):
    with pytest.raises(UserError) as error:
        build(Outer, {"inner": {"size": 1}, **change}, "c")
    assert message in str(error.value)


@dataclass(frozen=True, kw_only=True)
class Perceiver:
    kind: Literal["perceiver"] = "perceiver"
    depth: int = 6


@dataclass(frozen=True, kw_only=True)
class Linear:
    kind: Literal["linear"] = "linear"
    width: int
    rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    first: Perceiver | Linear
    second: Perceiver | Linear = field(default_factory=lambda: Linear(width=3))
    maybe: Perceiver | Linear | None = None
    only: Perceiver = field(default_factory=Perceiver)
    many: tuple[Linear | Perceiver, ...] = ()
    named: dict[str, Perceiver | Linear | None] = field(default_factory=dict)
    text: int | str | None = None


linears = st.builds(Linear, width=st.integers(), rate=st.none() | st.floats(allow_nan=False))
choices = st.builds(Perceiver, depth=st.integers()) | linears
models = st.builds(
    Model,
    first=choices,
    second=choices,
    maybe=st.none() | choices,
    many=st.lists(choices, max_size=3).map(tuple),
    named=st.dictionaries(st.text(), st.none() | choices, max_size=3),
    text=st.none() | st.integers() | st.text(),
)


@given(models)
def test_build_is_the_inverse_of_dump_for_every_kind(model):
    assert build(Model, dump(model)) == model


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"first": {"kind": "linear", "width": 2}}, Model(first=Linear(width=2))),
        ({"first": {}}, Model(first=Perceiver())),  # the first there is
        (
            {"first": {}, "second": {"width": 4}},  # the field's own default
            Model(first=Perceiver(), second=Linear(width=4)),
        ),
        ({"first": {}, "maybe": {"depth": 1}}, Model(first=Perceiver(), maybe=Perceiver(depth=1))),
        ({"first": Linear(width=1)}, Model(first=Linear(width=1))),
        ({"first": {}, "only": {"depth": 2}}, Model(first=Perceiver(), only=Perceiver(depth=2))),
    ],
)
def test_the_kind_chooses(values, expected):
    assert build(Model, values) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"first": {"kind": "percever"}},
            "c.first.kind is 'percever', expected one of: 'perceiver', 'linear'; "
            "did you mean 'perceiver'?",
        ),
        ({"only": {"kind": "linear"}}, "c.only.kind is 'linear', expected one of: 'perceiver'"),
        ({"second": {"depth": 1}}, "unknown config key 'c.second.depth'"),
        ({"first": {"kind": "linear"}}, "missing config key: c.first.width"),
        ({"first": 3}, "c.first is 3 (int), expected Perceiver or Linear"),
        ({"text": 1.5}, "c.text is 1.5 (float), expected int or str"),
    ],
)
def test_errors_name_the_kinds(change, message):
    with pytest.raises(UserError) as error:
        build(Model, {"first": {}, **change}, "c")
    assert message in str(error.value)


def test_where_a_kind_is_chosen():
    assert kinds_at(Model, ["first"]) == {"perceiver": Perceiver, "linear": Linear}
    assert kinds_at(Model, ["named", "x"]).keys() == {"perceiver", "linear"}
    for keys in ([], ["first", "depth"], ["nothing"], ["text"]):
        assert kinds_at(Model, keys) == {}
    assert kinds_at(Outer, []) == {}  # its `kind` has several values, and so is a setting
