"""How OpenFlamingo renames the tensors of the language model it wraps."""

import re

from flamingo_jax.convert.family import Family


def wrap(family: Family, name: str) -> str:
    """Returns OpenFlamingo's name of a language model's tensor ("{i}" may stand for the layer)."""
    layers = re.escape(family.layers)
    return "lang_encoder." + re.sub(rf"^({layers}\.[^.]+)\.", r"\1.decoder_layer.", name)


def unwrap(family: Family, name: str) -> str:
    """Inverts `wrap`."""
    layers = re.escape(family.layers)
    return re.sub(
        rf"^({layers}\.[^.]+)\.decoder_layer\.", r"\1.", name.removeprefix("lang_encoder.")
    )


def canonical(family: Family, name: str) -> str:
    """Returns one name for each tensor: without "module.", and with the layers themselves in the
    place of the lists that repeat decoder layers and cross-attentions.
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
    """Returns further names under which OpenFlamingo's `state_dict()` lists this tensor."""
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
