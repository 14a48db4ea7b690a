"""One HTML page of everything that was found: no script, no other file."""

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from flamingo_jax.data.fields import from_base64
from flamingo_jax.data.images import decode_image
from flamingo_jax.data.records import BadRecordError
from flamingo_jax.data.sources import Mmc4
from flamingo_jax.data.streams import Records, Stream
from flamingo_jax.inspect.charts import bars
from flamingo_jax.inspect.examine import Examined, LeftOut, StreamReport, marks, thresholds
from flamingo_jax.inspect.shards import Shard
from flamingo_jax.inspect.style import STYLE

MAX_ROWS = 30  # of a table
FATES = {"used": "used", "left out": "left out by a setting", "bad": "damaged or empty"}


def render_page(reports: Sequence[StreamReport], levels: list[float]) -> str:
    """Writes the whole page."""
    sections = "".join(_stream(report, levels) for report in reports)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Documents as the model sees them</title><style>{STYLE}</style>"
        f"<main><h1>Documents as the model sees them</h1>{sections}</main></html>\n"
    )


def _stream(report: StreamReport, levels: list[float]) -> str:
    config = report.stream.config
    shape = (
        f"source <b>{config.source}</b> · rows of {config.text_length} tokens and "
        f"{config.num_images} image{'s' * (config.num_images > 1)}"
    )
    parts = [f"<h2>{_text(report.name)}</h2><p>{shape}</p>", _numbers(report)]
    if report.shards:
        parts.append(_shards(report.shards, len(_store_paths(report.stream))))
    parts += [_charts(report), _thresholds(report, levels), _reasons(report)]
    if report.documents:
        parts.append(f"<h3>Documents</h3>{_legend()}")
        parts += [_document(report.stream, examined) for examined in report.documents]
    if report.unused:
        parts.append("<h3>Records that are not used</h3>")
        parts += [_unused(examined) for examined in report.unused]
    return f"<section>{''.join(parts)}</section>"


def _store_paths(stream: Stream) -> list[str]:
    return stream.source.store.paths if isinstance(stream.source, Records) else []


def _numbers(report: StreamReport) -> str:
    examined = sum(report.fates.values())
    cards = []
    if report.total:
        cards += [(f"{report.total:,}", "records"), (f"{examined:,}", "of them examined")]
    for fate, meaning in FATES.items():
        cards.append((f"{report.fates[fate] / max(1, examined):.1%}", meaning))
    if report.tokens:
        cards.append((f"{np.mean(report.tokens):.0f}", "tokens per row"))
        cards.append((f"{np.mean(report.shown):.1f}", "images per row"))
    items = (f"<div><b>{value}</b><span>{name}</span></div>" for value, name in cards)
    return f'<div class="cards">{"".join(items)}</div>'


def _shards(shards: list[Shard], total: int) -> str:
    damaged = [shard for shard in shards if shard.damage or shard.repeated_keys]
    listed = (damaged + [shard for shard in shards if shard not in damaged])[:MAX_ROWS]
    rows = []
    for shard in listed:
        faults = [f"lost {damage}" for damage in shard.damage]
        if shard.repeated_keys:
            faults.append(f"{shard.repeated_keys} keys stand for several samples")
        fault = f'<span class="bad">{_text("; ".join(faults))}</span>' if faults else "whole"
        size = f"{shard.num_bytes / 1e6:,.1f} MB"
        rows.append([_text(Path(shard.path).name), f"{shard.records:,}", size, fault])
    sizes = np.array([shard.records for shard in shards])
    summary = (
        f"{total:,} shards, {len(shards):,} of them checked: {len(damaged)} damaged or with "
        f"repeated keys; {sizes.min():,} to {sizes.max():,} records each"
    )
    if len(shards) > len(listed):
        summary += f"; {len(listed)} are listed"
    return f"<h3>Shards</h3><p>{summary}.</p>" + _table(["shard", "records", "size", "state"], rows)


def _charts(report: StreamReport) -> str:
    charts = []
    if report.found:
        charts.append(_count_chart("Images per record in the data", report.found))
    if report.shown:
        charts.append(_count_chart("Images per row the model sees", report.shown))
    scores = np.concatenate([*report.similarity, np.zeros(0)])
    scores = scores[np.isfinite(scores)]
    if scores.size:
        edges = np.histogram_bin_edges(scores, 24)
        counts, edges = np.histogram(scores, edges)
        source = report.stream.source
        parser = source.parser if isinstance(source, Records) else None
        mark = parser.similarity_threshold if isinstance(parser, Mmc4) else None
        labels = [f"{edge:.2f}" for edge in edges[:-1]]
        place = None if mark is None else float(np.interp(mark, edges, np.arange(len(edges))))
        note = f"threshold {mark}"
        charts.append(bars("Similarity of image and text", labels, counts, place, note))
    return f'<div class="charts">{"".join(charts)}</div>'


def _count_chart(title: str, values: list[int]) -> str:
    counted = Counter(values)
    places = range(max(counted) + 1)
    return bars(title, [str(n) for n in places], np.array([counted[n] for n in places]))


