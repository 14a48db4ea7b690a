"""The template of the papers: `<image>` for each image, `<|endofchunk|>` after each chunk.

Training data, prompts to generate from and evaluation all take their text from here.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding

from flamingo_jax.errors import UserError
from flamingo_jax.text.documents import Document, Text
from flamingo_jax.text.special_tokens import END_OF_CHUNK, IMAGE, SpecialTokens


def strip_marks(text: str) -> str:
    """Removes the marks that only the template may set: they would stand for images."""
    return text.replace(IMAGE, "").replace(END_OF_CHUNK, "")


def render(parts: Iterable[Any]) -> str:
    """Returns the text of parts, in which all but `Text` are images: `<image>` for each of them,
    and `<|endofchunk|>` before every one but the first."""
    return "".join(piece.text for piece in _marked(parts))


def training_pieces(document: Document, end_of_text: str) -> list[Text]:
    """Splits the text of a row to train on into its marks and texts, each learnt or not.

    `<|endofchunk|>` and `end_of_text` end it. `<image>` is never learnt; `<|endofchunk|>` is
    learnt where the part that it follows is: an image, or a text that is learnt.
    """
    learn = _learnt(document.parts[-1]) if document.parts else document.learn_ends
    ends = Text(END_OF_CHUNK, learn), Text(end_of_text, document.learn_ends)
    return [*_marked(document.parts), *ends]


def _marked(parts: Iterable[Any]) -> list[Text]:
    pieces: list[Text] = []
    before: Any = None
    seen_image = False
    for part in parts:
        if isinstance(part, Text):
            pieces.append(part)
        else:
            if seen_image:
                pieces.append(Text(END_OF_CHUNK, _learnt(before)))
            pieces.append(Text(IMAGE, learn=False))
            seen_image = True
        before = part
    return pieces


def _learnt(part: Any) -> bool:
    return part.learn if isinstance(part, Text) else True


def learn_flags(
    pieces: Sequence[Text],
    encoding: Encoding,
    ids: np.ndarray,
    special: SpecialTokens,
    *,
    learn_begin: bool,
) -> np.ndarray:
    """Tells of each token whether it is learnt: bool (L,).

    No token reaches across a mark. Where the text between two marks is learnt in part, a token is
    learnt if any of its characters is, so that the first token of an answer is learnt though it
    begins with the question's last blank.

    Args:
      pieces: from `training_pieces`.
      encoding: of their texts, joined and encoded at once.
      ids: its first L ids.
      special: whose ids the marks have.
      learn_begin: whether a begin token that the tokenizer sets before a mark is learnt.
    """
    marks, texts = [False], [False]  # a flag for each mark, and for the text behind each
    mixed: list[int] = []  # which of the texts are learnt in part
    empty = True
    for piece in pieces:
        if piece.text in (IMAGE, END_OF_CHUNK):
            if len(marks) == 1 and empty:
                texts[0] = learn_begin
            marks.append(piece.learn)
            texts.append(False)
            empty = True
            continue
        if not empty and piece.learn != texts[-1]:
            mixed.append(len(texts) - 1)
        texts[-1] = piece.learn
        empty = False
        # Marks that a text spells itself; `check_image_count` refuses them where they matter.
        own = piece.text.count(IMAGE) + piece.text.count(END_OF_CHUNK)
        marks += [piece.learn] * own
        texts += [piece.learn] * own
    is_image = ids == special.image
    is_mark = is_image | (ids == special.end_of_chunk)
    # Two pieces may spell a mark together, too.
    place = np.minimum(np.cumsum(is_mark), len(marks) - 1)
    learn = np.where(is_mark, np.array(marks)[place], np.array(texts)[place]) & ~is_image
    if mixed:
        inside = np.isin(place, mixed) & ~is_mark
        learn[inside] = _touched(pieces, encoding)[: len(ids)][inside]
    return learn


def _touched(pieces: Sequence[Text], encoding: Encoding) -> np.ndarray:
    """Tells of each token whether any of its characters is learnt."""
    learn = np.repeat([piece.learn for piece in pieces], [len(piece.text) for piece in pieces])
    learnt_before = np.concatenate([[0], np.cumsum(learn)])
    starts, stops = np.array(encoding.offsets).T
    # Byte-level tokenizers trim blanks: a token of nothing else ends where it began.
    starts = np.minimum(starts, np.maximum(stops - 1, 0))
    return learnt_before[stops] > learnt_before[starts]


def prompt_text(parts: Sequence[Any]) -> str:
    """Returns the text of a prompt's parts, in which all but strings are images.

    An `<|endofchunk|>` that a part already ends with, as those of `join` do, is not set twice.
    """
    own: list[Any] = []
    seen_image = False
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        if not isinstance(part, str):
            seen_image = True
            own.append(part)
        elif seen_image and not isinstance(following, str):
            own.append(Text(part.removesuffix(END_OF_CHUNK)))
        else:
            own.append(Text(part))
    return render(own)


def join(examples: Sequence[Any], prompt: Sequence[Any]) -> list[Any]:
    """Joins few-shot examples and the prompt to one list of parts, `<|endofchunk|>` between them.

    Raises:
      UserError: an example is no list of parts.
    """
    parts: list[Any] = []
    for example in examples:
        if isinstance(example, str) or not isinstance(example, list | tuple):
            raise UserError(
                f"{example!r:.80} is no example: each is a pair, as in (picture, 'A cat.')"
            )
        parts += [*_end(parts), *example]
    return [*parts, *(_end(parts) if prompt else []), *prompt]


def _end(chunk: Sequence[Any]) -> list[str]:
    """Returns the mark that ends what stands before, unless it is there."""
    ended = not chunk or (isinstance(chunk[-1], str) and chunk[-1].endswith(END_OF_CHUNK))
    return [] if ended else [END_OF_CHUNK]


def few_shot_text(
    demonstrations: Iterable[tuple[bool, str]], asked: tuple[bool, str], separator: str
) -> str:
    """Returns the text of an evaluation's prompt, of (whether an image stands before it, text)."""
    shown = [f"{_with_image(*chunk)}{END_OF_CHUNK}{separator}" for chunk in demonstrations]
    return "".join(shown) + _with_image(*asked)


def _with_image(has_image: bool, text: str) -> str:
    return IMAGE * has_image + strip_marks(text)
