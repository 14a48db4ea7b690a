import json

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flamingo_jax.evaluate.command import open_model
from flamingo_jax.evaluate.config import FewShotConfig
from flamingo_jax.evaluate.tasks import TASKS
from flamingo_jax.schema import dump
from flamingo_jax.text.tokenizer import grow_tokenizer
from flamingo_jax.weights.model_directory import Provenance, write_directory
from flamingo_jax.weights.views import LazyArray
from tests.clip_models import save_clip
from tests.conftest import random_params, small_config
from tests.evaluate import fake_data


@pytest.fixture(scope="session")
def fake_root(tmp_path_factory):
    """Tiny data sets of every task."""
    root = tmp_path_factory.mktemp("fake")
    fake_data.write_all(root)
    return root


WORDS = """
    </s> A cat dog bus kite boat horse mat road lawn beach red blue old small on a is near the photo
    of yes no two 2 3 white gray light surfing riding bike surf ride unanswerable can B C D E stone
    feather glass tench goldfish great shark Output Question Answer Short answer . , : ' ? ( ) seven
"""


@pytest.fixture(scope="session")
def tokenizer():
    """One token per word of the fake data; other words are `</s>`."""
    vocabulary = {word: i for i, word in enumerate(WORDS.split())}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="</s>")
    grow_tokenizer(tokenizer)
    return tokenizer


def lively_params(config):
    """Random parameters under which the prompt decides what comes next, not the tokens' norms."""
    params = {path: np.array(x) for path, x in random_params(config, gate=2.0).items()}
    for path, x in params.items():
        if path.startswith("decoder/embedding"):
            x /= np.linalg.norm(x, axis=-1, keepdims=True)
        elif path.endswith("bias"):
            x[...] = 0
        elif path.endswith("kernel"):
            x *= 2
    return params


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory):
    """A tiny model of random weights as a model directory."""
    config = small_config(vocab_size=len(WORDS.split()), num_layers=2)
    leaves = {p: LazyArray(x.shape, (x,), stacked=False) for p, x in lively_params(config).items()}
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_directory(folder, config, Provenance("mpt", {}, {}, {}), leaves, tokenizer)
    return folder


SHORT = {"max_new_tokens": 3, "num_beams": 3}  # one program for all that generates


@pytest.fixture(scope="session")
def settings(fake_root):
    """A config over the fake data, with these replaced."""

    def make(*tasks, **replaced):
        options = {name: SHORT if TASKS[name]().max_new_tokens else {} for name in tasks}
        values = {
            "data_root": str(fake_root),
            "tasks": options,
            "shots": (0, 2, 4),
            "ensemble": 2,
            "round_length": 256,  # one length, so few programs
        }
        return FewShotConfig(**values | replaced)

    return make


@pytest.fixture(scope="session")
def on_devices(model_folder, settings):
    """The tiny model on one device and on eight."""
    return {
        count: open_model(model_folder, settings(), jax.local_devices()[:count]) for count in (1, 8)
    }


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A tiny CLIP of random weights."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(out):
    """What was answered and how it was scored, of every setting."""
    return {
        str(path.parent.relative_to(out)): (
            json.loads((path.parent / "score.json").read_text())["score"],
            [(r["id"], r["prompt"], r["raw"], r["score"]) for r in lines(path)],
        )
        for path in sorted(out.glob("*/*/examples.jsonl"))
    }


def write_config(folder, config):
    """A config file with these settings."""
    path = folder / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n\n\n"
        f"def get_config():\n    return ConfigDict({dump(config)!r})\n"
    )
    return path
