from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flamingo_jax.generate.texts import decoded, emittable_prefix


def test_a_growing_text_holds_back_half_a_character():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only)
    tokens = tokenizer("naïve 🦩").input_ids
    assert len(tokens) == 11
    grown = [emittable_prefix(decoded(tokenizer, tokens[:n]), ()) for n in range(1, 12)]
    assert grown == ["n", "na", "na", "naï", "naïv", "naïve", *["naïve "] * 4, "naïve 🦩"]
    assert decoded(tokenizer, tokens[:3]) == "na\N{REPLACEMENT CHARACTER}"


def test_what_may_begin_a_stop_string_is_held_back():
    assert emittable_prefix("A cat. Out", ["Output", "\n\n"]) == "A cat. "
    assert emittable_prefix("A cat.\n", ["Output", "\n\n"]) == "A cat."
    assert emittable_prefix("A cat.", ["Output"]) == "A cat."
