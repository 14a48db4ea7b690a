"""Collectives of a program given as text, in the notations of XLA's compilers."""

import pytest

from flamingo_jax.plan.hlo import HloProgram

GATHER = """
ENTRY %main (x: bf16[4,8]) -> bf16[8,8] {{
  %x = bf16[4,8]{{1,0}} parameter(0)
  ROOT %whole = bf16[8,8]{{1,0}} all-gather(%x), replica_groups={}, dimensions={{0}}
}}
"""

TEXT = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[], bf16[4,8]) parameter(0)
  %shard = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %gather = (bf16[4,8]{1,0}, bf16[32,8]{1,0}) all-gather-start(%shard), replica_groups=mesh['a'=8,'b'=1] {'a'}, dimensions={0}
  %whole = bf16[32,8]{1,0} all-gather-done(%gather)
  %product = bf16[4,32]{1,0} dot(%shard, %whole), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %next = (s32[], bf16[4,8]) tuple(%counter, %shard)
}

%done (state: (s32[], bf16[4,8])) -> pred[] {
  %state = (s32[], bf16[4,8]) parameter(0)
  ROOT %more = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: bf16[4,8], g: f32[16,8]) -> f32[2,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %g = f32[16,8]{1,0} parameter(1)
  %loop = (s32[], bf16[4,8]) while(%start), condition=%done, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %summed = f32[] all-reduce(%loss), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %mine = f32[2,8]{1,0} reduce-scatter(%g), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, to_apply=%add
}
"""  # noqa: E501


def test_collectives_are_counted_by_the_trips_of_their_loop():
    gather, reduce, scatter = sorted(HloProgram(TEXT).collectives(), key=lambda c: c.kind)
    assert (gather.kind, gather.shapes, gather.bytes, gather.trips) == (
        "all-gather",
        ("bf16[32,8]",),
        32 * 8 * 2,
        5,
    )
    assert gather.sent_bytes(8) == (5 * 32 * 8 * 2 * 7 / 8, 0)
    assert (reduce.kind, reduce.shapes, reduce.trips) == ("all-reduce", ("f32[]",), 1)
    assert reduce.sent_bytes(8) == (2 * 4 * 3 / 4, 0)
    assert (scatter.kind, scatter.shapes) == ("reduce-scatter", ("f32[16,8]",))


def test_devices_of_a_node_share_what_crosses_nodes():
    gather, reduce, scatter = sorted(HloProgram(TEXT).collectives(), key=lambda c: c.kind)
    assert reduce.groups.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert gather.groups.tolist() == scatter.groups.tolist() == [list(range(8))]
    whole = 16 * 8 * 4
    # Two nodes of four: half comes from the other node, a quarter of it over each port, and each
    # device passes its part on to the three others.
    assert scatter.sent_bytes(4) == (whole * 3 / 4, whole / 2 / 4)
    # Alone on its node: all of it goes between nodes.
    assert scatter.sent_bytes(1) == (0, whole * 7 / 8)
    # Two of each group on either node.
    assert reduce.sent_bytes(4) == (2 * 4 / 2, 2 * 4 / 2 / 2)


@pytest.mark.parametrize(
    ("kind", "groups", "sent"),
    [
        ("collective-permute", "{{0,1},{1,2},{2,3},{3,0}}", (8 * 8 * 2 / 2, 8 * 8 * 2 / 2)),
        ("all-to-all", "{{0,1,2,3}}", (8 * 8 * 2 / 4, 8 * 8 * 2 / 2)),
    ],
)
def test_what_is_not_alike_is_sent_by_each(kind, groups, sent):
    text = GATHER.replace("all-gather", kind).format(groups)
    text = text.replace("replica_groups", "source_target_pairs") if "permute" in kind else text
    (collective,) = HloProgram(text).collectives()
    assert collective.sent_bytes(2) == sent


@pytest.mark.parametrize(
    ("notation", "groups"),
    [
        ("mesh['a'=2,'b'=3] {'b'}", [[0, 1, 2], [3, 4, 5]]),
        ("mesh['a'=2,'b'=3] {'a'}", [[0, 3], [1, 4], [2, 5]]),
        # The mesh's places hold these devices: 0, 2, 4, 1, 3, 5.
        ("mesh['a'=3,'b'=2], device_ids=([2,3]T(1,0)) {'a'}", [[0, 1, 2], [3, 4, 5]]),
        ("mesh['a'=3,'b'=2], device_ids=([2,3]T(1,0)) {'b'}", [[0, 3], [1, 4], [2, 5]]),
        ("[2,3]<=[6]", [[0, 1, 2], [3, 4, 5]]),
        ("[3,2]<=[2,3]T(1,0)", [[0, 3], [1, 4], [2, 5]]),
        ("{{0,5},{1,4}}", [[0, 5], [1, 4]]),
        ("{}", []),
    ],
)
def test_groups_in_every_notation(notation, groups):
    (collective,) = HloProgram(GATHER.format(notation)).collectives()
    assert collective.groups.tolist() == groups


def test_an_unknown_notation_is_no_silent_zero():
    with pytest.raises(ValueError, match="notation that is not known: replica_groups=mesh"):
        HloProgram(GATHER.format("mesh['a'=4] {'a':(1)2}")).collectives()


COUNTED = TEXT.replace(', backend_config={"known_trip_count":{"n":"5"}}', "").replace(
    "ROOT %more = pred[] compare(%i, %n)",
    "%n = s32[]{:T(128)} constant(7)\n  ROOT %more = pred[]{:T(512)} compare(%i, %n)",
)


def test_trips_that_the_compiler_does_not_tell_are_in_the_condition():
    (gather, *_) = sorted(HloProgram(COUNTED).collectives(), key=lambda c: c.kind)
    assert gather.trips == 7


def test_a_loop_of_unknown_length_is_no_single_trip():
    with pytest.raises(ValueError, match="how often the loop loop runs is not known"):
        HloProgram(COUNTED.replace("direction=LT", "direction=EQ"))


SPREAD = """
%first (x: bf16[4,8]) -> bf16[32,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  ROOT %begun = bf16[32,8]{1,0} all-gather(%x), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%second (x: bf16[4,8]) -> bf16[32,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  ROOT %ended = bf16[32,8]{1,0} all-gather(%x), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

ENTRY %main (x: bf16[4,8]) -> bf16[32,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %a = bf16[32,8]{1,0} fusion(%x), kind=kLoop, calls=%first
  %other = bf16[32,8]{1,0} all-gather(%x), channel_id=8, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %b = bf16[32,8]{1,0} fusion(%x), kind=kLoop, calls=%second
}
"""  # noqa: E501


def test_a_gather_that_is_spread_over_fusions_is_one():
    assert [c.trips for c in HloProgram(SPREAD).collectives()] == [1, 1]


def test_matmul_flops_are_counted_by_the_trips_of_their_loop():
    assert HloProgram(TEXT).dot_flops() == 5 * 2 * 4 * 32 * 8


def test_matmul_traffic_is_operands_and_results():
    assert HloProgram(TEXT).matmul_bytes() == 5 * 2 * (4 * 8 + 32 * 8 + 4 * 32)
