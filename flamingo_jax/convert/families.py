"""The language-model families that can be imported."""

from flamingo_jax.convert.family import Family, LMConfig
from flamingo_jax.convert.gpt_neox import GPT_NEOX
from flamingo_jax.convert.llama import LLAMA
from flamingo_jax.convert.mpt import MOSAIC_GPT, MPT
from flamingo_jax.convert.opt import OPT
from flamingo_jax.errors import UserError

FAMILIES = (MPT, MOSAIC_GPT, GPT_NEOX, OPT, LLAMA)


def family_of(config: LMConfig) -> Family:
    """Finds the family of a config.json. UserError: none has its `model_type`."""
    for family in FAMILIES:
        if config.get("model_type") in family.model_types:
            return family
    known = ", ".join(sorted(t for family in FAMILIES for t in family.model_types))
    raise UserError(
        f"config.json has model_type {config.get('model_type')!r}, which no family here has; "
        f"known: {known}"
    )
