"""How others score captions and answers: the peers of `benchmarks.evaluation`.

CIDEr is pycocoevalcap's own, and so is the Java program that makes its tokens. VQA accuracy is
written down here as its authors define it, one human answer after another.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

INSTALL = "pip install --no-deps pycocoevalcap"
Captions = Mapping[int, str]
References = Mapping[int, Sequence[str]]

PUNCTUATION = (
    ";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",",
    "?", "!",
)  # fmt: skip
DIGITS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = ("a", "an", "the")
CONTRACTIONS = {"dont": "don't", "isnt": "isn't", "cant": "can't"}  # those of the made answers


def cider() -> Callable[[Captions, References], list[float]] | None:
    """Returns CIDEr of each caption, whose tokens are parted by spaces; None: not installed."""
    try:
        from pycocoevalcap.cider.cider import Cider
    except ModuleNotFoundError:
        return None

    def score(captions: Captions, references: References) -> list[float]:
        of_image = {key: list(texts) for key, texts in references.items()}
        return Cider().compute_score(of_image, {key: [text] for key, text in captions.items()})[1]

    return score


def tokenizer() -> Callable[[Sequence[str]], list[str]] | None:
    """Returns the tokens of captions, parted by spaces; None: it, or Java, is not installed."""
    try:
        from pycocoevalcap.tokenizer import ptbtokenizer
    except ModuleNotFoundError:
        return None
    java = shutil.which("java")
    if java is None:
        return None
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    program = "edu.stanford.nlp.process.PTBTokenizer"
    command = [java, "-cp", str(jar), program, "-preserveLines", "-lowerCase"]

    def tokenize(captions: Sequence[str]) -> list[str]:
        text = "\n".join(captions)
        ran = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        return [
            " ".join(word for word in line.split() if word not in ptbtokenizer.PUNCTUATIONS)
            for line in ran.stdout.splitlines()
        ]

    return tokenize


def normalize(answer: str) -> str:
    """https://visualqa.org/evaluation.html, the oddities of the authors' program included."""
    text = answer
    for sign in PUNCTUATION:
        if sign + " " in answer or " " + sign in answer or re.search(r"\d,\d", answer):
            text = text.replace(sign, "")
        else:
            text = text.replace(sign, " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = []
    for word in text.lower().split():
        digit = DIGITS.get(word, word)
        if digit not in ARTICLES:
            words.append(CONTRACTIONS.get(digit, digit))
    return " ".join(words)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """In [0, 1]: for each human, how many of the others agree, a third for each and at most 1."""
    prediction = normalize(prediction)
    humans = [(number, normalize(answer)) for number, answer in enumerate(answers)]
    accuracies = []
    for human in humans:
        others = [other for other in humans if other != human]
        matching = [other for other in others if other[1] == prediction]
        accuracies.append(min(1.0, len(matching) / 3))
    return sum(accuracies) / len(accuracies)
