"""Look at data: check shards, and see documents as the model would, on one HTML page.

python -m flamingo_jax.inspect --config=configs/of9b.py --out=inspect.html
python -m flamingo_jax.inspect --source=mmc4 --shards='data/{000..099}.tar'
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tokenizers import Tokenizer, models, pre_tokenizers

from flamingo_jax import cli
from flamingo_jax.data.pipeline import make_streams
from flamingo_jax.data.streams import Stream, StreamConfig
from flamingo_jax.errors import UserError
from flamingo_jax.files import write_text
from flamingo_jax.inspect.examine import StreamReport, examine
from flamingo_jax.inspect.page import render_page
from flamingo_jax.schema import build
from flamingo_jax.text.special_tokens import END_OF_CHUNK, IMAGE, SpecialTokens
from flamingo_jax.text.tokenizer import TextTokenizer, load_tokenizer
from flamingo_jax.train.config import TrainConfig, complete

OUT = flags.DEFINE_string("out", "inspect.html", "the page that is written")
STREAM = flags.DEFINE_string("stream", None, "one stream of the config; by default all of them")
SOURCE = flags.DEFINE_string("source", None, "how shards are read, without a config")
SHARDS = flags.DEFINE_string("shards", None, "which shards, without a config")
OPTION = flags.DEFINE_multi_string("option", [], "NAME=VALUE, an option of the source; repeatable")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "a tokenizer.json; by default words are tokens")
TEXT_LENGTH = flags.DEFINE_integer("text_length", 256, "tokens per row", lower_bound=1)
NUM_IMAGES = flags.DEFINE_integer("num_images", 6, "images per row", lower_bound=1)
RECORDS = flags.DEFINE_integer("records", 1000, "records examined, evenly spread", lower_bound=1)
DOCUMENTS = flags.DEFINE_integer("documents", 20, "documents on the page", lower_bound=0)
CHECK = flags.DEFINE_integer("check_shards", 1000, "shards checked, evenly spread", lower_bound=1)
THRESHOLDS = flags.DEFINE_list("thresholds", ["0.24", "0.28", "0.32"], "similarities to compare")


def main(argv: Sequence[str]) -> None:
    if any(arg.startswith("--config") for arg in argv):
        config = cli.parse_config(argv, TrainConfig, complete)
        tokens = load_tokenizer(config.tokenizer, config.model.decoder.vocab_size)
        streams = make_streams(_chosen(config.streams), tokens, config.model.encoder.image_size)
    else:
        cli.parse_flags(argv)
        streams = _bare_streams()
    try:
        levels = [float(level) for level in THRESHOLDS.value]
    except ValueError:
        raise UserError(f"--thresholds={THRESHOLDS.value}: expected numbers with commas") from None
    reports = []
    for name, stream in streams.items():
        report = examine(
            name, stream, records=RECORDS.value, documents=DOCUMENTS.value, shards=CHECK.value
        )
        reports.append(report)
        print(summary(report), flush=True)
    out = Path(OUT.value)
    write_text(out, render_page(reports, levels))
    print(f"wrote {out}")


def summary(report: StreamReport) -> str:
    """Returns one line, and one for every shard at fault."""
    fates = ", ".join(f"{count} {fate}" for fate, count in sorted(report.fates.items()))
    records = f"{report.total:,} records" if report.total else "no files"
    lines = [f"{report.name}: {records}; examined: {fates}"]
    for shard in report.shards:
        lines += [f"{shard.path}: lost {damage}" for damage in shard.damage]
        if shard.repeated_keys:
            lines.append(f"{shard.path}: {shard.repeated_keys} keys stand for several samples")
    return "\n".join(lines)


def _chosen(streams: dict[str, StreamConfig]) -> dict[str, StreamConfig]:
    if STREAM.value is None:
        return streams
    if STREAM.value not in streams:
        raise UserError(f"no stream {STREAM.value!r} in the config, but: {', '.join(streams)}")
    return {STREAM.value: streams[STREAM.value]}


def _bare_streams() -> dict[str, Stream]:
    if not SOURCE.value or not SHARDS.value:
        raise UserError("nothing to look at: give --config=FILE, or --source=mmc4 --shards=PATTERN")
    options: dict[str, Any] = {"shards": SHARDS.value}
    for option in OPTION.value:
        name, _, value = option.partition("=")
        options[name] = cli.literal(value)
    values = {
        "source": SOURCE.value,
        "options": options,
        "batch_size": 1,
        "text_length": TEXT_LENGTH.value,
        "num_images": NUM_IMAGES.value,
    }
    config = build(StreamConfig, values, "flags")
    return make_streams({SHARDS.value: config}, _tokens(), 224)


def _tokens() -> TextTokenizer:
    if TOKENIZER.value:
        return load_tokenizer(TOKENIZER.value, None)
    # Where tokens begin and end is all that the page shows: one id does for every word.
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "a word": 1}, unk_token="a word"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>", END_OF_CHUNK, IMAGE])
    special = SpecialTokens(end_of_chunk=2, image=3, pad=0, vocabulary=4)
    return TextTokenizer(tokenizer, special, end_of_text="</s>")


if __name__ == "__main__":
    cli.run(main)
