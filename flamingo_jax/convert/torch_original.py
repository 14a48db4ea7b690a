"""The original in torch, as far as checks of converted weights and benchmarks need it.

Written from OpenFlamingo's and MPT-1B's published code, without anything of this package, so that a
mistake of ours is not repeated here; operation for operation, so that it costs what the original
does. Language models other than MPT-1B are transformers' own.
"""

import math
from collections.abc import Mapping
from typing import Any


def split_heads(x: Any, heads: int) -> Any:
    """(B, L, heads × features) → (B, heads, L, features)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention(q: Any, k: Any, v: Any, heads: int, bias: Any) -> Any:
    """Multi-head attention over (B, L, heads × features), with a bias of its scores."""
    import torch

    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    return (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)


def media_attention(
    q: Any, k: Any, v: Any, heads: int, text_time: Any = None, num_images: int = 1
) -> Any:
    """OpenFlamingo's attention to media, in the resampler and in cross-attention.

    Args:
      q: (B, L, heads × features).
      k: (B, keys, heads × features); as many keys of each image, image by image.
      v: as k.
      heads: of attention.
      text_time: (B, L), which image a query sees, from 1; 0: none. Without, it sees all.
      num_images: of each row.
    """
    import torch

    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    scores = torch.einsum("bhid,bhjd->bhij", q * q.shape[-1] ** -0.5, k)
    if text_time is not None:
        image = torch.arange(1, num_images + 1, device=q.device)
        image = image.repeat_interleave(k.shape[2] // num_images)
        hidden = text_time[:, None, :, None] != image
        scores = scores.masked_fill(hidden, -torch.finfo(scores.dtype).max)
    scores = scores - scores.amax(-1, keepdim=True).detach()
    shares = scores.softmax(-1)
    if text_time is not None:
        shares = shares.masked_fill((text_time == 0)[:, None, :, None], 0)
    return torch.einsum("bhij,bhjd->bhid", shares, v).transpose(1, 2).flatten(2)


class Weights:
    """Tensors below a prefix, applied as torch's layers of that name."""

    def __init__(self, tensors: Mapping[str, Any], prefix: str = ""):
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name: str) -> Any:
        return self.tensors[f"{self.prefix}{name}"]

    def below(self, prefix: str) -> "Weights":
        return Weights(self.tensors, f"{self.prefix}{prefix}.")

    def _pair(self, name: str) -> tuple[Any, Any]:
        return self[f"{name}.weight"], self.tensors.get(f"{self.prefix}{name}.bias")

    def linear(self, name: str, x: Any) -> Any:
        from torch.nn import functional

        return functional.linear(x, *self._pair(name))

    def norm(self, name: str, x: Any) -> Any:
        from torch.nn import functional

        weight, bias = self._pair(name)
        return functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    def feed_forward(self, x: Any) -> Any:
        """OpenFlamingo's `FeedForward`: a Sequential of norm, linear, GELU, linear."""
        from torch.nn import functional

        return self.linear("3", functional.gelu(self.linear("1", self.norm("0", x))))


def openclip_patches(weights: Weights, images: Any, heads: int, quick_gelu: bool) -> Any:
    """Patch tokens (B, N, D) of OpenCLIP's tower before its last norm; images (B, 3, H, W)."""
    import torch
    from torch.nn import functional

    x = functional.conv2d(images, weights["conv1.weight"], stride=weights["conv1.weight"].shape[-1])
    x = x.flatten(2).transpose(1, 2)
    first = weights["class_embedding"].expand(len(x), 1, -1)
    x = weights.norm("ln_pre", torch.cat([first, x], 1) + weights["positional_embedding"])
    layer = 0
    while f"{weights.prefix}transformer.resblocks.{layer}.ln_1.weight" in weights.tensors:
        block = weights.below(f"transformer.resblocks.{layer}")
        fused = functional.linear(
            block.norm("ln_1", x), block["attn.in_proj_weight"], block["attn.in_proj_bias"]
        )
        q, k, v = (split_heads(part, heads) for part in fused.chunk(3, -1))
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + block.linear("attn.out_proj", attended)
        hidden = block.linear("mlp.c_fc", block.norm("ln_2", x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if quick_gelu else functional.gelu(hidden)
        x = x + block.linear("mlp.c_proj", hidden)
        layer += 1
    return x[:, 1:]


def resample(weights: Weights, patches: Any, heads: int) -> Any:
    """`PerceiverResampler`: patch tokens (B, N, D) of one image each → latents (B, R, D)."""
    import torch

    latents = weights["latents"].expand(len(patches), -1, -1)
    layer = 0
    while f"{weights.prefix}layers.{layer}.0.to_q.weight" in weights.tensors:
        block = weights.below(f"layers.{layer}.0")
        queries = block.norm("norm_latents", latents)
        keys = torch.cat([block.norm("norm_media", patches), queries], 1)
        k, v = block.linear("to_kv", keys).chunk(2, -1)
        attended = media_attention(block.linear("to_q", queries), k, v, heads)
        latents = latents + block.linear("to_out", attended)
        latents = latents + weights.below(f"layers.{layer}.1").feed_forward(latents)
        layer += 1
    return weights.norm("norm", latents)


def gated_cross_attention(weights: Weights, x: Any, media: Any, text_time: Any, heads: int) -> Any:
    """`GatedCrossAttentionBlock`; media (B, T, R, D), text_time (B, L): images so far."""
    k, v = weights.linear("attn.to_kv", media.flatten(1, 2)).chunk(2, -1)
    q = weights.linear("attn.to_q", weights.norm("attn.norm", x))
    attended = media_attention(q, k, v, heads, text_time, media.shape[1])
    x = x + weights.linear("attn.to_out", attended) * weights["attn_gate"].tanh()
    return x + weights.below("ff").feed_forward(x) * weights["ff_gate"].tanh()


def mosaic_gpt_layer(weights: Weights, x: Any, heads: int, alibi_max: float) -> Any:
    """MPT-1B's `GPTBlock` without padding."""
    import torch
    from torch.nn import functional

    length = x.shape[1]
    q, k, v = weights.linear("attn.Wqkv", weights.norm("ln_1", x)).chunk(3, -1)
    if f"{weights.prefix}attn.q_ln.weight" in weights.tensors:
        q, k = weights.norm("attn.q_ln", q), weights.norm("attn.k_ln", k)
    power = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-alibi_max / power * torch.arange(1, power + 1))
    if power != heads:
        slopes = torch.cat([slopes[1::2], slopes[::2]])[:heads]
    bias = slopes[:, None, None] * torch.arange(1 - length, 1)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    bias = bias.masked_fill(future, torch.finfo(torch.float32).min)
    x = x + weights.linear("attn.out_proj", attention(q, k, v, heads, bias))
    hidden = functional.gelu(weights.linear("mlp.mlp_up", weights.norm("ln_2", x)))
    return x + weights.linear("mlp.mlp_down", hidden)
