"""The original's way to generate and to classify, in PyTorch: the peer of `benchmarks.generate`.

The language model and the search are transformers' own. Images, resampler and cross-attention
follow OpenFlamingo: each beam encodes its own images, every token projects the images' keys and
values again, and class names are scored one after another: each with the whole prompt, or token by
token over a cached prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from flamingo_jax.convert import torch_original as original
from flamingo_jax.convert.families import family_of
from flamingo_jax.convert.openflamingo import all_rows
from flamingo_jax.convert.openflamingo_names import unwrap
from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.weights.views import export, make_plan


def original_tensors(config: ModelConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns weights by our paths → float32 by the original's names."""
    family = family_of(_mpt_config(config).to_dict())
    plan = make_plan(params, all_rows(family, config), config.locate)
    return {name: make() for name, make in export(plan, params, np.float32).items()}


def _mpt_config(config: ModelConfig) -> transformers.MptConfig:
    decoder = config.decoder
    return transformers.MptConfig(
        d_model=decoder.width,
        n_heads=decoder.num_heads,
        n_layers=decoder.num_layers,
        vocab_size=decoder.total_vocab_size,
        max_seq_len=decoder.max_length,
    )


class TorchFlamingo:
    """An MPT between whose layers the gated cross-attention stands, with our weights.

    Args:
      config: of our model.
      arrays: see `original_tensors`.
      device: where all of it lies, and inputs are moved.
      dtype: of weights and activations.
    """

    def __init__(
        self,
        config: ModelConfig,
        arrays: Mapping[str, np.ndarray],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.device, self.dtype = device, dtype
        facts = _mpt_config(config)
        family = family_of(facts.to_dict())
        tensors = {n: torch.from_numpy(a).to(device, dtype) for n, a in arrays.items()}
        self.weights = original.Weights(tensors)
        self.config = config
        self.media = self.text_time = torch.zeros(0)
        with torch.device("meta"):
            self.lm = transformers.MptForCausalLM._from_config(facts, attn_implementation="eager")
        language = {
            unwrap(family, name): tensor
            for name, tensor in tensors.items()
            if name.startswith("lang_encoder.") and "gated_cross" not in name
        }
        language["lm_head.weight"] = language["transformer.wte.weight"]
        self.lm.load_state_dict(language, assign=True)
        self.lm.tie_weights()
        self.lm.eval()
        self.lm.register_forward_pre_hook(self._see, with_kwargs=True)
        interval = config.fusion.interval
        for number, layer in enumerate(self.lm.transformer.blocks):
            if (number + 1) % interval == 0:
                name = f"lang_encoder.{family.layers}.{number}.gated_cross_attn_layer"
                layer.register_forward_pre_hook(self._before(self.weights.below(name)))

    def _see(self, module: Any, args: tuple, kwargs: dict) -> None:
        """Says which image each token sees: in a cached step, the last one of the prompt."""
        tokens = kwargs["input_ids"]
        if tokens.shape[1] > 1:
            self.text_time = (tokens == self.config.image_token).cumsum(-1)
        else:
            self.text_time = self.text_time[:, -1:]

    def _before(self, weights: original.Weights) -> Any:
        heads = self.config.fusion.num_heads

        def enter(module: Any, args: tuple) -> tuple:
            x = original.gated_cross_attention(weights, args[0], self.media, self.text_time, heads)
            return x, *args[1:]

        return enter

    def _encode(self, images: torch.Tensor) -> None:
        """(B, T, 3, H, W), normalised."""
        images = images.to(self.device, self.dtype)
        vision, resampler = self.config.encoder, self.config.connector
        quick = vision.activation == "quick_gelu"
        patches = original.openclip_patches(
            self.weights.below("vision_encoder"), images.flatten(0, 1), vision.num_heads, quick
        )
        latents = original.resample(self.weights.below("perceiver"), patches, resampler.num_heads)
        self.media = latents.unflatten(0, images.shape[:2])

    @torch.inference_mode()
    def generate(
        self, images: torch.Tensor, tokens: torch.Tensor, *, num_beams: int, new_tokens: int
    ) -> np.ndarray:
        """`new_tokens` new tokens of each row: greedy, or the best beam."""
        self._encode(images.repeat_interleave(num_beams, 0))
        tokens = tokens.to(self.device)
        made = self.lm.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=num_beams,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=self.config.end_of_chunk_token,
            pad_token_id=0,
        )
        return made[:, tokens.shape[1] :].cpu().numpy()

    @torch.inference_mode()
    def classify(
        self, images: torch.Tensor, tokens: torch.Tensor, names: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Log-likelihood of each name after each prompt, (B, names). As with
        `--no_caching_for_classification`: images and prompt once more for every name."""
        tokens, scores = tokens.to(self.device), []
        for name in names:
            self._encode(images)
            tail = torch.tensor(name, device=self.device).expand(len(tokens), -1)
            logits = self.lm(input_ids=torch.cat([tokens, tail], 1), use_cache=False).logits
            logprobs = logits[:, -len(name) - 1 : -1].float().log_softmax(-1)
            scores.append(logprobs.gather(2, tail[..., None]).sum((1, 2)))
        return torch.stack(scores, 1).cpu().numpy()

    @torch.inference_mode()
    def classify_cached(
        self, images: torch.Tensor, tokens: torch.Tensor, names: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """As `classify`, but token by token over a cached prompt.

        The cache is cut back after each name. The original does not do so with MPT, where each
        name's tokens stay in the next one's context, nor does it mask what pads a prompt.
        """
        self._encode(images)
        tokens = tokens.to(self.device)
        prompt = self.lm(input_ids=tokens, use_cache=True)
        cache, last = prompt.past_key_values, prompt.logits[:, -1]
        prompt_time, scores = self.text_time, []
        for name in names:
            self.text_time = prompt_time
            logits, total = last, torch.zeros(len(tokens), device=self.device)
            for token in name:
                total = total + logits.float().log_softmax(-1)[:, token]
                one = torch.full((len(tokens), 1), token, device=self.device)
                logits = self.lm(input_ids=one, past_key_values=cache, use_cache=True).logits[:, -1]
            cache.crop(-len(name))
            scores.append(total)
        return torch.stack(scores, 1).cpu().numpy()
