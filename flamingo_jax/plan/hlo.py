"""What a compiled program sends and multiplies, from its text; loops counted by their trips."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

DTYPE_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4}  # others end in their width
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|body|condition|to_apply|async_execution_computation)=%?([\w.\-]+)")
CONDITION, BODY = re.compile(r"condition=%?([\w.\-]+)"), re.compile(r"body=%?([\w.\-]+)")
BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\s*\{"n":\s*"?(\d+)')
CHANNEL = re.compile(r"channel_id=(\d+)")
ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(" + ORDER + r"\))?\s*\{((?:'\w+'[, ]*)*)\}"
)
MATMUL_CALLS = ("cublas", "__onednn", "Eigen", "gemm")


@dataclass(frozen=True)
class Instruction:
    """One line: `%name = result opcode(operands), attributes`."""

    name: str
    opcode: str
    result: str  # its type, as text
    operands: tuple[str, ...]  # their names; of a constant its value
    attributes: str


@dataclass(frozen=True)
class Collective:
    """One instruction that devices run together.

    Attributes:
      shapes: of the arrays it makes whole, or sums: its larger side, with dtypes.
      bytes: of that side, on each device.
      trips: how often the step runs it.
      groups: devices (their places in the mesh) that take part together, one group per row; empty
        where the text does not say.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    trips: int
    groups: np.ndarray

    def sent_bytes(self, node_size: int) -> tuple[float, float]:
        """Returns what each device sends in the step: inside of its node, and to other nodes.

        Arrays that end up alike on all devices travel between nodes once: the devices of a node
        that are in one group share them, each over a network port of its own, and pass on inside of
        their node what came (as NCCL's rings do). Everything else each device sends by itself.
        """
        if not self.groups.size:
            return 0.0, 0.0
        nodes = self.groups // node_size
        total = self.trips * self.bytes
        if self.kind == "collective-permute":  # groups are pairs
            crossing = float((nodes[:, 0] != nodes[:, 1]).mean())
            return total * (1 - crossing), total * crossing
        size = self.groups.shape[-1]
        count = max(len(set(group)) for group in nodes.tolist())
        local = size / count
        if "all-to-all" in self.kind:
            return total * (local - 1) / size, total * (size - local) / size
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * total * (1 - 1 / local), rounds * total * (1 - 1 / count) / local


