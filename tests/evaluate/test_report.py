import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.compare import compare, directories
from flamingo_jax.evaluate.published import PUBLISHED, SHOTS
from flamingo_jax.evaluate.report.charts import HEIGHT, WIDTH, Line, line_chart
from flamingo_jax.evaluate.report.examples import steps_of
from flamingo_jax.evaluate.report.page import write_report
from flamingo_jax.evaluate.runs import estimate, mean_interval, read_results
from tests.evaluate import goldens
from tests.evaluate.made_up import MadeUp

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def outs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("results")
    small = MadeUp(examples=12, seeds=(0, 1))
    first = small.write(folder / "first")
    second = MadeUp(examples=12, seeds=(0, 1), skill=5).write(
        folder / "second", model={"path": "models/other", "hash": "91ab…"}
    )
    return first, second


@pytest.fixture(scope="module")
def page(outs, tmp_path_factory) -> Path:
    return write_report(outs, tmp_path_factory.mktemp("report") / "report.html")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_published_scores_are_the_golden_ones_of_the_paper():
    for row in goldens.load("paper_results.json")["rows"]:
        published = PUBLISHED[row["dataset"]][row["model"], row["demos"]][row["shots"]]
        assert published == (row["mean"], row["std"])
    assert sum(len(by_shots) for by in PUBLISHED.values() for by_shots in by.values()) == 420
    assert {tuple(by) for scores in PUBLISHED.values() for by in scores.values()} == {SHOTS}


def test_estimates_are_over_seeds(outs):
    runs = read_results(outs[0]).of(task="coco", shots=4, demonstrations="random", images="own")
    scores = [run.score for run in runs]
    found = estimate(runs)
    assert (found.mean, found.deviation, found.seeds) == (np.mean(scores), np.std(scores), 2)
    assert found.low < found.mean < found.high


def test_the_interval_of_a_mean_is_that_of_normal_theory():
    scores = np.random.default_rng(0).normal(50, 10, 4000)
    low, high = mean_interval(scores)
    half = 1.96 * 10 / np.sqrt(4000)
    assert low == pytest.approx(scores.mean() - half, abs=0.05)
    assert high == pytest.approx(scores.mean() + half, abs=0.05)


def test_the_page_holds_everything(page):
    text = page.read_text()
    for expected in (
        "In per cent of Flamingo", "OF-9B", "By question type", "Do the images matter?",
        "shuffled images", "Best examples", "Worst examples", "95 % interval", "data:image/jpeg",
        "missing: 23.jpg", "Comparison", "model.hash",
    ):  # fmt: skip
        assert expected in text, expected
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)  # nothing is loaded
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)


def test_the_page_opens_without_errors(page, tmp_path):
    problems: list[str] = []
    with sync_playwright() as playwright:
        where = str(CHROMIUM) if CHROMIUM.is_file() else None
        browser = playwright.chromium.launch(executable_path=where, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1100, "height": 1500})
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("requestfailed", lambda request: problems.append(request.url))
        tab.goto(page.as_uri())
        assert tab.locator("svg").count() > 5
        broken = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert tab.evaluate(broken) == 0
        wide = "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not tab.evaluate(wide)
        tab.screenshot(path=tmp_path / "report.png")
        browser.close()
    assert problems == []
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_text_is_escaped(tmp_path):
    out = MadeUp(examples=4, seeds=(0,), tasks=("vqav2",)).write(tmp_path / "out")
    path = out / "vqav2" / "4-random-seed0" / "examples.jsonl"
    attack = "<script>alert(1)</script>"
    records = [r | {"answer": attack, "id": attack} for r in read_lines(path)]
    path.write_text("".join(json.dumps(r | {"references": [attack]}) + "\n" for r in records))
    assert "<script" not in write_report([out], tmp_path / "report.html").read_text()


