from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.schema import build, dump


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
