"""Why two result directories differ: settings, prompts, answers and scores, example by example."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.runs import Record, Results, Run, goodness, read_results

# What may differ in an example, causes before effects; the first that differs explains it.
CAUSES = {
    "references": "other references",
    "demonstrations": "other demonstrations",
    "images": "other images",
    "prompt": "other prompt",
    "raw": "same prompt, other answer",
    "answer": "same text, processed otherwise",
    "score": "same answer, scored otherwise",
}


@dataclass(frozen=True)
class Change:
    """An example that differs.

    Attributes:
      why: the first of `CAUSES` that differs.
      fields: every one that differs.
    """

    id: str
    why: str
    fields: tuple[str, ...]
    before: Record
    after: Record

    @property
    def gain(self) -> float:
        """Returns the second's score less the first's; 0 where examples have no scores."""
        return (goodness(self.after) or 0.0) - (goodness(self.before) or 0.0)


@dataclass(frozen=True)
class Pair:
    """The same task, shots and seed in both directories.

    Attributes:
      changes: those that change the score most come first.
      only_before, only_after: ids of examples that one directory alone has.
    """

    before: Run
    after: Run
    changes: list[Change]
    only_before: list[str]
    only_after: list[str]
    same: int

    @property
    def name(self) -> str:
        first, second = (f"{r.task}/{r.folder.name}" for r in (self.before, self.after))
        return first if first == second else f"{first} → {second}"

    def causes(self) -> dict[str, int]:
        """Returns how many examples each cause explains, the most frequent first."""
        return dict(Counter(change.why for change in self.changes).most_common())

    def better_and_worse(self) -> tuple[int, int]:
        gains = [change.gain for change in self.changes]
        return sum(g > 0 for g in gains), sum(g < 0 for g in gains)


@dataclass(frozen=True)
class Comparison:
    """Two result directories.

    Attributes:
      settings: manifest entries that differ, by path: ("settings.compat", "", "openflamingo").
      unpaired: runs that one directory alone has.
    """

    before: Results
    after: Results
    settings: list[tuple[str, Any, Any]]
    pairs: list[Pair]
    unpaired: list[Run]

    def text(self, examples: int = 3) -> str:
        """Returns text for a terminal, with the `examples` most changed ones of each pair."""
        lines = [f"A = {self.before.name}", f"B = {self.after.name}", "", "settings that differ:"]
        lines += [f"  {key}: {_short(a)} → {_short(b)}" for key, a, b in self.settings]
        if not self.settings:
            lines.append("  none")
        for pair in self.pairs:
            lines += ["", *_pair_lines(pair, examples)]
        if self.unpaired:
            lines += ["", "in one directory only:"]
            lines += [f"  {run.folder.parent.parent.name}: {_name(run)}" for run in self.unpaired]
        return "\n".join(lines)


def compare(a: Path, b: Path) -> Comparison:
    """Compares two result directories.

    Runs are paired by task, shots, seed, demonstrations and images. Those left over may differ in
    one of the last two, so that random and RICES demonstrations can be compared.

    Raises:
      UserError: one of them holds no results.
    """
    before, after = read_results(a), read_results(b)
    settings = sorted(_differing(_flat(before.manifest), _flat(after.manifest)), key=lambda d: d[0])
    pairs, rest = [], list(after.runs)
    left = list(before.runs)
    for attributes in (
        ("task", "shots", "seed", "demonstrations", "images"),
        ("task", "shots", "seed", "images"),
        ("task", "shots", "seed", "demonstrations"),
    ):
        for run in list(left):
            same = [r for r in rest if all(getattr(r, k) == getattr(run, k) for k in attributes)]
            if same:
                left.remove(run)
                rest.remove(same[0])
                pairs.append(_pair(run, same[0]))
    return Comparison(before, after, settings, pairs, left + rest)


def directories(argv: Sequence[str]) -> tuple[Path, Path] | None:
    """Returns the directories of `--compare A B` or `--compare=A,B` on a command line; None without
    it.

    Raises:
      UserError: not two directories, or something else beside them.
    """
    words = [word for arg in argv[1:] for word in arg.split("=", 1)]
    if "--compare" not in words:
        return None
    named = [name for word in words if word != "--compare" for name in word.split(",")]
    if words[0] != "--compare" or len(named) != 2 or any(n.startswith("-") for n in named):
        raise UserError(
            f"--compare takes two result directories, as in --compare runs/a runs/b; got {argv[1:]}"
        )
    return Path(named[0]), Path(named[1])


def _pair(before: Run, after: Run) -> Pair:
    ours = {record["id"]: record for record in before.records}
    theirs = {record["id"]: record for record in after.records}
    changes = [
        change for key in ours if key in theirs and (change := _change(ours[key], theirs[key]))
    ]
    changes.sort(key=lambda change: -abs(change.gain))
    common = sum(key in theirs for key in ours)
    return Pair(
        before,
        after,
        changes,
        [key for key in ours if key not in theirs],
        [key for key in theirs if key not in ours],
        common - len(changes),
    )


def _change(before: Record, after: Record) -> Change | None:
    fields = tuple(field for field in CAUSES if before.get(field) != after.get(field))
    if not fields:
        return None
    return Change(before["id"], CAUSES[fields[0]], fields, before, after)


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _flat(branch, f"{path}.{name}" if path else str(name)).items()
    }


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in a.keys() | b.keys():
        if a.get(key) != b.get(key):
            yield key, a.get(key), b.get(key)


def _pair_lines(pair: Pair, examples: int) -> Iterator[str]:
    a, b = pair.before.score, pair.after.score
    better, worse = pair.better_and_worse()
    yield f"{pair.name}: {a:.2f} → {b:.2f} ({b - a:+.2f})"
    yield (
        f"  {pair.same} examples the same, {len(pair.changes)} differ"
        f" ({better} score higher in B, {worse} lower)"
    )
    for why, count in pair.causes().items():
        yield f"    {count:6d} {why}"
    for name, ids in (("A", pair.only_before), ("B", pair.only_after)):
        if ids:
            yield f"  {len(ids)} examples in {name} only: {_short(', '.join(ids))}"
    for change in pair.changes[:examples]:
        yield f"  example {change.id}: {change.why} (differ: {', '.join(change.fields)})"
        for name, record in (("A", change.before), ("B", change.after)):
            yield f"    {name} score {_score(record)}  answer {_short(record.get('answer'))}"
            if "demonstrations" in change.fields:
                yield f"      demonstrations {' '.join(map(str, record['demonstrations']))}"
            elif "prompt" in change.fields:
                yield f"      prompt {_short(record['prompt'], 300)}"


def _name(run: Run) -> str:
    return f"{run.task}/{run.folder.name}"


def _score(record: Record) -> str:
    value = goodness(record)
    return "none" if value is None else f"{value:.1f}"


def _short(value: Any, length: int = 90) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= length else text[: length - 1] + "…"
