"""The command; what it says of mistakes is what the functions below it say."""

import json

import pytest
from PIL import Image

from flamingo_jax.data import digits
from flamingo_jax.errors import UserError
from flamingo_jax.generate.__main__ import main

SCANS = digits.scans("held_out")[0]


@pytest.fixture
def command(model_dir, tmp_path, capsys):
    def command(*args):
        files = [tmp_path / f"{index}.png" for index in range(3)]
        for scan, file in zip(SCANS, files, strict=False):
            Image.fromarray(scan).save(file)
        main(["generate", f"--model={model_dir}", *(str(a).format(*files) for a in args)])
        return capsys.readouterr().out

    return command


def test_pictures_and_text_keep_their_order(command, flamingo):
    expected = flamingo.generate([SCANS[0], "dax", SCANS[1]], max_new_tokens=4)
    short = "--max-new-tokens=4"
    assert command("--image={0}", "--text", "dax", "--image={1}", short) == expected + "\n"
    assert command("--image", "{1}", short, "--example", "{0}", "dax") == expected + "\n"


def test_json_has_every_token(command, flamingo):
    lines = command("--video", "{0}", "{1}", "--num-beams=2", "--num-return-sequences=2",
                    "--max-new-tokens=3", "--json").splitlines()  # fmt: skip
    prompt = flamingo.read([[SCANS[0], SCANS[1]], ""])
    settings = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 3}
    for line, expected in zip(
        lines, flamingo.generate(prompt, details=True, **settings), strict=True
    ):
        made = json.loads(line)
        assert made == json.loads(json.dumps(vars(expected)))
        assert len(made["tokens"]) == len(made["logprobs"])


def test_mistakes_are_answered(command):
    with pytest.raises(UserError, match="no prompt given; give pictures and texts"):
        command()
    with pytest.raises(UserError, match=r"there is no file .*9\.png"):
        command("--image=9.png")
    with pytest.raises(UserError, match=r"top_p is 7\.0, which is out of its range"):
        command("--text=zero", "--top-p=7")
