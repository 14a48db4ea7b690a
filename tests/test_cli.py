"""Every command says what it is for, and takes a mistake or Ctrl-C as one line."""

import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from absl import flags

from flamingo_jax import cli
from flamingo_jax.data.packing import Packing
from flamingo_jax.errors import UserError
from flamingo_jax.schema import build, dump
from flamingo_jax.train.config import TrainConfig, complete
from tests.test_schema import Linear, Model, Perceiver

ROOMS = ["train", "evaluate", "convert", "plan", "generate", "serve", "inspect", "prepare"]
COMMANDS = ["doctor", *(f"{room}.__main__" for room in ROOMS)]


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command: (status, stdout, stderr)."""

    def command(name, *args):
        main = importlib.import_module(f"flamingo_jax.{name}").main
        monkeypatch.setattr(sys, "argv", [name, *args])
        with pytest.raises(SystemExit) as exit_:
            cli.run(main)
        return exit_.value.code, *capsys.readouterr()

    yield command
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_given(command, name, flag):
    status, out, err = command(name, flag)
    assert (status, err) == (0, "")
    module = importlib.import_module(f"flamingo_jax.{name}")
    assert module.__doc__.split()[0] in out
    own = [flag.name for flag in flags.FLAGS.flags_by_module_dict().get(module.__name__, ())]
    assert all(f"--{name}" in out for name in own)


@pytest.mark.parametrize("name", ["inspect", "prepare"])
def test_former_names_of_commands_work(name):
    command = [sys.executable, "-m", f"flamingo_jax.data.{name}", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"flamingo_jax.{name}" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_a_flag_that_does_not_exist_is_one_line(command, name):
    status, out, err = command(name, "--flagg=1")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_task_has_its_settings_in_a_training_config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from tests import tiny\n\n\ndef get_config():\n    config = tiny.get_config()\n"
        "    config.few_shot = {'tasks': {'coco': {}}}\n    return config\n"
    )
    given = f"--config={path}", "--config.few_shot.tasks.coco.folder=elsewhere"
    assert (
        cli.parse_config(["train", *given], TrainConfig, complete).few_shot.tasks["coco"]["folder"]
        == "elsewhere"
    )
    flags.FLAGS.unparse_flags()


def test_what_has_no_value_can_be_given_one():
    packing = "{'documents': 4, 'text_length': 56, 'images': 9, 'parts': 2}"
    pack = f"--config.streams.interleaved.pack={packing}"
    config = cli.parse_config(["train", "--config=tests/tiny.py", pack], TrainConfig, complete)
    expected = Packing(documents=4, text_length=56, images=9, parts=2)
    assert config.streams["interleaved"].pack == expected
    assert config.streams["pairs"].pack is None
    flags.FLAGS.unparse_flags()


@dataclass(frozen=True, kw_only=True)
class Whole:
    model: Model


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], Perceiver(depth=2)),
        (["kind=perceiver"], Perceiver(depth=2)),  # as in the file, which stays
        (["kind=linear", "width=7"], Linear(width=7)),
        (["kind=linear", "width=7", "rate=0.5"], Linear(width=7, rate=0.5)),
        (["rate=0.5", "width=7", "kind=linear"], Linear(width=7, rate=0.5)),
    ],
)
@pytest.mark.parametrize("part", ["first", "maybe"])
def test_another_kind_is_an_override(tmp_path, part, overrides, expected):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict("
        f"{{'model': {{'first': {{}}, '{part}': {{'kind': 'perceiver', 'depth': 2}}}}}})\n"
    )
    given = [f"--config={path}", *(f"--config.model.{part}.{o}" for o in overrides)]
    made = cli.parse_config(["x", *given], Whole, lambda values: dump(build(Whole, values)))
    assert getattr(made.model, part) == expected
    with pytest.raises(UserError, match=f"model.{part}.kind is 'liner', .* mean 'linear'"):
        cli.parse_config(["x", *given, f"--config.model.{part}.kind=liner"], Whole,
                         lambda values: dump(build(Whole, values)))  # fmt: skip


def test_a_config_is_a_file_or_a_name():
    configs = Path(cli.__file__).parents[1] / "configs"
    assert cli.find_config("of9b") == configs / "of9b.py"
    assert cli.find_config("eval/openflamingo") == configs / "eval" / "openflamingo.py"
    assert cli.find_config(str(configs / "digits.py")) == configs / "digits.py"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "of9c",
            "config of9c does not exist; did you mean 'of9b'; expected a file, or one of: dig",
        ),
        ("of9c.py", "config of9c.py does not exist; did you mean 'of9b'; expected a file, or one"),
        ("xyzzy", "config xyzzy does not exist; expected a file, or one of: digits, eval/all, "),
        ("configs/of9c.py", "config configs/of9c.py does not exist; configs holds: digits.py, of3"),
        ("configs/eval", "config configs/eval is a directory; configs/eval holds: all.py, digits"),
    ],
)
def test_a_config_that_does_not_exist_is_one_line(given, message, monkeypatch):
    monkeypatch.chdir(Path(cli.__file__).parents[1])
    with pytest.raises(UserError) as error:
        cli.find_config(given)
    assert str(error.value).startswith(message)


def test_an_interruption_is_one_line(monkeypatch, capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
