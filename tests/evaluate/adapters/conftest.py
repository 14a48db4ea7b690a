"""A model directory and a small data set, for harnesses that run offline."""

import dataclasses
import json
import os
from pathlib import Path

# The harnesses' libraries look for data sets on the network unless told not to.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
from PIL import Image

from flamingo_jax.text.tokenizer import load_transformers_tokenizer
from flamingo_jax.weights.model_directory import Provenance, write_directory
from tests.convert import goldens

COLOURS = ("red", "green", "blue", "white", "black")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """The committed part of the MPT goldens as a model directory."""
    imported = goldens.load("mpt").imported
    origin = Provenance("mpt", imported.language_config, dataclasses.asdict(imported.ids), {})
    out = tmp_path_factory.mktemp("model") / "mpt"
    tokenizer = load_transformers_tokenizer(goldens.load("mpt").folder / "tokenizer")
    write_directory(out, imported.config, origin, imported.leaves, tokenizer)
    return out


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Five pictures of one colour each, and a question about each, as JSON lines."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (20, 16), colour).save(folder / f"{colour}.png")
        lines.append({"image": str(folder / f"{colour}.png"), "question": "What colour is it?",
                      "answer": colour, "choices": list(COLOURS), "gold": i})  # fmt: skip
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
