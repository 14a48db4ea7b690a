"""The tables and charts of the report."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape

from flamingo_jax.evaluate.compare import Comparison
from flamingo_jax.evaluate.published import PUBLISHED, SHOTS
from flamingo_jax.evaluate.report.charts import Bar, Line, bar_chart, line_chart
from flamingo_jax.evaluate.report.names import TITLES
from flamingo_jax.evaluate.runs import (
    Estimate,
    Record,
    Results,
    Run,
    estimate,
    goodness,
    mean_interval,
)

MOST_TYPES = 20
REFERENCES = ("Flamingo-3B", "Flamingo-9B")


def settings(evaluations: Sequence[Results]) -> str:
    """Shows what was evaluated: model, hashes, settings, versions."""
    rows: dict[str, list[str]] = defaultdict(lambda: [""] * len(evaluations))
    for i, results in enumerate(evaluations):
        for part in ("model", "settings", "versions"):
            found = results.manifest.get(part, {})
            for key, value in found.items() if isinstance(found, dict) else [("", found)]:
                if not isinstance(value, dict):
                    rows[f"{part}.{key}".rstrip(".")][i] = str(value)
    names = "".join(f"<th>{escape(results.name)}</th>" for results in evaluations)
    body = _rows(
        [f"<code>{escape(key)}</code>", *(f"<code>{escape(_cut(v))}</code>" for v in values)]
        for key, values in rows.items()
    )
    return (
        "<details><summary>Model, settings and versions</summary>"
        f'<div class="wide"><table><tr><th></th>{names}</tr>{body}</table></div></details>'
    )


def shots(evaluations: Sequence[Results], task: str) -> str:
    """Returns scores against shots, beside the published ones; and the same as a table."""
    lines, body = [], []
    for i, results in enumerate(evaluations):
        for demonstrations in ("random", "rices"):
            found = _estimates(results, task, demonstrations)
            if not found:
                continue
            label = f"{results.name}, RICES" if demonstrations == "rices" else results.name
            points = [(s, e.mean, e.deviation if e.seeds > 1 else None) for s, e in found.items()]
            lines.append(Line(_cut(label, 24), points, f"own-{i}", demonstrations == "rices"))
            runs = {s: results.of(task=task, shots=s)[0] for s in found}
            body += [
                [escape(label), s, _plus_minus(e), e.seeds, f"{e.low:.1f} – {e.high:.1f}",
                 runs[s].summary["n"], runs[s].summary["skipped"]]
                for s, e in found.items()
            ]  # fmt: skip
    for (model, demonstrations), scores in PUBLISHED.get(task, {}).items():
        if demonstrations == "random":
            kind = "flamingo" if model.startswith("Flamingo") else "published"
            points = [(s, score.mean, score.deviation) for s, score in scores.items()]
            lines.insert(0, Line(model, points, kind))
    head = _head("", "shots", "score", "seeds", "95 % interval", "examples", "skipped")
    published = (
        '<p class="note">Grey and sand: printed in the OpenFlamingo paper. Error bars: population'
        " standard deviation over seeds. The interval is a bootstrap over examples.</p>"
    )
    return (
        f"{line_chart(lines, f'{task}: score against shots')}{published}"
        f'<div class="wide"><table>{head}{_rows(body)}</table></div>'
    )


def ratios(evaluations: Sequence[Results]) -> str:
    """Returns scores in per cent of Flamingo's, as in Figure 11 of the paper."""
    tasks = [t for t in PUBLISHED if any(t in results.tasks() for results in evaluations)]
    tables = []
    for reference in REFERENCES:
        rows = "".join(_ratio_rows(evaluations, task, reference) for task in tasks)
        head = _head(f"of {reference}", *map(str, SHOTS))
        tables.append(f'<div class="wide"><table class="heat">{head}{rows}</table></div>')
    if not tasks:
        return ""
    return (
        '<h2>In per cent of Flamingo</h2><div class="columns">'
        f"{''.join(tables)}</div>"
        '<p class="note">Columns: shots, random demonstrations; as in Figure 11 of the OpenFlamingo'
        " paper. Bold: this evaluation; the others are the published models.</p>"
    )


def _ratio_rows(evaluations: Sequence[Results], task: str, reference: str) -> str:
    """Returns a heading and a row for each evaluation and each published model."""
    theirs = PUBLISHED[task][reference, "random"]
    scores = {
        f"<b>{escape(_cut(results.name, 24))}</b>": {
            shots: e.mean for shots, e in _estimates(results, task, "random").items()
        }
        for results in evaluations
    }
    scores |= {
        model: {shots: score.mean for shots, score in printed.items()}
        for (model, demonstrations), printed in PUBLISHED[task].items()
        if demonstrations == "random" and model.startswith("OF-")
    }
    heading = f'<tr><td colspan="{1 + len(SHOTS)}" class="task">{TITLES[task]}</td></tr>'
    return heading + "".join(
        f"<tr><td>{name}</td>{''.join(_heat(by.get(s), theirs[s].mean) for s in SHOTS)}</tr>"
        for name, by in scores.items()
    )


