"""OpenFlamingo's own modules, and the whole model under its names."""

from collections.abc import Callable
from dataclasses import replace

from flamingo_jax.convert.clip import openclip_rows
from flamingo_jax.convert.family import Family
from flamingo_jax.convert.openflamingo_names import wrap
from flamingo_jax.models.decoder import DecoderConfig
from flamingo_jax.models.vlm import ModelConfig
from flamingo_jax.weights.views import (
    NameTable,
    TensorView,
    array,
    linear,
    norm,
    nth_block,
    rows_between,
    transpose,
)


def vocabulary_rows(family: Family, c: DecoderConfig) -> NameTable:
    """Returns the table of our three groups of token rows, which follow one another in theirs."""
    new, pad, total = c.vocab_size, c.vocab_size + c.num_new_tokens, c.total_vocab_size
    shape = (total, c.width)
    rows = {
        "decoder/embedding/table": TensorView(family.embedding, shape, rows_between(0, new)),
        "decoder/embedding/new_rows": TensorView(family.embedding, shape, rows_between(new, pad)),
        "decoder/embedding/pad_rows": TensorView(family.embedding, shape, rows_between(pad, total)),
    }
    if not c.tie_head:
        rows["decoder/head/kernel"] = TensorView(family.head, shape, transpose)
    return rows


def language_rows(family: Family, c: DecoderConfig) -> NameTable:
    """Returns the table of a language model under its own names."""
    return family.rows(c) | vocabulary_rows(family, c)


def _feed_forward(ours: str, name: str, width: int, multiple: int) -> NameTable:
    return {
        **norm(f"{ours}/norm", f"{name}.0", width),
        **linear(f"{ours}/up", f"{name}.1", multiple * width, width),
        **linear(f"{ours}/down", f"{name}.3", width, multiple * width),
    }


def _attention(ours: str, name: str, width: int, media_width: int, inner: int) -> NameTable:
    return {
        **linear(f"{ours}/query", f"{name}.to_q", inner, width),
        **linear(f"{ours}/key", f"{name}.to_kv", 2 * inner, media_width, nth_block(0, 2)),
        **linear(f"{ours}/value", f"{name}.to_kv", 2 * inner, media_width, nth_block(1, 2)),
        **linear(f"{ours}/out", f"{name}.to_out", width, inner),
    }


def adapter_rows(family: Family, c: ModelConfig) -> NameTable:
    """Returns the table of resampler and cross-attention."""
    width, media = c.decoder.width, c.encoder.width
    r, x = c.connector, c.fusion
    layer, attention = "perceiver.layers.{i}.1", "perceiver.layers.{i}.0"
    rows = array("resampler/latents", "perceiver.latents", r.num_latents, media)
    if r.max_frames:
        rows |= array("resampler/frame_embedding", "perceiver.frame_embs", r.max_frames, media)
    if r.max_media:
        rows |= array(
            "resampler/media_embedding", "perceiver.media_time_embs", r.max_media, 1, media
        )
    rows |= norm("resampler/norm", "perceiver.norm", media)
    rows |= norm("resampler/layer/media_norm", f"{attention}.norm_media", media)
    rows |= norm("resampler/layer/latent_norm", f"{attention}.norm_latents", media)
    rows |= _attention("resampler/layer", attention, media, media, r.num_heads * r.head_dim)
    rows |= _feed_forward("resampler/layer/feed_forward", layer, media, r.feed_forward_multiple)

    gated = f"lang_encoder.{family.layers}.{{i}}.gated_cross_attn_layer"
    rows |= array("cross_attention/attention_gate", f"{gated}.attn_gate", 1)
    rows |= array("cross_attention/feed_forward_gate", f"{gated}.ff_gate", 1)
    rows |= norm("cross_attention/norm", f"{gated}.attn.norm", width)
    rows |= _attention("cross_attention", f"{gated}.attn", width, media, x.num_heads * x.head_dim)
    rows |= _feed_forward(
        "cross_attention/feed_forward", f"{gated}.ff", width, x.feed_forward_multiple
    )
    return rows


def all_rows(family: Family, c: ModelConfig) -> NameTable:
    """Returns the table of the whole model under OpenFlamingo's names."""

    def renamed(rows: NameTable, rename: Callable[[str], str]) -> NameTable:
        return {path: replace(view, name=rename(view.name)) for path, view in rows.items()}

    return {
        **renamed(language_rows(family, c.decoder), lambda name: wrap(family, name)),
        **renamed(openclip_rows(c.encoder), lambda name: f"vision_encoder.{name}"),
        **adapter_rows(family, c),
    }
