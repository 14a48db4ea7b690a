"""VQA accuracy: an answer against ten human ones (https://visualqa.org/evaluation.html)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

Mode = Literal["standard", "openflamingo", "official"]

_NUMBERS = {
    word: str(number)
    for number, words in enumerate(
        ("none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
    for word in words.split()
}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = 32  # the original passes a flag where the count belongs
# Spellings that lack one apostrophe of these are corrected.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
    hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
    who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""
_CORRECTED = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTIONS.split()
    for i, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # the original's table has this pair the wrong way round


def normalize(answer: str) -> str:
    """Returns an answer as it is compared: lower case, digits, without articles and punctuation.

    The original's oddities are kept: whether a sign becomes a space or nothing depends on the rest
    of the answer, and only the first 32 periods are removed.
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    text = answer
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in answer or f" {sign}" in answer
        removed = beside_space or _COMMA_IN_NUMBER.search(answer) is not None
        text = text.replace(sign, "" if removed else " ")
    text = _PERIOD.sub("", text, count=_PERIODS_REMOVED)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CORRECTED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(
    prediction: str, answers: Sequence[str | Mapping[str, Any]], mode: Mode = "standard"
) -> float:
    """Returns the accuracy of one prediction in [0, 1].

    Each human answer in turn is left out; the prediction is as right as a third of the others that
    agree with it, at most 1. The mean over the answers left out.

    Args:
      prediction: the model's answer, after `postprocess`.
      answers: the human answers (ten): texts, or the annotation file's records, whose `answer` is
        the text. Texts are taken for distinct records.
      mode: "standard" is the definition: everything is normalized, and what is left out is one
        answer. "openflamingo" leaves out every answer with an equal record, as OpenFlamingo does:
        scores drop where records have no `answer_id` (VizWiz). "official" is the VQA authors' code:
        as openflamingo, but nothing is normalized where all humans give the same answer.

    Raises:
      ValueError: no answers, or an unknown mode.
    """
    if not answers or mode not in get_args(Mode):
        raise ValueError(f"expected answers and one of {get_args(Mode)}, got {answers!r}, {mode!r}")
    texts = [_stripped(a if isinstance(a, str) else a["answer"]) for a in answers]
    if mode == "official" and len(set(texts)) == 1:
        prediction = _stripped(prediction)
    else:
        prediction, texts = normalize(prediction), [normalize(text) for text in texts]
    records: list[Any] = list(range(len(texts)))
    if mode != "standard":
        records = [
            i if isinstance(answer, str) else {**answer, "answer": text}
            for i, (answer, text) in enumerate(zip(answers, texts, strict=True))
        ]
    matches = [
        sum(
            text == prediction
            for text, other in zip(texts, records, strict=True)
            if other != left_out
        )
        for left_out in records
    ]
    return sum(min(1.0, m / 3) for m in matches) / len(matches)


def postprocess(generation: str) -> str:
    """Returns the answer in a generation: what stands before the next question, or before a
    comma."""
    return re.split("Question|Answer|Short", generation, maxsplit=1)[0].split(", ", 1)[0]


def _stripped(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
