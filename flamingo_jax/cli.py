"""What the commands share: flags, config files with overrides, errors as one line."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from flamingo_jax.compilation_cache import keep_compiled_programs
from flamingo_jax.config import Config
from flamingo_jax.data.pipeline import SOURCES
from flamingo_jax.errors import UserError
from flamingo_jax.schema import build, dump, unknown_key

T = TypeVar("T")
WORKDIR = flags.DEFINE_string("workdir", None, "the directory that holds a run, new or old")


def workdir() -> Path:
    """What `--workdir` says. UserError: nothing."""
    if not WORKDIR.value:
        raise UserError("no workdir given; say where the run is kept, as in --workdir=runs/digits")
    return Path(WORKDIR.value)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a command; print a user's mistake as one line and exit with status 2."""
    # absl and Orbax put handlers of their own on the root logger.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    keep_compiled_programs()
    try:
        sys.exit(main(sys.argv))
    except (UserError, flags.Error) as error:
        sys.exit(report(error))


def report(error: Exception) -> int:
    """Print a user's mistake as one line; gives the exit status."""
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr)
    return 2


def parse_flags(argv: Sequence[str]) -> None:
    """Parse the flags that commands define. UserError: something that is no flag."""
    extra = flags.FLAGS(argv)[1:]
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r}; every setting is a --flag=value")


def parse_config(argv: Sequence[str]) -> Config:
    """The config of a training run; see `parse_any_config`."""
    return parse_any_config(argv, Config, _complete)


def parse_any_config(
    argv: Sequence[str], kind: type[T], complete: Callable[[dict[str, Any]], dict[str, Any]]
) -> T:
    """Parse all flags, and the config: file, then defaults, then `--config.KEY=VALUE` overrides.

    Args:
      argv: with the program's name.
      kind: the dataclass to make.
      complete: writes every default out, so that it may be overridden.

    Raises:
      UserError: no `--config`, an unreadable file, an unknown key, a value of the wrong type.
    """
    program, *args = _joined(argv)
    files = [arg.split("=", 1)[1] for arg in args if arg.startswith("--config=")]
    overrides = [arg for arg in args if arg.startswith("--config.")]
    parse_flags([program, *(arg for arg in args if not arg.startswith("--config"))])
    if not files:
        raise UserError("no config given; say which, as in --config=configs/digits.py")
    values = ConfigDict(complete(_load(Path(files[-1])).to_dict()))
    for override in overrides:
        _check_path(values, override.split("=", 1)[0].removeprefix("--config."))
    parsed = flags.FlagValues()
    holder = config_flags.DEFINE_config_dict(
        "config", values, flag_values=parsed, sys_argv=[program, *overrides]
    )
    parsed([program, *overrides])
    return build(kind, holder.value.to_dict())


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    """A config with every default written out, those of the streams' sources included."""
    complete = dump(build(Config, values))
    for name, stream in complete["streams"].items():
        source = SOURCES[stream["source"]]
        options: Any = build(source, stream["options"], f"config.streams.{name}.options")
        stream["options"] = dump(options)
    return complete


def _joined(argv: Sequence[str]) -> list[str]:
    """`--config FILE` as `--config=FILE`, likewise for overrides."""
    joined: list[str] = []
    for arg in argv:
        if joined and joined[-1].startswith("--config") and "=" not in joined[-1]:
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined


def _load(path: Path) -> ConfigDict:
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        found = f"; {path.parent} holds: {', '.join(near)}" if near else ""
        raise UserError(f"config file {path} does not exist{found}")
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
