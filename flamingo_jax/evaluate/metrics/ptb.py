"""Penn Treebank tokens of captions, as caption metrics count them; no Java, nothing downloaded."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from flamingo_jax.evaluate.metrics import ptb_rules as r

# What pycocoevalcap leaves out. It compares lower-cased tokens with brackets in capitals, so that
# brackets stay; so do runs like "!!".
_LEFT_OUT = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_CURRENCIES = {"¢": "cents", "£": "#", "¤": "$", "€": "$", "₠": "$", "\x80": "$"}
_QUOTES = str.maketrans(
    dict.fromkeys("\u2019\u203a\x92", "'")
    | dict.fromkeys("\u2018\u201b\u2039\x91", "`")
    | dict.fromkeys("\u201d\xbb\x94", "''")
    | dict.fromkeys("\u201c\xab\x93", "``")
)


@dataclass(frozen=True)
class _Rule:
    source: str  # group 1 is the token, the rest is lookahead
    write: Callable[[str], str]
    keep: int | None  # characters that are used up, negative from the end

    @cached_property  # compiling them all takes a third of a second
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.source, re.IGNORECASE)


def _as_is(token: str) -> str:
    return token


def _quotes(token: str) -> str:
    return token.replace("&apos;", "'").translate(_QUOTES)


def _no_soft_hyphen(token: str) -> str:
    return token.replace("\u00ad", "")


def _entity(token: str) -> str:
    return token.replace("&amp;", "&")


def _parentheses(token: str) -> str:
    return token.replace(" ", "\u00a0").replace("(", "-LRB-").replace(")", "-RRB-")


def _constant(text: str) -> Callable[[str], str]:
    return lambda _: text


def _rule(
    token: str, write: Callable[[str], str] = _as_is, *, before: str = "", keep: int | None = None
) -> _Rule:
    return _Rule(f"({token})(?:{before})", write, keep)


_RULES = (
    _rule(r"c\+\+|[cf]#"),
    _rule("cannot", keep=3),
    _rule("'twas", keep=2),
    _rule("'tis", keep=-2),
    _rule("gonna|gotta|lemme|gimme|wanna", keep=3),
    _rule(r.TAG, lambda tag: tag.replace(" ", "\u00a0")),
    _rule("&(?:MD|mdash|ndash);|[\x96\x97\u2013\u2014\u2015]", _constant("--")),
    _rule("&amp;", _entity),
    _rule(r"&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#\d+);"),
    _rule(r.WORD, _no_soft_hyphen, before=r.CLITIC),
    _rule(r.BEFORE_NOT, _no_soft_hyphen, before=r.NOT),
    _rule(r.WORD, _no_soft_hyphen),
    _rule(r.APOSTROPHE_WORDS),
    _rule(f"y{r.APOS}", before=r.L),
    _rule(r.URL),
    _rule(r.SITE),
    _rule(r.EMAIL),
    _rule(r"@[a-zA-Z_][a-zA-Z_\d]*"),
    _rule(f"#{r.LETTER}+"),
    _rule(r.CLITIC, _quotes, before="(?-i:[^A-Za-z])"),
    _rule(r.NOT, _quotes, before="(?-i:[^A-Za-z])"),
    _rule(r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    _rule(r.NUMBER, _no_soft_hyphen),
    _rule("[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)"),
    _rule(r"(?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}", _parentheses),
    _rule("[¼½¾⅓-⅞]", lambda fraction: _FRACTIONS.get(fraction, fraction)),
    _rule(f"-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|C\\.D\\.s|pro-|anti-|S(?:&amp;|&)P-500|S(?:&amp;|&)Ls"
          f"|Cap{r.APOS}n|c{r.APOS}est", _entity),
    _rule(r.SLASHED),
    _rule(r"(?-i:[A-Z]*)\$|#"),
    _rule("[¢£¤€₠\x80]", lambda sign: _CURRENCIES[sign]),
    _rule(r"[A-Za-z]\.", before=rf"{r.END}+(?:{r.STARTERS}|{r.TAG}){r.END}", keep=-1),
    _rule(rf"(?:{r.BEFORE_NUMBERS})\.", before=rf"{r.END}?\d"),
    _rule(rf"(?:{r.ABBREVIATION})\.", before=r"(?s:..)?"),
    _rule(rf"(?:{r.TITLE}|{r.ACRONYM})\."),
    _rule(f"{r.ACRONYM}", before=r.END),
    _rule(rf"{r.APOS}\d\d", before=r.END),
    _rule(r.FILE, before=rf'(?:{r.END}|[.?!,"<])'),
    _rule(rf"{r.WORD}\.", _no_soft_hyphen, before="[,;:\u3001]"),
    _rule(r.PHONE, _parentheses),
    _rule('"|&quot;', _constant("''")),
    _rule("<|&lt;", _constant("<")),
    _rule(">|&gt;", _constant(">")),
    _rule(r.SMILEY, _parentheses, before=r"[^A-Za-z\d]"),
    _rule(r.ASIAN_SMILEY, _parentheses),
    _rule(r"[(){}\[\]]", lambda bracket: _BRACKETS[bracket]),
    _rule("-+", lambda dashes: "--" if len(dashes) in (3, 4) else dashes),
    _rule(r"\.\.\.+|[\x85\u2026]|\.(?:[ \u00a0]\.){2,}", _constant("...")),
    _rule("@+|#+|_+"),
    _rule(r"\*+|(?:\\\*){1,3}"),
    _rule("[,;:\u3001]"),
    _rule("[?!]+"),
    _rule("[.¡¿\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002]"),
    _rule("="),
    _rule("/"),
    _rule(rf"(?:{r.HYPHENATED})\.", _no_soft_hyphen, before="[,;:\u3001]"),
    _rule(r.HYPHENATED, _no_soft_hyphen),
    _rule(rf"(?:{r.THING})\.", before="[,;:\u3001]"),
    _rule(r.THING),
    _rule(rf"(?:{r.INITIALS})\.", _entity, before="[,;:\u3001]"),
    _rule(r.INITIALS, _entity),
    _rule("'", _constant("`"), before=r"(?-i:[A-Za-z])[^ \t\n\r\u00a0]"),
    _rule(r.CLITIC, _quotes),
    _rule(r.QUOTES, _quotes),
    _rule(r.NOT, _quotes),
    _rule("<<|>>"),
    _rule(r.SYMBOL),
)  # fmt: skip

_SKIPPED = re.compile(f"(?:{r.END}|&nbsp;|[\u200b\u200e\u200f\ufeff\\x00])+", re.IGNORECASE)
_PLAIN = re.compile("([A-Za-z]+)[ \n]")
_TAKEN_APART = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])


def tokens(text: str) -> list[str]:
    """Returns the Penn Treebank tokens of `text`, lower-cased, punctuation included; emoji are
    dropped."""
    text += "\n"  # some rules look at what follows a word
    found: list[str] = []
    position = 0
    while position < len(text):
        if skipped := _SKIPPED.match(text, position):
            position = skipped.end()
        elif (plain := _PLAIN.match(text, position)) and plain[1].lower() not in _TAKEN_APART:
            found.append(plain[1].lower())
            position = plain.end()
        else:
            token, length = _furthest(text, position)
            position += length
            if token:  # a lone soft hyphen is an empty word
                found.append(token.lower())
    return found


def _furthest(text: str, position: int) -> tuple[str | None, int]:
    """Returns the token that starts at `position`, and how many characters it uses.

    The rule that reads furthest wins, its lookahead counted; of equally long ones the first.
    """
    best, reach = None, position
    for rule in _RULES:
        if (match := rule.pattern.match(text, position)) and match.end() > reach:
            best, reach = (rule, match[1]), match.end()
    if best is None:
        return None, 1
    rule, token = best
    used = token[: rule.keep]
    return rule.write(used), len(used)


def tokenize(caption: str) -> str:
    """Returns a caption as metrics count it: lower-case tokens without punctuation, joined by
    spaces."""
    return " ".join(token for token in tokens(caption) if token not in _LEFT_OUT)
