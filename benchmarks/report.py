"""What every benchmark shares: its flags, one table, a JSON file, and facts of the machine.

    def main(argv: Sequence[str]) -> None:
        parser = report.parser(__doc__, sizes=("small", "tiny"))  # --json, --size, --device
        parser.add_argument("--turns", type=int, default=5)  # flags of one's own
        args = report.parse(parser, argv)  # from here on, JAX uses args.device and nothing else
        table = report.Report("train_step", args)
        table.add("step_time", 1.2, 2.0, unit="s")  # prints a row: name, ours, peer, ours / peer
        table.add("peak_memory", 900, 2390, unit="MB")
        table.add("compiled_after_first_step", 0)  # a figure without a peer
        table.note("two cores")
        table.write()  # prints the notes, writes --json

    if __name__ == "__main__":
        report.run(main)  # a UserError is one line and exit status 2

The file holds `benchmark`, `date`, `settings` (every flag), `machine` (`machine_facts`), `units`
and `notes`; and for each row `NAME`, where there is a peer with `NAME_peer` and `ratio_NAME`, which
is ours over the peer's throughout: of times and bytes less is better, of rates more.

`parse` sets `jax_platforms`, and JAX_PLATFORMS for processes that are started later; it starts no
backend in this process, so that those have the accelerator to themselves. A device that is not
there is a `UserError`. `torch_device` says where PyTorch can do the same work, if anywhere.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from flamingo_jax import cli
from flamingo_jax.errors import UserError
from flamingo_jax.evaluate.results import write_json

PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")
VECTORS = ("avx512f", "avx2", "avx")  # widest first; XLA and PyTorch differ by them
WIDTHS = (48, 12, 12, 8)  # of the table's columns
PROBE = """
import jax, json
found = jax.devices()
print(json.dumps([found[0].platform, found[0].device_kind, len(found)]))
"""


def parser(
    doc: str | None, sizes: Sequence[str], devices: Sequence[str] = tuple(PLATFORMS)
) -> argparse.ArgumentParser:
    """Returns the flags of a benchmark.

    Args:
      doc: the module's docstring; its first line describes the command.
      sizes: the first is the default; one is "tiny", for tests.
      devices: those it can run on.
    """
    made = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    made.add_argument("--json", type=Path, help="also write the figures to this file")
    made.add_argument("--size", choices=sizes, default=sizes[0], help="of the work")
    made.add_argument("--device", choices=tuple(PLATFORMS), default="cpu", help="default: cpu")
    made.set_defaults(runs_on=tuple(devices))
    return made


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The flags' values; from here on JAX uses `--device`, in processes started later, too.

    Args:
      parser: of `parser`.
      argv: with the program's name.

    Raises:
      UserError: a device that the benchmark does not run on, or that is not there; or a `--json`
        that cannot be written.
    """
    args = parser.parse_args(argv[1:])
    runs_on = vars(args).pop("runs_on")
    if args.device not in runs_on:
        raise UserError(
            f"--device {args.device}: this benchmark measures work of the host; expected "
            f"--device {' or '.join(runs_on)}"
        )
    if args.json:
        _check_writable(args.json)
    os.environ["JAX_PLATFORMS"] = PLATFORMS[args.device]
    jax.config.update("jax_platforms", PLATFORMS[args.device])
    if args.device == "gpu":  # JAX would take most of a memory that the peer shares
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    args.accelerator = None if args.device == "cpu" else _accelerator(args.device)
    return args


def _check_writable(path: Path) -> None:
    """Before minutes are spent. UserError: no file can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}; name a file in a directory") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--json {path}: no file can be written there; name another one")


def _accelerator(device: str) -> str:
    """What JAX finds, as "8 × KIND". Asked in a process of its own: see above. UserError: none."""
    ran = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    said = (ran.stderr.strip() or "nothing was said").splitlines()[-1]
    found, kind, count = json.loads(ran.stdout) if ran.returncode == 0 else ("none", said, 0)
    if found != device:
        extra = f"flamingo-jax[{device}]"
        raise UserError(
            f"--device {device}: JAX finds no {device} here ({found}: {kind}); run on a machine "
            f"that has one, with pip install '{extra}', or give --device cpu"
        )
    return f"{count} × {kind}"


def torch_device(device: str) -> str | None:
    """Returns PyTorch's name of the device; None: PyTorch is not installed, or cannot use it."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    if device == "gpu":
        return "cuda" if torch.cuda.is_available() else None
    return "cpu" if device == "cpu" else None


def no_torch(device: str) -> str:
    """Returns what a table says where `torch_device` is None."""
    return (
        f"peer not run: PyTorch is not installed, or cannot use a {device} here: "
        "pip install 'flamingo-jax[torch]'"
    )


def machine_facts() -> dict[str, Any]:
    """`cpu`, its widest `vectors`, `cores` that this process may use, `memory_gb`, `python`, and
    `versions`."""
    about = [line.partition(":") for line in _lines("/proc/cpuinfo")]
    cpu = {name.strip(): value.strip() for name, _, value in about}
    flags = cpu.get("flags", "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    installed = {name: _version(name) for name in PACKAGES}
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "vectors": next((name for name in VECTORS if name in flags), None),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "python": platform.python_version(),
        "versions": {name: version for name, version in installed.items() if version},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Report:
    """A table that is printed row by row, and the JSON file of the same figures."""

    def __init__(self, name: str, args: argparse.Namespace):
        self._path: Path | None = args.json
        given = {key: value for key, value in vars(args).items() if key != "json"}
        self._accelerator = given.pop("accelerator", None)
        self._name, self._settings = name, given
        self._figures: dict[str, float] = {}
        self._units: dict[str, str] = {}
        self._notes: list[str] = []
        _print_row(f"{name}, size {args.size}, {args.device}", "ours", "peer", "ratio")

    def add(
        self,
        name: str,
        ours: float,
        peer: float | None = None,
        *,
        unit: str = "",
        ratio: float | None = None,
    ) -> None:
        """Print and keep a row.

        Args:
          name: in lower case with underscores; the key of the file.
          ours: of this project.
          peer: of whatever it is compared with; None: there is none.
          unit: of both.
          ratio: ours over the peer's, where it is not that of these two numbers: the median of
            several turns, say.
        """
        self._figures[name], self._units[name] = float(ours), unit
        shown = f"{name.replace('_', ' ')}{f' ({unit})' if unit else ''}"
        if peer is None:
            _print_row(shown, _short(ours), "-", "-")
            return
        ratio = ratio if ratio is not None else ours / peer
        self._figures |= {f"{name}_peer": float(peer), f"ratio_{name}": float(ratio)}
        _print_row(shown, _short(ours), _short(peer), f"{ratio:.2f}")

    def note(self, text: str) -> None:
        """A sentence below the table."""
        self._notes.append(text)

    def write(self) -> None:
        """Print the notes, and write the file: whole or not at all."""
        for text in self._notes:
            print(text)
        if self._path is None:
            return
        machine = machine_facts() | {"accelerator": self._accelerator}
        content = {
            "benchmark": self._name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": {key: _plain(value) for key, value in self._settings.items()},
            "machine": machine,
            "units": self._units,
            "notes": self._notes,
            **{key: float(f"{value:.6g}") for key, value in self._figures.items()},
        }
        write_json(self._path, content)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _print_row(*cells: str) -> None:
    first, *others = cells
    widths = zip(others, WIDTHS[1:], strict=True)
    print(first.ljust(WIDTHS[0]), *(cell.rjust(width) for cell, width in widths), flush=True)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run a benchmark's `main`; print a user's mistake as one line and exit with status 2."""
    cli.run(main)
