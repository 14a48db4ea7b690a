"""Corpora → shards: `python -m flamingo_jax.prepare SUBCOMMAND`; see docs/preparing.md."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flamingo_jax.cli import Parser
from flamingo_jax.errors import UserError
from flamingo_jax.prepare import options
from flamingo_jax.prepare.chatgpt import ChatGpt, write_prompts
from flamingo_jax.prepare.filtering import Filter
from flamingo_jax.prepare.img2dataset import Img2dataset
from flamingo_jax.prepare.job import Job
from flamingo_jax.prepare.mmc4 import Mmc4
from flamingo_jax.prepare.obelics import Obelics
from flamingo_jax.prepare.runners import by_beam, by_processes
from flamingo_jax.prepare.similarity import Embed, Score

PREPARATIONS: dict[str, Any] = {
    "mmc4": Mmc4,
    "img2dataset": Img2dataset,
    "obelics": Obelics,
    "score": Score,
    "filter": Filter,
    "embed": Embed,
    "chatgpt": ChatGpt,
}


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m flamingo_jax.prepare", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    for name, preparation in PREPARATIONS.items():
        command = commands.add_parser(
            name, help=preparation.__doc__, description=preparation.__doc__
        )
        options.add_flags(command, preparation)
        command.add_argument("--out", type=Path, required=True, help="directory of the shards")
        command.add_argument(
            "--workers", type=int, default=0, help="processes; 0: this one (default: 0)"
        )
        command.add_argument(
            "--part", default="0/1", help="K/N: every N-th shard from the K-th, for a job array"
        )
        command.add_argument(
            "--beam", action="store_true", help="run as an Apache Beam pipeline (extra: beam)"
        )
        command.add_argument(
            "pipeline", nargs="*", metavar="-- BEAM", help="Beam's own flags, after --"
        )
    prompts = commands.add_parser("chatgpt-prompts", help="prompts for a chat model")
    prompts.add_argument("--template", type=Path, required=True, help="text with $name in it")
    prompts.add_argument("--values", type=Path, required=True, help="JSON lines with those names")
    prompts.add_argument("--out", type=Path, required=True, help="JSON lines of key and prompt")
    return top


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv[1:])
    if args.command == "chatgpt-prompts":
        count = write_prompts(args.template, args.values, args.out)
        print(f"wrote {args.out}: {count} prompts")
        return 0
    return make_shards(args)


def make_shards(args: argparse.Namespace) -> int:
    if args.pipeline and not args.beam:
        raise UserError(f"{' '.join(args.pipeline)} goes with --beam only")
    if args.workers < 0:
        raise UserError(f"--workers is {args.workers}, expected 0 or more")
    preparation = options.build(PREPARATIONS[args.command], args)
    job = Job(preparation, args.out, tuple(preparation.units()))
    job.begin()
    todo = [index for index in job.todo() if in_part(index, args.part)]
    if args.beam:
        by_beam(job, todo, args.pipeline)
    else:
        by_processes(job, todo, args.workers)
    if left := len(job.todo()):
        print(f"{len(job.units) - left} of {len(job.units)} shards are there")
        return 0
    print(job.finish().table())
    print(f"wrote {args.out}{os.sep} ({len(job.units)} shards)")
    return 0


def in_part(index: int, part: str) -> bool:
    """Returns whether shard `index` belongs to part "K/N". UserError: not of that form."""
    first, _, count = part.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise UserError(f"--part is {part!r}, expected K/N with K from 0 to N - 1, as in 3/16")
    return index % int(count) == int(first)