def question_types(evaluations: Sequence[Results], task: str) -> str:
    """Returns the mean score of each type of question, most frequent types first."""
    charts = []
    for results in evaluations:
        run = _most_shots(results.of(task=task, images="own"))
        groups: dict[str, list[float]] = defaultdict(list)
        for record in run.records if run else ():
            for kind in _kinds(record):
                if kind and (value := goodness(record)) is not None:
                    groups[str(kind)].append(value)
        if not run or len(groups) < 2:
            continue
        frequent = sorted(groups, key=lambda kind: -len(groups[kind]))[:MOST_TYPES]
        bars = [
            Bar(kind, sum(groups[kind]) / len(groups[kind]), *mean_interval(groups[kind]),
                f"n = {len(groups[kind])}")
            for kind in frequent
        ]  # fmt: skip
        charts.append(
            f"<h3>By question type: {escape(results.name)}, {_describe(run)}</h3>"
            f"{bar_chart(bars, 'score by question type')}"
        )
    return "".join(charts)


def ablation(evaluations: Sequence[Results], task: str) -> str:
    """Shows whether the demonstrations' images matter: own against shuffled, blank, removed
    ones."""
    charts = []
    for results in evaluations:
        changed = {(r.shots, r.demonstrations) for r in results.of(task=task) if r.images != "own"}
        for shots, demonstrations in sorted(changed):
            bars: list[Bar] = []
            for images in ("own", "shuffled", "blank", "removed"):
                wanted = {"task": task, "shots": shots, "demonstrations": demonstrations}
                if runs := results.of(**wanted, images=images):
                    e = estimate(runs)
                    bars.append(Bar(f"{images} images", e.mean, e.low, e.high, _versus(bars, e)))
            charts.append(
                f"<h3>Do the images matter? {escape(results.name)}, {shots} shots,"
                f" {demonstrations}</h3>{bar_chart(bars, 'context images')}"
            )
    return "".join(charts)


def comparison(compared: Comparison, examples: int = 5) -> str:
    """Shows why the two directories differ, example by example."""
    differing = _rows(
        [f"<code>{escape(key)}</code>", escape(_cut(str(a), 60)), escape(_cut(str(b), 60))]
        for key, a, b in compared.settings
    )
    parts = [
        f'<h2 id="compare">Comparison</h2><p>A = {escape(compared.before.name)},'
        f" B = {escape(compared.after.name)}</p>"
        f'<div class="wide"><table>{_head("setting", "A", "B")}{differing}</table></div>'
    ]
    for pair in compared.pairs:
        better, worse = pair.better_and_worse()
        causes = "; ".join(f"{count} {why}" for why, count in pair.causes().items())
        gain = pair.after.score - pair.before.score
        rows = [
            [
                escape(change.id),
                escape(change.why),
                *(_told(r) for r in (change.before, change.after)),
            ]
            for change in pair.changes[:examples]
        ]
        parts.append(
            f"<h3>{escape(pair.name)}: {pair.before.score:.2f} → {pair.after.score:.2f}"
            f" ({gain:+.2f})</h3><p>{pair.same} examples the same, {len(pair.changes)} differ"
            f" ({better} score higher in B, {worse} lower). {escape(causes)}</p>"
        )
        if rows:
            head = _head("example", "why", "A", "B")
            parts.append(f'<div class="wide"><table>{head}{_rows(rows)}</table></div>')
    return "".join(parts)


def _estimates(results: Results, task: str, demonstrations: str) -> dict[int, Estimate]:
    runs = results.of(task=task, demonstrations=demonstrations, images="own")
    return {
        shots: estimate([r for r in runs if r.shots == shots])
        for shots in sorted({r.shots for r in runs})
    }


def _kinds(record: Record) -> Sequence[str | None]:
    return record.get("groups") or [record.get("question_type") or record.get("answer_type")]


def _most_shots(runs: Sequence[Run]) -> Run | None:
    return max(runs, key=lambda r: r.shots) if runs else None


def _describe(run: Run) -> str:
    return f"{run.shots} shots, {run.demonstrations}, seed {run.seed}"


def _versus(bars: Sequence[Bar], now: Estimate) -> str:
    return f"({now.mean - bars[0].value:+.1f})" if bars else ""


def _plus_minus(e: Estimate) -> str:
    return f"{e.mean:.1f} ± {e.deviation:.1f}" if e.seeds > 1 else f"{e.mean:.1f}"


def _heat(score: float | None, reference: float) -> str:
    """Returns a table cell, red below 50 %, white at 75 % and green at 100 %."""
    if score is None:
        return '<td class="cell muted">–</td>'
    ratio = 100 * score / reference
    shade = max(-1.0, min(1.0, (ratio - 75) / 25))
    hue, saturation = (145, 45) if shade > 0 else (12, 75)
    colour = f"hsl({hue} {saturation}% {100 - 28 * abs(shade):.0f}%)"
    return f'<td class="cell" style="background:{colour}">{ratio:.0f}%</td>'


def _told(record: Record) -> str:
    value = goodness(record)
    score = "" if value is None else f" <b>{value:.1f}</b>"
    return f'<span class="text">“{escape(_cut(str(record.get("answer", "")), 60))}”{score}</span>'


def _cut(text: str, length: int = 72) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _head(*names: str) -> str:
    return "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in names) + "</tr>"


def _rows(rows: Iterable[Sequence[object]]) -> str:
    return "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
