"""How OpenFlamingo renames the tensors of the language model it wraps."""

import re

from flamingo_jax.convert.family import Family


def wrap(family: Family, name: str) -> str:
    """A language model's tensor (or row name, with "{i}") as OpenFlamingo calls it."""
    layers = re.escape(family.layers)
    return "lang_encoder." + re.sub(rf"^({layers}\.[^.]+)\.", r"\1.decoder_layer.", name)


def unwrap(family: Family, name: str) -> str:
    """The inverse of `wrap`."""
    layers = re.escape(family.layers)
    return re.sub(
        rf"^({layers}\.[^.]+)\.decoder_layer\.", r"\1.", name.removeprefix("lang_encoder.")
    )


def canonical(family: Family, name: str) -> str:
    """One name for each tensor: without "module.", and with the lists that repeat the decoder
    layers and cross-attentions replaced by the layers themselves.
    """
    name = re.sub(r"^module\.", "", name)
    layers = f"lang_encoder.{family.layers}"
    for theirs, ours in (
        ("old_decoder_blocks", "decoder_layer"),
        ("gated_cross_attn_layers", "gated_cross_attn_layer"),
    ):
        name = re.sub(rf"^lang_encoder\.{theirs}\.(\d+)\.", rf"{layers}.\1.{ours}.", name)
    return name


def aliases(family: Family, name: str) -> list[str]:
    """Further names under which OpenFlamingo's `state_dict()` lists this tensor."""
    match = re.match(
        rf"lang_encoder\.{re.escape(family.layers)}\.(\d+)\.(decoder_layer|gated_cross_attn_layer)\.",
        name,
    )
    if not match:
        return []
    lists = {
        "decoder_layer": "old_decoder_blocks",
        "gated_cross_attn_layer": "gated_cross_attn_layers",
    }
    return [f"lang_encoder.{lists[match[2]]}.{match[1]}.{name[match.end() :]}"]
