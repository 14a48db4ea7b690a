"""Serves the commands: flags, config files with overrides, errors as one line."""

import argparse
import ast
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from flamingo_jax.errors import UserError
from flamingo_jax.runtime.compilation_cache import keep_compiled_programs
from flamingo_jax.runtime.compiler_memory import trim_malloc
from flamingo_jax.schema import build, did_you_mean, kinds_at, unknown_key

T = TypeVar("T")
WORKDIR = flags.DEFINE_string("workdir", None, "the directory that holds a run, new or old")


def workdir() -> Path:
    """Returns what `--workdir` says. UserError: nothing, or no path."""
    if not WORKDIR.value:
        raise UserError("no workdir given; say where the run is kept, as in --workdir=runs/digits")
    if "://" in WORKDIR.value:
        raise UserError(
            f"--workdir={WORKDIR.value} is an address, expected a directory: mount the bucket on "
            "every host and give the path, as in --workdir=/mnt/bucket/run"
        )
    return Path(WORKDIR.value)


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are `UserError`s, and so one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists all flags")


class _HelpAskedError(Exception):
    pass


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a command; prints a user's mistake as one line, and exits with status 2."""
    # absl and Orbax put handlers of their own on the root logger.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    keep_compiled_programs()
    trim_malloc()
    try:
        sys.exit(main(sys.argv))
    except _HelpAskedError:
        print(_help(main))
        sys.exit(0)
    except (UserError, flags.Error) as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def report(error: Exception) -> int:
    """Prints a user's mistake as one line; returns the exit status."""
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr)
    return 2


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds flags that say what `flamingo_jax.load` is to load."""
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument(
        "--quantize", choices=("int8",), help="hold the frozen weights in eight bits"
    )


def _help(main: Callable[..., Any]) -> str:
    """Returns a command's docstring and its flags; shared ones where the docstring has them."""
    doc = (sys.modules[main.__module__].__doc__ or "").strip()
    shared = {
        "config": "a config file; --config.KEY=VALUE changes one of its settings",
        "workdir": flags.FLAGS["workdir"].help,
    }
    lines = [f"  --{name}  {text}" for name, text in shared.items() if f"--{name}" in doc]
    defined = flags.FLAGS.flags_by_module_dict()
    # absl knows the flags of a module that was started as a command by the file's name.
    for flag in (*defined.get(main.__module__, ()), *defined.get(sys.argv[0], ())):
        default = "" if flag.default is None else f" (default: {flag.default})"
        lines.append(f"  --{flag.name}  {flag.help}{default}")
    return "\n".join([doc, "", *sorted(lines)])


def parse_flags(argv: Sequence[str]) -> None:
    """Parses the flags that commands define. UserError: something that is no flag."""
    if {"-h", "--help"} & {*argv[1:]}:
        raise _HelpAskedError
    extra = flags.FLAGS(argv)[1:]
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r}; every setting is a --flag=value")


def parse_config(
    argv: Sequence[str], config: type[T], complete: Callable[[dict[str, Any]], dict[str, Any]]
) -> T:
    """Parses all flags, and the config: file, then defaults, then `--config.KEY=VALUE` overrides.

    An override of a part's `kind` drops what the file says of the other kind: what no further
    override says is the new kind's default.

    Args:
      argv: with the program's name.
      config: the dataclass to make.
      complete: writes every default out, so that it may be overridden.

    Raises:
      UserError: no `--config`, an unreadable file, an unknown key, a value of the wrong type.
    """
    program, *args = _joined(argv)
    files = [arg.split("=", 1)[1] for arg in args if arg.startswith("--config=")]
    overrides = [arg for arg in args if arg.startswith("--config.")]
    parse_flags([program, *(arg for arg in args if not arg.startswith("--config"))])
    if not files:
        raise UserError("no config given; say which, as in --config=digits or --config=mine.py")
    whole = complete(_load(find_config(files[-1])).to_dict())
    if _choose_kinds(config, whole, overrides):
        whole = complete(whole)
    values = ConfigDict(_fillable(whole))
    for override in overrides:
        _check_path(values, override.split("=", 1)[0].removeprefix("--config."))
    parsed = flags.FlagValues()
    holder = config_flags.DEFINE_config_dict(
        "config", values, flag_values=parsed, sys_argv=[program, *overrides]
    )
    parsed([program, *overrides])
    return build(config, holder.value.to_dict())


def _choose_kinds(config: type, whole: dict[str, Any], overrides: Sequence[str]) -> bool:
    """Replaces parts for which overrides choose another kind; tells whether there were any."""
    given = dict(o.removeprefix("--config.").split("=", 1) for o in overrides if "=" in o)
    chosen = False
    for path, kind in given.items():
        *above, last = path.split(".")
        if last != "kind" or not kinds_at(config, above):
            continue
        node: Any = whole
        for key in above[:-1]:
            node = node.get(key) or {}
        if above[-1] in node and (node[above[-1]] or {}).get("kind") != kind:
            start = path.removesuffix("kind")
            own = {p.removeprefix(start): v for p, v in given.items() if p.startswith(start)}
            node[above[-1]] = {k: literal(v) for k, v in own.items() if "." not in k}
            chosen = True
    return chosen


def literal(text: str) -> Any:
    """Returns the number, tuple, … that a flag's text is; the text itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _fillable(values: Any) -> Any:
    """Returns values in which overrides may put something where there is None."""
    if isinstance(values, dict):
        return {key: _fillable(value) for key, value in values.items()}
    return placeholder(object) if values is None else values


def _joined(argv: Sequence[str]) -> list[str]:
    """Writes `--config FILE` as `--config=FILE`, and overrides likewise."""
    joined: list[str] = []
    for arg in argv:
        if joined and joined[-1].startswith("--config") and "=" not in joined[-1]:
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined


def find_config(given: str) -> Path:
    """Returns the file of a config: a path, or the name of one that the package has.

    Raises:
      UserError: neither a file nor a name; says what would be.
    """
    path = Path(given)
    package = Path(__file__).parent
    # At the top of a checkout; inside the package where that was installed.
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    named = {f.relative_to(folder).with_suffix("").as_posix(): f for f in folder.rglob("*.py")}
    if path.is_file():
        return path
    if given in named:
        return named[given]
    problem = f"config {given} {'is a directory' if path.is_dir() else 'does not exist'}"
    beside = path if path.is_dir() else path.parent
    if beside != Path() and (near := sorted(p.name for p in beside.glob("*.py"))):
        raise UserError(f"{problem}; {beside} holds: {', '.join(near)}")
    hint = did_you_mean(path.with_suffix("").as_posix(), named)
    known = f"expected a file, or one of: {', '.join(sorted(named))}"
    raise UserError("; ".join(filter(None, (problem, hint.rstrip("?"), known))))


def _load(path: Path) -> ConfigDict:
    scope: dict = {"__file__": str(path), "__name__": path.stem}
    try:
        exec(compile(path.read_text(), path, "exec"), scope)
        config = scope["get_config"]()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"config file {path} could not be read: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() gave {type(config).__name__}, expected ConfigDict")
    return config


def _check_path(config: ConfigDict, path: str) -> None:
    node: object = config
    done = "config"
    for key in path.split("."):
        key = key.split("[", 1)[0]
        if not isinstance(node, ConfigDict) or key not in node:
            known = node.keys() if isinstance(node, ConfigDict) else ()
            raise UserError(unknown_key(f"{done}.{key}", known))
        node, done = node[key], f"{done}.{key}"
