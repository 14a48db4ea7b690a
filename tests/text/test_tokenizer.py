import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.text import digit_words
from flamingo_jax.text.special_tokens import SpecialTokens
from flamingo_jax.text.tokenizer import grow_tokenizer, load_tokenizer, load_transformers_tokenizer
from tests.golden_root import COMMITTED

VOCAB_SIZE = 40


def test_tokenizers_that_do_not_fit_the_model_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"ids \(40, 41\).*set decoder.vocab_size to 40"):
        load_tokenizer("digits", 50)
    with pytest.raises(UserError, match=r"neither 'digits' nor a tokenizer\.json"):
        load_tokenizer(str(tmp_path / "none.json"), 50)


def test_a_saved_tokenizer_loses_its_truncation_and_padding(tmp_path):
    saved = digit_words.tokenizer()
    saved.enable_truncation(2)
    saved.enable_padding(length=9)
    saved.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"), VOCAB_SIZE)
    text = "<image>dax<|endofchunk|><image>"
    assert loaded.encode(text) == load_tokenizer("digits", VOCAB_SIZE).encode(text)


def test_a_grown_tokenizer_has_the_same_special_tokens_in_both_libraries(tmp_path):
    grown = load_transformers_tokenizer(COMMITTED / "openflamingo/mpt/tokenizer")
    special = grow_tokenizer(grown)
    assert isinstance(special, SpecialTokens)
    grown.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"), special.end_of_chunk)
    assert loaded.special == special