def test_prompts_are_taken_apart():
    prompt = "Output:a dog<|endofchunk|>\n<image>Output:"
    assert steps_of({"prompt": prompt, "images": ["q.jpg"]}) == [
        (None, "Output:a dog"),
        ("q.jpg", "Output:"),
    ]
    shown = "<image>Output:a dog<|endofchunk|>\n<image>Output:"
    expected = [("d.jpg", "Output:a dog"), ("q.jpg", "Output:")]
    assert steps_of({"prompt": shown, "images": ["d.jpg", "q.jpg"]}) == expected
    assert steps_of({"prompt": shown, "images": ["d.jpg", "q.jpg", "superfluous"]}) == expected
    assert steps_of({"prompt": "no image", "images": []}) == [(None, "no image")]


def test_a_chart_of_one_point():
    chart = ET.fromstring(line_chart([Line("<one>", [(4, 50.0, None)], "own-0")], "title"))
    (point,) = chart.iter("circle")
    assert 0 < float(point.get("cx")) < WIDTH
    assert 0 < float(point.get("cy")) < HEIGHT
    assert point.find("title").text == "<one>, 4 shots: 50.0"


def test_what_is_no_result_is_said(tmp_path, outs):
    with pytest.raises(UserError, match=r"no manifest\.json"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(UserError, match="1 to 4"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="no scored run"):
        read_results(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_directory_equals_itself(outs):
    comparison = compare(outs[0], outs[0])
    assert comparison.settings == comparison.unpaired == []
    assert all(not pair.changes and pair.same == 12 for pair in comparison.pairs)
    assert "12 examples the same, 0 differ" in comparison.text()


def test_differences_are_explained(tmp_path):
    one = MadeUp(examples=5, seeds=(0,), tasks=("vqav2",))
    a, b = one.write(tmp_path / "a"), one.write(tmp_path / "b", versions={"jax": "0.11.0"})
    path = b / "vqav2" / "4-random-seed0" / "examples.jsonl"
    records = read_lines(path)
    records[0] |= {"raw": "maybe", "answer": "maybe", "score": records[0]["score"] - 30}
    records[1] |= {"demonstrations": ["other"], "prompt": "other"}
    records[2] |= {"score": records[2]["score"] + 10}
    records[4] |= {"id": "new"}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    comparison = compare(a, b)
    assert ("versions.jax", "0.10.2", "0.11.0") in comparison.settings
    (pair,) = [pair for pair in comparison.pairs if pair.changes]
    assert pair.name == "vqav2/4-random-seed0"
    assert [change.id for change in pair.changes] == ["vqav2-0", "vqav2-2", "vqav2-1"]
    assert pair.causes() == {
        "same prompt, other answer": 1,
        "same answer, scored otherwise": 1,
        "other demonstrations": 1,
    }
    assert (pair.only_before, pair.only_after) == (["vqav2-4"], ["new"])
    assert (pair.same, pair.better_and_worse()) == (1, (1, 1))
    text = comparison.text()
    assert "versions.jax: '0.10.2' → '0.11.0'" in text
    assert "example vqav2-0: same prompt, other answer (differ: raw, answer, score)" in text
    assert "demonstrations other" in text


def test_random_and_rices_are_paired_where_nothing_else_fits(tmp_path):
    one = MadeUp(examples=3, seeds=(0,), tasks=("coco",))
    a, b = one.write(tmp_path / "a"), one.write(tmp_path / "b")
    for out, other in ((a, "rices"), (b, "random")):
        for folder in (out / "coco").glob(f"*-{other}-*"):
            for file in folder.iterdir():
                file.unlink()
    names = [pair.name for pair in compare(a, b).pairs]
    assert "coco/4-random-seed0 → coco/4-rices-seed0" in names


def test_the_command_line_names_two_directories():
    assert directories(["evaluate", "--compare", "a", "b"]) == (Path("a"), Path("b"))
    assert directories(["evaluate", "--compare=a,b"]) == (Path("a"), Path("b"))
    assert directories(["evaluate", "--workdir=compare"]) is None
    for wrong in (["--compare", "a"], ["--compare=a", "--mode=x"], ["--compare", "a", "b", "c"]):
        with pytest.raises(UserError, match="takes two result directories"):
            directories(["evaluate", *wrong])
