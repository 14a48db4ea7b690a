"""One page about an evaluation, or several: `write_report(OUTS, PATH)`. It loads nothing."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.compare import Comparison, compare
from flamingo_jax.evaluate.report import sections
from flamingo_jax.evaluate.report.examples import best_and_worst, card
from flamingo_jax.evaluate.report.names import TITLES, UNITS
from flamingo_jax.evaluate.report.style import OWN_COLOURS, STYLE
from flamingo_jax.evaluate.runs import Results, read_results
from flamingo_jax.files import write_text

EXAMPLES = 3  # best, and as many worst


def write_report(outs: Sequence[Path], path: Path) -> Path:
    """Writes the report of result directories; two of them are also compared.

    Args:
      outs: output directories of evaluations.
      path: of the page; it appears when it is complete.

    Raises:
      UserError: no directories, more than can be told apart, or one without results.
    """
    if not 0 < len(outs) <= len(OWN_COLOURS):
        raise UserError(
            f"a report shows 1 to {len(OWN_COLOURS)} result directories, not {len(outs)}"
        )
    evaluations = [read_results(Path(out)) for out in outs]
    comparison = compare(Path(outs[0]), Path(outs[1])) if len(outs) == 2 else None
    write_text(path, _page(evaluations, comparison))
    return path


def _page(evaluations: Sequence[Results], comparison: Comparison | None) -> str:
    tasks = list(dict.fromkeys(task for results in evaluations for task in results.tasks()))
    names = ", ".join(results.name for results in evaluations)
    links = [(f"#{task}", TITLES.get(task, task)) for task in tasks]
    if comparison:
        links.append(("#compare", "Comparison"))
    contents = "".join(f'<a href="{href}">{escape(text)}</a>' for href, text in links)
    body = [
        f"<h1>Few-shot evaluation</h1><p class='muted'>{escape(names)}</p><nav>{contents}</nav>",
        sections.settings(evaluations),
        sections.ratios(evaluations),
        *(_task(evaluations, task) for task in tasks),
    ]
    if comparison:
        body.append(sections.comparison(comparison))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>Few-shot evaluation: {escape(names)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _task(evaluations: Sequence[Results], task: str) -> str:
    summary = next(run.summary for r in evaluations for run in r.of(task=task))
    metric = str(summary["metric"])
    unit = UNITS.get(metric, metric)
    mode = f", mode “{summary['mode']}”" if summary["metric"] == "vqa_accuracy" else ""
    note = f'<p class="note">{escape(summary["note"])}.</p>' if summary.get("note") else ""
    return (
        f'<h2 id="{escape(task)}">{escape(TITLES.get(task, task))}</h2>'
        f'<p class="muted">{escape(unit + mode)}</p>{note}'
        f"{sections.shots(evaluations, task)}"
        f"{sections.question_types(evaluations, task)}"
        f"{sections.ablation(evaluations, task)}"
        f"{_examples(evaluations[0], task)}"
    )


def _examples(results: Results, task: str) -> str:
    """Returns the best and worst of the run with the most shots whose images are the
    demonstrations' own."""
    runs = results.of(task=task, images="own")
    if not runs:
        return ""
    run = max(runs, key=lambda r: (r.shots <= 4, r.shots))
    best, worst = best_and_worst(run, EXAMPLES)
    if not best:
        return ""
    columns = "".join(
        f'<div class="{kind}"><h3>{title}</h3>{"".join(card(results, r) for r in records)}</div>'
        for kind, title, records in (
            ("best", "Best examples", best),
            ("worst", "Worst examples", worst),
        )
    )
    shown = f"{run.shots} shots, {run.demonstrations} demonstrations, seed {run.seed}"
    return (
        f'<div class="columns">{columns}</div><p class="note">{shown}; the framed image is the one'
        " that is asked about.</p>"
    )
