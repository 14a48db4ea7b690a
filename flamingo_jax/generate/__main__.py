r"""Continue a prompt of pictures and text: `python -m flamingo_jax.generate --model=DIR …`.

--image and --text are read in the order they are given:

  python -m flamingo_jax.generate --model=of9b \
      --example cat.jpg 'A cat.' --image dogs.jpg --text Two
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flamingo_jax import cli
from flamingo_jax.errors import UserError

SETTINGS = {
    "max_new_tokens": int,
    "min_new_tokens": int,
    "num_return_sequences": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "no_repeat_ngram_size": int,
    "num_beams": int,
    "length_penalty": float,
}


class _Add(argparse.Action):
    """Appends to one list, so that flags of several names keep their order."""

    def __call__(self, parser, namespace, values, option_string=None):
        kept = [*(getattr(namespace, self.dest) or []), values]
        setattr(namespace, self.dest, kept)


def parser() -> argparse.ArgumentParser:
    flags = cli.Parser(
        prog="python -m flamingo_jax.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_model_flags(flags)
    flags.add_argument(
        "--image", dest="parts", type=Path, action=_Add, metavar="FILE", help="a picture"
    )
    flags.add_argument(
        "--video", dest="parts", type=Path, action=_Add, nargs="+", metavar="FRAME",
        help="a video: the files of its frames",
    )  # fmt: skip
    flags.add_argument("--text", dest="parts", action=_Add, metavar="TEXT", help="a text")
    flags.add_argument(
        "--example", nargs=2, action="append", default=[], metavar=("FILE", "TEXT"),
        help="a few-shot example, before everything else",
    )  # fmt: skip
    for name, kind in SETTINGS.items():
        flags.add_argument(f"--{name.replace('_', '-')}", type=kind)
    flags.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="a string that ends the text"
    )
    flags.add_argument("--seed", type=int, default=0, help="of sampling")
    flags.add_argument(
        "--json", action="store_true", help="texts with tokens and log-probabilities"
    )
    return flags


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv[1:])
    if not args.parts:
        raise UserError("no prompt given; give pictures and texts, as in --image=a.jpg --text='A'")
    import flamingo_jax

    given = {name: getattr(args, name) for name in SETTINGS}
    settings: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
    examples = [(Path(file), text) for file, text in args.example]
    flamingo = flamingo_jax.load(args.model, quantize=args.quantize)
    # One prompt, read here: a prompt of videos alone would look like a batch.
    prompt = flamingo.read(args.parts, examples)
    made = flamingo.generate([prompt], stop=args.stop, seed=args.seed, details=True, **settings)[0]
    for continuation in made if isinstance(made, list) else [made]:
        print(json.dumps(vars(continuation)) if args.json else continuation.text)
    return 0


if __name__ == "__main__":
    cli.run(main)
