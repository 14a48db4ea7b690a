"""Stems of OK-VQA answers, as its annotations and OpenFlamingo have them; nothing is downloaded.

Plural nouns become singular and "-ing" forms become verbs. The original asks nltk's tagger and
WordNet which words are those; so does `make_stemmer` where nltk and its data are installed.
Elsewhere, a word's ending and a few lists decide.
"""

import functools
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

from flamingo_jax.evaluate.metrics.stemming_words import (
    EXCEPTIONS,
    IRREGULAR_PLURALS,
    NO_PLURALS,
    NO_VERBS,
    PLURAL_ENDINGS,
)
from flamingo_jax.evaluate.metrics.vqa import postprocess as cut

_TOKEN = re.compile(r"n't\b|'\w+|\w+(?=n't\b)|[\w-]+|[^\w\s]")
_VOWEL = re.compile("[aeiouy]")
_DOUBLED = re.compile(r"\w+?[aeiouy]([bdgkmnprtv])\1")  # "swimm"
_IE = re.compile("(?:under|be|un)?[ldtv]y")  # "lying"
# What an e was cut from: a short syllable ("bik"), or an ending that verbs do not have without it.
_CUT_E = re.compile(
    r"[^aeiou]*(?:[aeiouy]|qu[aeiou])[^aeiouywx]"
    r"|.*(?:[^aeiourlw]l|[rn]s|[aeiou]s|[rd]g|[aeiou]g|[^k]c|[uv]|z|th|[uv]ir|[^aeiou][iua]r"
    r"|(?:ch|[^bgh]r)ang|(?:l|o)ung|(?:h|cr|b)ing|(?:pl|st|sc|gn|sn|ch|ad)or|[^aeo]at|creat|[nvc]it"
    r"|[pl]et|[mv]ot|[bpcl]ut|[^aeo]id|[^a]ud|[^eo]ad|[^o]od|[^eo]ap|vok|com|sum|[^aeo]in)"
)


class Stemmer(NamedTuple):
    """`name` says which stemmer it is, for reports; `stem` gives the stems of a text's words."""

    name: str
    stem: Callable[[str], str]


@functools.cache
def make_stemmer() -> Stemmer:
    """Returns the tagger and WordNet of nltk, where they and their data are installed, else own
    rules."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nltk  # type: ignore[import-not-found, import-untyped, unused-ignore]
            from nltk.corpus import wordnet  # type: ignore[import-not-found, import-untyped, unused-ignore]

            nltk.pos_tag(["word"])
            wordnet.ensure_loaded()
    except (ImportError, LookupError):
        return Stemmer("built-in", lambda text: _stem(text, _plurals_by_ending, verb))
    lemmatizer = nltk.stem.WordNetLemmatizer()

    def plurals(words: list[str]) -> list[bool]:
        return [tag.startswith(("NNS", "NNPS")) for _, tag in nltk.pos_tag(words)]

    def to_verb(word: str) -> str:
        return lemmatizer.lemmatize(word, "v")

    name = f"nltk {nltk.__version__} with WordNet"
    return Stemmer(name, lambda text: _stem(text, plurals, to_verb))


def stem(text: str) -> str:
    """Returns the stems of a text's words, by the stemmer that `make_stemmer` finds."""
    return make_stemmer().stem(text)


def postprocess(generation: str) -> str:
    """Returns the answer in a generation, stemmed."""
    return stem(cut(generation))


def _stem(
    text: str, plurals: Callable[[list[str]], list[bool]], to_verb: Callable[[str], str]
) -> str:
    words = _TOKEN.findall(text)
    stems = []
    for word, plural in zip(words, plurals(words) if words else [], strict=True):
        if word in EXCEPTIONS:
            stems.append(EXCEPTIONS[word])
        elif word.endswith("ing"):
            stems.append(to_verb(word))
        else:
            stems.append(singular(word) if plural else word)
    return " ".join(stems)


def _plurals_by_ending(words: list[str]) -> list[bool]:
    return [
        w.lower() in IRREGULAR_PLURALS
        or w.endswith(("women", "smen", "remen", "cemen"))
        or (len(w) > 3 and w.endswith("s") and not w.endswith(("ss", "us", "is", "'s")))
        for w in words
    ]


def singular(word: str) -> str:
    """Returns the singular of a plural noun; a word that has no other form comes back."""
    lower = word.lower()
    if lower in NO_PLURALS:
        return word
    if lower in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[lower]
    for ending, replacement in PLURAL_ENDINGS:
        found, changes = re.subn(f"(?i){ending}$", replacement, word)
        if changes:
            return found
    return word


def verb(word: str) -> str:
    """Returns the verb of an "-ing" form; a word that is none ("string") is given back."""
    stem = word[: -len("ing")]
    lower = stem.lower()
    if word.lower() in NO_VERBS or len(stem) < 2 or not _VOWEL.search(lower):
        return word
    if _DOUBLED.fullmatch(lower):
        return stem[:-1]
    if _IE.fullmatch(lower):
        return stem[:-1] + "ie"
    return stem + "e" if _CUT_E.fullmatch(lower) else stem
