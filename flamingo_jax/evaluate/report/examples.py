"""Examples as a reader should see them: demonstrations with their images, question, answer."""

import base64
import io
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from flamingo_jax.evaluate.runs import Record, Results, Run, goodness

SIDE, QUALITY = 132, 70  # of embedded pictures: pixels, JPEG quality
MARK, END = "<image>", "<|endofchunk|>"
SHOWN_SHOTS = 8


def best_and_worst(run: Run, count: int) -> tuple[list[Record], list[Record]]:
    """Returns up to `count` examples with the highest scores, and as many with the lowest."""
    scored = [(value, r) for r in run.records if (value := goodness(r)) is not None]
    records = [record for _, record in sorted(scored, key=lambda pair: -pair[0])]
    count = min(count, len(records) // 2)
    return records[:count], records[len(records) - count :][::-1]


def card(results: Results, record: Record) -> str:
    """Returns one example as HTML."""
    steps = "".join(
        f"<figure>{picture(results.data_root, image)}<figcaption>{escape(text)}</figcaption>"
        "</figure>"
        for image, text in _shown(steps_of(record))
    )
    score = goodness(record)
    right = dict.fromkeys(str(r) for r in record.get("references", ()))
    given = "".join(f"<li>{escape(r)}</li>" for r in list(right)[:4])
    raw = str(record.get("raw", ""))
    answer = str(record.get("answer", raw))
    was = f' <span class="muted">from “{escape(raw.strip()[:120])}”</span>' if raw != answer else ""
    value = "no score" if score is None else f"{score:.1f}"
    return (
        f'<article class="card"><header><span>example <b>{escape(str(record["id"]))}</b></span>'
        f'<span class="score">{value}</span></header><div class="steps">{steps}</div>'
        f'<p class="answer">{escape(answer) or "<i>empty</i>"}{was}</p>'
        f'<ul class="references">{given}</ul></article>'
    )


def steps_of(record: Record) -> list[tuple[str | None, str]]:
    """Returns the prompt as (image, text that follows it); None where text has no image."""
    before, *texts = str(record.get("prompt", "")).split(MARK)
    images: Sequence[str] = record.get("images", ())
    # Of more images than marks, which the original sometimes passes, a text sees the first ones.
    marked = [images[i] if i < len(images) else None for i in range(len(texts))]
    unmarked = [(None, text) for text in before.split(END) if text.strip()]
    return unmarked + [
        (image, text.replace(END, "").strip()) for image, text in zip(marked, texts, strict=True)
    ]


def _shown(steps: list[tuple[str | None, str]]) -> list[tuple[str | None, str]]:
    """Returns the last steps, and how many were before them."""
    hidden = len(steps) - SHOWN_SHOTS - 1
    if hidden <= 0:
        return steps
    return [(None, f"… {hidden} more before"), *steps[hidden:]]


def picture(root: Path, image: str | None) -> str:
    """Returns an image as an element that holds its own data; a remark where there is none to
    show."""
    if image is None:
        return '<div class="none">no image</div>'
    if not image:
        return '<div class="none">blank</div>'
    data = _thumbnail(root / image)
    if data is None:
        name = escape(Path(image).name)
        return f'<div class="none missing" title="{escape(image)}">missing: {name}</div>'
    return f'<img alt="{escape(image)}" src="data:image/jpeg;base64,{data}">'


@cache
def _thumbnail(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
