"""Models in and out: `python -m flamingo_jax.convert {import,from-run,export,verify}`."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flamingo_jax.cli import Parser, run
from flamingo_jax.errors import UserError, need_package


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m flamingo_jax.convert", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    into = commands.add_parser("import", help="torch files → model directory")
    _add_sources(into)
    into.add_argument("--out", type=Path, required=True, help="directory to make")
    into.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")

    trained = commands.add_parser("from-run", help="training run → model directory")
    trained.add_argument("--workdir", type=Path, required=True, help="of the run")
    trained.add_argument("--out", type=Path, required=True, help="directory to make")

    out = commands.add_parser("export", help="model directory → torch files")
    out.add_argument("--dir", type=Path, required=True, help="model directory")
    out.add_argument("--to", choices=("openflamingo", "hf"), required=True)
    out.add_argument("--out", type=Path, required=True, help="directory to make")
    out.add_argument(
        "--whole",
        action="store_true",
        help="with --to openflamingo: every tensor under every name, not only the trained part",
    )

    check = commands.add_parser("verify", help="model directory against its torch original")
    check.add_argument("--dir", type=Path, required=True, help="model directory")
    check.add_argument("--seed", type=int, default=0, help="of the random inputs")
    _add_sources(check, "; default: the files it was imported from")
    return top


def _add_sources(command: argparse.ArgumentParser, note: str = "") -> None:
    def path(flag: str, text: str) -> None:
        command.add_argument(flag, type=Path, help=text)

    path("--lm", f"language model: directory as the Hub lays it out{note}")
    path("--vision", "CLIP: directory of the Hub, or file of OpenCLIP's or OpenAI's")
    path("--openflamingo", "OpenFlamingo's checkpoint.pt, laid over the backbones")
    path("--state-dict", f"whole OpenFlamingo model (needs --config){note}")
    path("--config", "its config.json, with the configs of both backbones")
    path("--tokenizer", "tokenizer directory, where it is not beside the language model")
    command.add_argument("--interval", type=int, help="decoder layers per cross-attention")
    command.add_argument(
        "--vision-activation",
        choices=("quick_gelu", "gelu"),
        default="quick_gelu",
        help="of a CLIP file that comes without a config",
    )


SOURCES = (
    "lm",
    "vision",
    "openflamingo",
    "state_dict",
    "config",
    "tokenizer",
    "interval",
    "vision_activation",
)


def read_source(source: dict[str, Any], dtype: Any) -> Any:
    """Reads the model that these flags name. UserError: flags that do not go together."""
    from flamingo_jax.convert.importing import import_backbones, import_state_dict

    given = {name: value for name, value in source.items() if value is not None}
    paths = {n: Path(v) for n, v in given.items() if n not in ("interval", "vision_activation")}
    backbones, state = {"lm", "vision"} & paths.keys(), {"state_dict", "config"} & paths.keys()
    common = {
        "checkpoint": paths.get("openflamingo"),
        "tokenizer": paths.get("tokenizer"),
        "dtype": dtype,
    }
    if len(state) == 2 and not backbones:
        return import_state_dict(paths["state_dict"], paths["config"], **common)
    if len(backbones) == 2 and not state:
        return import_backbones(
            paths["lm"],
            paths["vision"],
            interval=given.get("interval"),
            quick_gelu=given.get("vision_activation") == "quick_gelu",
            **common,
        )
    flags = [f"--{name.replace('_', '-')}" for name in paths]
    raise UserError(
        f"given: {', '.join(flags) or 'no source'}; expected either --lm with --vision, or "
        "--state-dict with --config"
    )


def import_command(args: argparse.Namespace) -> int:
    from flamingo_jax.weights.model_directory import Provenance, write_directory

    source = {name: getattr(args, name) for name in SOURCES}
    imported = read_source(source, args.dtype)
    written = {
        name: str(value.resolve()) if isinstance(value, Path) else value
        for name, value in source.items()
        if value is not None
    }
    origin = Provenance(
        imported.family.name,
        imported.language_config,
        dataclasses.asdict(imported.ids),
        written,
    )
    write_directory(args.out, imported.config, origin, imported.leaves, imported.tokenizer)
    print(f"wrote {args.out}: {len(imported.leaves)} parameters, family {imported.family.name}")
    return 0


def from_run_command(args: argparse.Namespace) -> int:
    from flamingo_jax.train.export import write_run

    step = write_run(args.workdir, args.out)
    print(f"wrote {args.out}: the model of {args.workdir} after step {step}")
    return 0


def export_command(args: argparse.Namespace) -> int:
    from flamingo_jax.convert.exporting import export_hf, export_openflamingo
    from flamingo_jax.weights.model_directory import open_directory

    directory = open_directory(args.dir)
    if args.to == "openflamingo":
        export_openflamingo(directory, args.out, args.whole)
    elif args.whole:
        raise UserError("--whole goes with --to openflamingo; --to hf writes all of both backbones")
    else:
        export_hf(directory, args.out)
    print(f"wrote {args.out}")
    return 0


def verify_command(args: argparse.Namespace) -> int:
    from flamingo_jax.convert.exporting import family_named
    from flamingo_jax.convert.verify import compare, write_certificate
    from flamingo_jax.generate.loading import load
    from flamingo_jax.weights.model_directory import open_directory

    directory = open_directory(args.dir)
    family_named(directory.origin.family)
    need_package("torch", "torch")  # said before the weights are read
    given = {name: getattr(args, name) for name in SOURCES}
    named = any(given[name] for name in ("lm", "vision", "state_dict", "config"))
    source = read_source(given if named else directory.origin.source, directory.config.dtype)
    certificate = compare(load(args.dir), directory, source, args.seed)
    for stage, figures in certificate["stages"].items():
        print(
            f"{stage:12} max difference {figures['max_abs_difference']:.2e} "
            f"of {figures['max_abs_value']:.2e}"
        )
    write_certificate(directory, certificate)
    passed = certificate["passed"]
    print(f"{'passed' if passed else 'FAILED'}: written to {args.dir / 'certificate.json'}")
    return 0 if passed else 1


COMMANDS = {
    "import": import_command,
    "from-run": from_run_command,
    "export": export_command,
    "verify": verify_command,
}


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv[1:])
    return COMMANDS[args.command](args)


if __name__ == "__main__":
    run(main)
