"""The tiny language of the embedded digits: what captions say, and names that mean nothing."""

from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = (
    "blicket", "dax", "wug", "toma", "zorp", "fep", "gazzer", "koba", "lorp", "mib",
    "nuz", "pim", "quav", "rulb", "sep", "tiv", "vash", "yom", "zib", "kiki",
)  # fmt: skip
PROMPT = "a handwritten"  # what every caption begins with
NUM_POSES = 16  # quarter turns × mirrored × inverted


def caption(digit: int, pose: int = 0) -> str:
    """Says what a scan shows: its digit, then how it is turned."""
    turned = ("", " turned left", " upside down", " turned right")[pose % 4]
    mirrored, inverted = " mirrored" * (pose // 4 % 2), " inverted" * (pose // 8)
    return f"{PROMPT} {WORDS[digit]}{turned}{mirrored}{inverted}"


def tokenizer() -> Tokenizer:
    """Makes a tokenizer with one token per word of the demo's tiny language."""
    captions = " ".join(caption(digit, pose) for digit in range(10) for pose in range(NUM_POSES))
    words = dict.fromkeys(["</s>", *captions.split(), *NAMES])
    vocab = {word: index for index, word in enumerate(words)}
    words_only = Tokenizer(models.WordLevel(vocab, unk_token="</s>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words_only.add_special_tokens(["</s>"])
    return words_only