def _thresholds(report: StreamReport, levels: list[float]) -> str:
    if not report.similarity:
        return ""
    rows = [
        [f"{level:g}", f"{dropped:.1%}", f"{single:.1%}"]
        for level, dropped, single in thresholds(report, levels)
    ]
    names = ["similarity threshold", "documents dropped", "of the others, with a single image"]
    return f"<h3>What a threshold costs</h3>{_table(names, rows)}"


def _reasons(report: StreamReport) -> str:
    examined = max(1, sum(report.fates.values()))
    rows = [
        [FATES[fate], _text(first.reason), f"{count:,}", f"{count / examined:.1%}", _place(first)]
        for (fate, _), (count, first) in sorted(report.reasons.items(), key=lambda r: -r[1][0])
    ]
    found = ""
    if rows:
        names = ["record", "reason", "number", "share", "such as"]
        found += f"<h3>Why records are not used</h3>{_table(names, rows[:MAX_ROWS])}"
    if report.image_reasons:
        images = sum(report.found) or sum(report.shown) + report.image_reasons.total()
        rows = [
            [_text(reason), f"{count:,}", f"{count / images:.1%}"]
            for reason, count in report.image_reasons.most_common()
            if reason
        ]
        names = ["reason", "images", "of all images"]
        found += f"<h3>Why images are not shown</h3>{_table(names, rows)}"
    return found


def _document(stream: Stream, examined: Examined) -> str:
    assert examined.document is not None
    assert examined.example is not None
    learned = int(examined.example["weights"].astype(bool).sum())
    used = int((examined.example["segments"] != 0).sum())
    shown = marks(stream, examined.example)
    head = (
        f"{_place(examined)} · {used} tokens, {learned} of them learned "
        f"· {shown} image{'s' * (shown != 1)}"
    )
    return _article(head, _row(stream, examined), examined.left_out)


def _row(stream: Stream, examined: Examined) -> str:
    """Tokens with their images in place; what the end of the row cuts off is faint."""
    assert examined.document is not None
    assert examined.example is not None
    maker, example = stream.make_example, examined.example
    text = maker.text(examined.document)
    encoding = maker.tokens.tokenizer.encode(text)
    pieces: list[str] = []
    end = image = 0
    for index, (token, (_, stop)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
        if index >= maker.text_length:
            break
        piece, end = text[end:stop], max(end, stop)
        if token == maker.tokens.special.image:
            pieces.append(_picture(example["images"][image, 0]))
            image += 1
            continue
        special = token == maker.tokens.special.end_of_chunk or piece == maker.tokens.end_of_text
        kind = ("learned" if example["weights"][index] else "context") + " special" * special
        pieces.append(
            f'<span class="{kind}" title="token {index}: id {token}">{_text(piece)}</span>'
        )
    if text[end:]:
        pieces.append(f'<span class="cut">{_text(text[end:])}</span>')
    return "".join(pieces)


def _unused(examined: Examined) -> str:
    head = f'{_place(examined)} · <span class="bad">{_text(examined.reason)}</span>'
    if examined.passages is None:
        return _article(head, "", ())
    texts = " ".join(examined.passages.texts)[:600]
    images = examined.left_out or tuple((image, "") for image in examined.passages.images)
    return _article(head, f'<span class="context">{_text(texts)}</span>', images)


def _article(head: str, row: str, left_out: tuple[tuple[LeftOut, str], ...]) -> str:
    figures = "".join(
        f"<figure>{_thumbnail(image)}<figcaption>{_text(reason)}</figcaption></figure>"
        for image, reason in left_out
    )
    body = f'<div class="row">{row}</div>' * bool(row)
    body += f'<div class="dropped">{figures}</div>' * bool(figures)
    return f"<article><header>{head}</header>{body}</article>"


def _thumbnail(image: LeftOut) -> str:
    try:
        encoded = from_base64(image) if isinstance(image, str) else image
        if isinstance(encoded, bytes):
            return _picture(decode_image(encoded, 96, "fast"))
    except BadRecordError:
        encoded = None
    return '<div class="none">?</div>' if encoded is None else _picture(encoded)


def _picture(pixels: np.ndarray) -> str:
    """Shows an image; small ones stay sharp."""
    small = max(pixels.shape) < 64
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG" if small else "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    kind = "png" if small else "jpeg"
    style = ' class="sharp"' if small else ""
    return f'<img{style} alt="" src="data:image/{kind};base64,{data}">'


def _legend() -> str:
    return (
        '<p class="legend"><span class="learned">learned</span> the model is trained to predict it '
        '· <span class="context">context</span> it is only read · <span class="cut">cut off</span> '
        "behind the end of the row · framed in red: images that are not shown, and why</p>"
    )


def _table(names: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _place(examined: Examined) -> str:
    return f"<code>{_text(Path(examined.shard).name)} {_text(examined.key)}</code>"


def _text(text: str) -> str:
    return html.escape(text)
