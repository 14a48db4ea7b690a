"""What the original's loader does, as a plain webdataset pipeline: the peer of the benchmark.

Every picture of a document is decoded and, when its sentence is similar enough, resized by CLIP's
transforms to a float tensor; pictures are assigned to sentences by the Hungarian method; the text
is tokenised and padded. In one thing it is spared: the original shuffles among 5,000 documents in
memory, this among `SHUFFLE`.
"""

import base64
import io
import json
from collections.abc import Iterator

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from scipy.optimize import linear_sum_assignment
from transformers import PreTrainedTokenizerFast

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
SHUFFLE = 100
MAX_IMAGES, MAX_TOKENS, SIZE = 6, 256, 224


def clip_transform(image: Image.Image) -> torch.Tensor:
    """Resize, centre crop, float, normalise: (3, SIZE, SIZE)."""
    scale = SIZE / min(image.size)
    width, height = (max(SIZE, int(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    image = image.crop((left, top, left + SIZE, top + SIZE)).convert("RGB")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div(255).sub_(MEAN).div_(STD)


class Preprocess:
    """A sample → (images (T, 3, H, W) float32, tokens (L,), attention mask (L,))."""

    def __init__(self, tokenizer: str, threshold: float):
        self.threshold = threshold
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=tokenizer, eos_token="<|endoftext|>"
        )
        self.tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<|endofchunk|>", "<image>"]}
        )
        self.tokenizer.add_special_tokens({"pad_token": "<PAD>"})
        self.tokenizer.padding_side = "right"

    def __call__(self, sample: tuple[bytes]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        document = json.loads(sample[0])
        sentences = document["text_list"]
        valid, indices = [], []
        for index, entry in enumerate(document["image_info"]):
            if "image_base64" not in entry:
                continue
            data = base64.b64decode(entry["image_base64"])
            if len(data) // 1000 <= 10:
                continue
            valid.append(Image.open(io.BytesIO(data)).convert("RGB"))
            indices.append(index)
        if not valid:
            raise ValueError("no image")
        similarity = np.array(document["similarity_matrix"])[indices]
        chosen = [
            (valid[image], int(sentence))
            for image, sentence in zip(*linear_sum_assignment(-similarity), strict=True)
            if similarity[image, sentence] >= self.threshold
        ]
        if not chosen:
            raise ValueError("no image")
        images = torch.stack([clip_transform(image) for image, _ in chosen])[:MAX_IMAGES]
        missing = torch.zeros(MAX_IMAGES - len(images), 3, SIZE, SIZE)
        return torch.cat([images, missing]), *self.tokenise(
            sentences, [sentence for _, sentence in chosen[:MAX_IMAGES]]
        )

    def tokenise(self, sentences: list[str], chosen: list[int]) -> tuple[torch.Tensor, ...]:
        for sentence in chosen:
            sentences[sentence] = f"<|endofchunk|><image>{sentences[sentence]}"
        text = " ".join(sentences).replace("<|endofchunk|>", "", 1)
        text = text.replace(" <|endofchunk|>", "<|endofchunk|>")
        text = text.replace("<image> ", "<image>").replace(" <image>", "<image>")
        encoded = self.tokenizer(
            f"{text}<|endofchunk|>{self.tokenizer.eos_token}",
            max_length=MAX_TOKENS,
            truncation=True,
            padding="max_length",
            return_tensors="pt",
        )
        return encoded["input_ids"][0], encoded["attention_mask"][0]


def peer_batches(
    shards: list[str], tokenizer: str, batch_size: int, workers: int, *, limit: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns batches of images, tokens and masks: `limit` of them, shuffled; None: one pass, in
    order."""
    torch.set_num_threads(1)
    dataset = wds.WebDataset(shards, resampled=limit is not None, shardshuffle=False)
    dataset = dataset.shuffle(SHUFFLE) if limit else dataset
    preprocess = Preprocess(tokenizer, 0.24)
    dataset = dataset.to_tuple("json").map(preprocess, handler=wds.warn_and_continue)
    dataset = dataset.batched(batch_size)
    dataset = dataset.with_epoch(-(-limit // workers)) if limit else dataset
    for batch in wds.WebLoader(dataset, batch_size=None, num_workers=workers):
        yield tuple(torch.as_tensor(part).numpy() for part in batch)
