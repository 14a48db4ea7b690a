"""Every command says what it is for, and takes a mistake or Ctrl-C as one line."""

import importlib
import sys

import pytest
from absl import flags

from flamingo_jax import cli
from flamingo_jax.data.packing import Packing
from flamingo_jax.train.config import TrainConfig, complete

COMMANDS = ["train", "evaluate", "convert", "plan", "doctor", "generate", "serve", "data.inspect",
            "data.prepare.commands"]  # fmt: skip


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


def test_an_interruption_is_one_line(monkeypatch, capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
