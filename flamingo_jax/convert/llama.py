"""LLaMA."""

from flamingo_jax.convert.family import Family, LMConfig, activation, require_keys, rope
from flamingo_jax.models.decoder import DecoderConfig
from flamingo_jax.weights.views import NameTable, linear, norm


def _decoder(config: LMConfig) -> DecoderConfig:
    width, heads, layers, vocabulary, hidden = require_keys(
        config,
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
        "intermediate_size",
    )
    kv_heads = config.get("num_key_value_heads") or heads
    rotary = rope(config)
    return DecoderConfig(
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=0 if kv_heads == heads else kv_heads,
        head_dim=config.get("head_dim") or 0,
        mlp_width=hidden,
        activation=activation(config, "hidden_act", "silu"),
        gated_mlp=True,
        vocab_size=vocabulary,
        norm="rmsnorm",
        norm_eps=config.get("rms_norm_eps") or 1e-6,
        attention_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
        position="rotary",
        rotary_theta=float(rotary["theta"] or 10_000),
        max_length=config.get("max_position_embeddings") or 2048,
        tie_head=bool(config.get("tie_word_embeddings")),
    )


def _rows(c: DecoderConfig) -> NameTable:
    layer, width = "model.layers.{i}.", c.width
    q_width, kv_width = c.num_heads * c.head_width, c.kv_heads * c.head_width
    rows = norm("decoder/norm", "model.norm", width)
    rows |= norm("decoder/layer/attention_norm", f"{layer}input_layernorm", width)
    rows |= norm("decoder/layer/mlp_norm", f"{layer}post_attention_layernorm", width)
    attention = f"{layer}self_attn."
    rows |= linear("decoder/layer/attention/query", f"{attention}q_proj", q_width, width)
    rows |= linear("decoder/layer/attention/key", f"{attention}k_proj", kv_width, width)
    rows |= linear("decoder/layer/attention/value", f"{attention}v_proj", kv_width, width)
    rows |= linear("decoder/layer/attention/out", f"{attention}o_proj", width, q_width)
    rows |= linear("decoder/layer/mlp/gate", f"{layer}mlp.gate_proj", c.hidden_width, width)
    rows |= linear("decoder/layer/mlp/up", f"{layer}mlp.up_proj", c.hidden_width, width)
    rows |= linear("decoder/layer/mlp/down", f"{layer}mlp.down_proj", width, c.hidden_width)
    return rows


LLAMA = Family(
    name="llama",
    model_types=("llama",),
    decoder=_decoder,
    rows=_rows,
    layers="model.layers",
    embedding="model.embed_tokens.weight",
    buffers=(r"\.rotary_emb\.inv_freq$",),
)