class HloProgram:
    """A compiled program (`compiled.as_text()`), as computations that call each other."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            if start := COMPUTATION.match(line):
                current = self.computations.setdefault(start[2], [])
                if start[1]:
                    self.entry = start[2]
            elif instruction := _instruction(line):
                current.append(instruction)
        self.trips = self._trips()

    def _trips(self) -> dict[str, int]:
        """Returns how often each computation runs."""
        trips: dict[str, int] = defaultdict(int)
        waiting = [(self.entry, 1)]
        while waiting:
            name, times = waiting.pop()
            trips[name] += times
            for instruction in self.computations.get(name, ()):
                if instruction.opcode in COLLECTIVES:
                    continue  # calls its sum
                inside = times * (self._loops(instruction) if instruction.opcode == "while" else 1)
                called = CALLED.findall(instruction.attributes)
                for branches in BRANCHES.findall(instruction.attributes):
                    called += [branch.strip().lstrip("%") for branch in branches.split(",")]
                waiting += [(child, inside) for child in called if child in self.computations]
        return trips

    def _loops(self, loop: Instruction) -> int:
        """Returns the trips of a loop: as the compiler tells them, or by its condition, a counter
        from 0 being less than a constant (TPU compilers tell nothing). 1 where it depends on data.

        Raises:
          ValueError: the trips of a loop in which devices communicate are not known.
        """
        if known := TRIPS.search(loop.attributes):
            return int(known[1])
        condition = self.computations[CONDITION.findall(loop.attributes)[0]]
        limits = {i.name: i.operands[0] for i in condition if i.opcode == "constant"}
        last = condition[-1]
        is_counted = last.opcode == "compare" and "direction=LT" in last.attributes
        if is_counted and last.operands[-1] in limits:
            return int(limits[last.operands[-1]])
        body = self.computations[BODY.findall(loop.attributes)[0]]
        if any(i.opcode.removesuffix("-start") in COLLECTIVES for i in body):
            raise ValueError(f"how often the loop {loop.name} runs is not known")
        return 1

    def _fused(self) -> set[str]:
        """Returns the computations that are the inside of a fusion."""
        everything = (i for computation in self.computations.values() for i in computation)
        fusions = (i.attributes for i in everything if i.opcode == "fusion")
        return {name for attributes in fusions for name in CALLED.findall(attributes)}

    def collectives(self) -> list[Collective]:
        """Returns all collectives. TPU compilers spread one over the matmuls beside it: what stands
        in several fusions under one channel is one."""
        found, channels_of_fusions = [], set()
        fused = self._fused()
        for name, times in self.trips.items():
            types = {i.name: i.result for i in self.computations[name]}
            for instruction in self.computations[name]:
                kind = instruction.opcode.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                channel = CHANNEL.search(instruction.attributes)
                if name in fused and channel:
                    if channel[1] in channels_of_fusions:
                        continue
                    channels_of_fusions.add(channel[1])
                given = " ".join(types.get(operand, "") for operand in instruction.operands)
                result = instruction.result
                if instruction.opcode.endswith("-start") and kind != "all-reduce":
                    result = _results_of_start(result)
                larger = max(given, result, key=_bytes)
                found.append(
                    Collective(
                        kind,
                        tuple(match[0] for match in ARRAY.finditer(larger)),
                        _bytes(larger),
                        times,
                        _groups(instruction.attributes),
                    )
                )
        return found

    def matmul_bytes(self) -> int:
        """Returns what the step's matmuls read and write on one device, if nothing stays in
        caches."""
        total = 0
        for name, times in self.trips.items():
            types = {i.name: i.result for i in self.computations[name]}
            for instruction in self.computations[name]:
                if _is_matmul(instruction):
                    parts = [instruction.result, *(types.get(o, "") for o in instruction.operands)]
                    total += times * sum(_bytes(part, skip=("s8", "u8")) for part in parts)
        return total

    def dot_flops(self) -> int:
        """Counts the FLOPs of the step's matmuls on one device, where the back end keeps them as
        `dot`s (a CPU's does; a GPU's become calls of a library)."""
        total = 0
        for name, times in self.trips.items():
            types = {i.name: i.result for i in self.computations[name]}
            for instruction in self.computations[name]:
                if instruction.opcode == "dot":
                    left = _shape(types[instruction.operands[0]])
                    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
                    assert summed, instruction
                    sizes = [left[int(n)] for n in summed[1].split(",") if n]
                    total += times * 2 * math.prod(_shape(instruction.result)) * math.prod(sizes)
        return total


def _instruction(line: str) -> Instruction | None:
    found = INSTRUCTION.match(line)
    if not found:
        return None
    name, rest = found.groups()
    result, _, call = _split(rest, " ")  # the result's type may be a tuple
    opcode, _, inside = call.partition("(")
    operands, _, attributes = inside.partition(")")
    opcode = opcode.strip()
    names = re.findall(r"%([\w.\-]+)", operands) if opcode != "constant" else [operands]
    return Instruction(name, opcode, result, tuple(names), attributes)


def _bytes(types: str, skip: tuple[str, ...] = ()) -> int:
    total = 0
    for dtype, shape in ARRAY.findall(types):
        if dtype in skip:
            continue
        width = re.search(r"\d+", dtype)
        bits = DTYPE_BITS.get(dtype) or (int(width[0]) if width else 0)
        total += math.prod(int(size) for size in shape.split(",") if size) * bits // 8
    return total


def _shape(array: str) -> list[int]:
    found = ARRAY.search(array)
    assert found, array
    return [int(size) for size in found[2].split(",") if size]


def _results_of_start(result: str) -> str:
    """`(operands, results, …)` → `results`, where an asynchronous collective begins."""
    _, _, rest = _split(result[1:-1], ",")
    return _split(rest, ",")[0]


def _split(text: str, separator: str) -> tuple[str, str, str]:
    """`text.partition` at the first separator that stands outside of brackets."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "({[") - (character in ")}]")
        if character == separator and not depth:
            return text[:index], separator, text[index + 1 :]
    return text, "", ""


def _is_matmul(instruction: Instruction) -> bool:
    if instruction.opcode in ("dot", "convolution"):
        return True
    target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return (
        instruction.opcode == "custom-call"
        and target is not None
        and any(name in target[1] for name in MATMUL_CALLS)
    )


def _groups(attributes: str) -> np.ndarray:
    """Returns the devices that take part together, in any of the notations of XLA."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        return np.array(_integer_lists(pairs[1]))
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return np.array(_integer_lists(listed[1]))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=" + ORDER, attributes):
        return _order(*iota.groups()[1:]).reshape(_integers(iota[1]))
    if mesh := MESH.search(attributes):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        used = [list(axes).index(name) for name in re.findall(r"'(\w+)'", mesh[4])]
        count = math.prod(axes.values())
        places = _order(mesh[2] or str(count), mesh[3]).reshape(tuple(axes.values()))
        kept = [axis for axis in range(places.ndim) if axis not in used]
        size = math.prod(places.shape[axis] for axis in used)
        return places.transpose(kept + used).reshape(-1, size)
    if unknown := re.search(r"replica_groups=(?!\{\}).*", attributes):
        raise ValueError(f"groups of devices in a notation that is not known: {unknown[0][:200]}")
    return np.zeros((0, 1), int)


def _order(sizes: str, permutation: str | None) -> np.ndarray:
    """What `[2,8]T(1,0)` stands for: 0, 1, … in this shape, transposed."""
    places = np.arange(math.prod(_integers(sizes))).reshape(_integers(sizes))
    return places.transpose(_integers(permutation)) if permutation else places


def _integers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _integer_lists(text: str) -> list[list[int]]:
    return [_integers(part) for part in re.findall(r"([\d,]+)", text) if part != ","]
