"""Made tars in MMC4's format, and a tokenizer, for the benchmark of the data pipelines."""

import base64
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = 20
SYLLABLES = tuple(a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er"))


def write_corpus(directory: Path, documents: int, width: int, height: int) -> str:
    """Writes tars of 50 documents each; returns their pattern.

    A document has on average 5.6 pictures and some 380 tokens. MMC4's have 5.6 and 425 (Zhu et al.
    2023: 101.2 million documents, 571 million pictures, 43 billion tokens).
    """
    rng = np.random.default_rng(width)
    pictures = [_picture(rng, width, height) for _ in range(24)]
    directory.mkdir(parents=True)
    shards = -(-documents // 50)
    for shard in range(shards):
        with tarfile.open(directory / f"{shard:05d}.tar", "w") as tar:
            for number in range(50):
                data = json.dumps(_document(rng, pictures)).encode()
                info = tarfile.TarInfo(f"{shard:05d}{number:04d}.json")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return f"{directory}/{{00000..{shards - 1:05d}}}.tar"


def _document(rng: np.random.Generator, pictures: list[bytes]) -> dict:
    """Each picture has a sentence of its own, the first one at the beginning of the text; a quarter
    of them is below the threshold of 0.24, the first two are not."""
    count = int(rng.choice([4, 5, 6, 7, 8], p=[0.2, 0.3, 0.25, 0.2, 0.05]))
    similarity = rng.uniform(0.05, 0.15, (count, SENTENCES))
    strength = np.where(rng.random(count) < 0.25, 0.2, rng.uniform(0.25, 0.4, count))
    strength[:2] = 0.3
    places = [rng.integers(4), *(4 + rng.permutation(SENTENCES - 4)[: count - 1])]
    similarity[np.arange(count), places] = strength
    chosen = rng.integers(len(pictures), size=count)
    return {
        "url": "made up",
        "text_list": [_sentence(rng) for _ in range(SENTENCES)],
        "similarity_matrix": similarity.round(4).tolist(),
        "image_info": [
            {
                "image_name": f"{i}.jpg",
                "raw_url": "made up",
                "image_base64": base64.b64encode(pictures[which]).decode(),
            }
            for i, which in enumerate(chosen)
        ],
    }


def _picture(rng: np.random.Generator, width: int, height: int) -> bytes:
    """Returns a JPEG with shapes of several sizes and a little noise."""
    pixels = np.zeros((height, width, 3))
    for size, share in ((4, 0.5), (32, 0.3), (128, 0.2)):
        field = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        image = Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC)
        pixels += share * np.asarray(image)
    pixels += rng.normal(0, 4, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def _sentence(rng: np.random.Generator) -> str:
    words = ("".join(rng.choice(SYLLABLES, rng.integers(1, 3))) for _ in range(12))
    return " ".join(words).capitalize() + "."


def write_tokenizer(path: Path) -> int:
    """Writes a byte-level BPE of made-up words; returns the size of its vocabulary."""
    rng = np.random.default_rng(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_sentence(rng) for _ in range(2000)), trainer)
    tokenizer.save(str(path))
    return tokenizer.get_vocab_size()
