"""The original's training step, in PyTorch: the peer of `benchmarks.train_step`.

OpenFlamingo's `train_one_epoch` without its loader: a forward and a backward pass for each stream,
the gradient of the whole embedding table masked to its new rows, clipping, AdamW. A model
of bfloat16 runs under autocast, as with its `--precision amp_bf16`.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn import functional

from benchmarks.torch_flamingo import TorchFlamingo
from flamingo_jax.convert import torch_original as original
from flamingo_jax.models.vlm import ModelConfig

NameTable = Mapping[str, torch.Tensor]


class TorchTraining:
    """A frozen vision encoder and language model; resampler and cross-attention train.

    Args:
      arrays: see `original_tensors`.
      device: where all of it lies.
    """

    def __init__(self, config: ModelConfig, arrays: Mapping[str, np.ndarray], device: str):
        self.model = TorchFlamingo(config, arrays, device)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bfloat16")
        self.first_new_row = config.decoder.vocab_size
        lm, weights = self.model.lm, self.model.weights
        lm.requires_grad_(False)
        self.table = lm.transformer.wte.weight.requires_grad_()
        self.blocks = [t for name, t in weights.tensors.items() if "gated_cross_attn" in name]
        self.resampler = [t for name, t in weights.tensors.items() if name.startswith("perceiver.")]
        for tensor in [*self.blocks, *self.resampler]:
            tensor.requires_grad_()
        self.trained = [*self.blocks, *self.resampler, self.table]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.blocks, "weight_decay": 0.1},
                {"params": [*self.resampler, self.table], "weight_decay": 0.0},
            ],
            lr=1e-4,
        )

    def patches(self, rows: NameTable) -> torch.Tensor:
        vision = self.model.config.encoder
        with torch.no_grad(), self.autocast:
            return original.openclip_patches(
                self.model.weights.below("vision_encoder"),
                rows["images"].flatten(0, 1),
                vision.num_heads,
                vision.activation == "quick_gelu",
            )

    def latents(self, patches: torch.Tensor, rows: NameTable) -> torch.Tensor:
        heads = self.model.config.connector.num_heads
        with self.autocast:
            latents = original.resample(self.model.weights.below("perceiver"), patches, heads)
        return latents.unflatten(0, (-1, rows["images"].shape[1]))

    def text(self, latents: torch.Tensor, rows: NameTable) -> torch.Tensor:
        """Returns the decoder's output, before its head."""
        self.model.media = latents
        self.model._see(None, (), {"input_ids": rows["tokens"]})
        with self.autocast:
            return self.model.lm.transformer(
                input_ids=rows["tokens"],
                attention_mask=rows["segments"],
                use_cache=False,
            ).last_hidden_state

    def loss(self, text: torch.Tensor, rows: NameTable) -> torch.Tensor:
        with self.autocast:
            logits = self.model.lm.lm_head(text)
        labels = rows["tokens"].masked_fill(rows["weights"] == 0, -100)
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def step(self, batch: Mapping[str, NameTable], scale: Mapping[str, float]) -> dict[str, float]:
        """One update; gives `loss/NAME` of each stream, the gradient's norm before clipping, and
        the norm of Adam's first moment of the new rows, to which the tied head adds."""
        results = {}
        for name, rows in batch.items():
            loss = self.loss(self.text(self.latents(self.patches(rows), rows), rows), rows)
            (scale[name] * loss).backward()
            results[f"loss/{name}"] = loss.detach()
        results["grad_norm"] = self.update()
        moment = self.optimizer.state[self.table]["exp_avg"]
        results["moment/new_rows"] = moment[self.first_new_row :].norm()
        return {name: float(value) for name, value in results.items()}

    def update(self) -> torch.Tensor:
        """Gives the gradient's norm before clipping."""
        assert self.table.grad is not None
        new_rows = torch.zeros_like(self.table.grad)
        new_rows[self.first_new_row :] = 1
        self.table.grad = self.table.grad * new_rows
        norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def parts(self, batch: Mapping[str, NameTable]) -> dict[str, Callable[[], None]]:
        """The step's parts, each alone: forward, and backward where there is a gradient."""
        streams = list(batch.values())
        patches = [self.patches(rows) for rows in streams]
        with torch.no_grad():
            latents = [self.latents(p, rows) for p, rows in zip(patches, streams, strict=True)]
            texts = [self.text(x, rows) for x, rows in zip(latents, streams, strict=True)]
        for x in [*latents, *texts]:
            x.requires_grad_()

        def run_resampler() -> None:
            for p, rows in zip(patches, streams, strict=True):
                self.latents(p, rows).sum().backward()
            self.optimizer.zero_grad(set_to_none=True)

        def run_layers() -> None:
            for x, rows in zip(latents, streams, strict=True):
                self.text(x, rows).sum().backward()
                x.grad = None
            self.optimizer.zero_grad(set_to_none=True)

        def run_head() -> None:
            for x, rows in zip(texts, streams, strict=True):
                self.loss(x, rows).backward()
                x.grad = None
            self.optimizer.zero_grad(set_to_none=True)

        gradients = [torch.full_like(tensor, 1e-3) for tensor in self.trained]

        def run_update() -> None:
            for tensor, gradient in zip(self.trained, gradients, strict=True):
                tensor.grad = gradient
            self.update()

        return {
            "vision": lambda: [self.patches(rows) for rows in streams] and None,
            "resampler": run_resampler,
            "layers": run_layers,
            "head_and_loss": run_head,
            "update": run_update,
        }


def to_torch(rows: Mapping[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    """Returns a stream's rows as the original's tensors: images (B, T, 3, H, W), int64 ids."""
    tensors = {
        "images": torch.from_numpy(np.moveaxis(rows["images"][:, :, 0], -1, 2).copy()),
        "tokens": torch.from_numpy(rows["tokens"]).long(),
        "segments": torch.from_numpy(rows["segments"]).long(),
        "weights": torch.from_numpy(rows["weights"]),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}
