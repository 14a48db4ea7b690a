"""What is one token of English text by the conventions of the Penn Treebank.

These patterns describe the tokenizer that caption metrics are defined with (CoreNLP 3.4.1, as
pycocoevalcap calls it); `ptb.py` says how they act together. They are read without regard to case.
"""

import unicodedata
from collections.abc import Callable


def _exactly(characters: str) -> str:
    """Returns a set of characters that does not ignore case."""
    return f"(?-i:[{characters}])"


def _runs(belongs: Callable[[str], bool]) -> str:
    """Returns the characters of the basic plane for which `belongs`, as the inside of a set."""
    runs: list[list[str]] = []
    for character in filter(belongs, map(chr, range(0x10000))):
        if runs and ord(character) == ord(runs[-1][1]) + 1:
            runs[-1][1] = character
        else:
            runs.append([character, character])
    return "".join(f"{first}-{last}" for first, last in runs)


END = "[ \\t\u00a0\u2000-\u200a\u3000\\r\\n\u2028\u2029\\x0b\\x0c\\x85]"
_ALPHA = _runs(lambda c: unicodedata.category(c).startswith("L"))
# Accents, and the marks of scripts from Hebrew to Lao, stand inside of words.
_MARKS = _runs(lambda c: "\u02c2" <= c < "\u0ece" and unicodedata.category(c) in ("Mn", "Mc", "Sk"))
L = f"[{_ALPHA}]"
LETTER = f"(?:[{_ALPHA}{_MARKS}\u00ad]|&[aeiou](?:acute|grave|uml);)"
LETTER_DIGIT = rf"(?:[{_ALPHA}{_MARKS}\d\u00ad]|&[aeiou](?:acute|grave|uml);)"
ALNUM = rf"[{_ALPHA}\d]"
WORD = f"{LETTER}{LETTER_DIGIT}*(?:[.!?]{LETTER}{LETTER_DIGIT}*)*"

APOS = "(?:['\x92\u2019]|&apos;)"
APOS_ETC = "(?:['\x92\u2019`\x91\u2018\u201b]|&apos;)"
HYPHEN = "[-_\u058a\u2010\u2011]"
QUOTES = f"(?:''|[`\u2018-\u201f\x82\x84\x91-\x94\u2039\u203a\u00ab\u00bb]{{1,2}}|{APOS})"
CLITIC = f"{APOS}(?:[msd]|re|ve|ll)"
NOT = f"n{APOS_ETC}t"
BEFORE_NOT = "[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*"
_FRENCH = f"(?:[dol]{APOS_ETC}{ALNUM})?"
THING = f"{_FRENCH}{ALNUM}+(?:{HYPHEN}{_FRENCH}{ALNUM}+)*"
INITIALS = f"{_exactly('A-Z')}+(?:(?:[+&]|&amp;){_exactly('A-Z')}+)+"
SLASHED = r"[A-Za-z\d]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z\d]+(?:-[A-Za-z]+){0,2}){1,2}"
NUMBER = r"[-+]?(?:\d*(?:[.:,\u00ad\u066b\u066c]\d+)+|\d+)"

_PLACES = r"(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-U\.K|U\.S\.-U\.S\.S\.R"
_ASCII = _exactly("A-Za-z")
_INITIALS = rf"(?:{_PLACES}|{_ASCII}(?:\.{_ASCII})+)"
ACRONYM = rf"(?:{_PLACES}|{_ASCII}(?:\.{_ASCII})*)"
HYPHENATED = rf"[A-Za-z\d][A-Za-z\d.,\u00ad]*(?:-(?:{_INITIALS}\.|[A-Za-z\d\u00ad]+))+"


def _capital(words: str) -> str:
    """Returns the words whose first letter must be a capital, as alternatives."""
    return "|".join(f"{_exactly(w[0])}{w[1:]}" for w in words.split())


_DATES = "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thu|Thurs|Fri"
_STATES = (
    "Ala|Ariz|Calif|Colo|Conn|Ct|Dak|Fla|Ga|Ind|Kans?|Ky|Md|Mich|Minn|Mo|Mont|Neb|Nev|Okla|Penn|Tenn"
    "|Va|Vt|Wisc?|Wyo|" + _capital("Az Ark Del Ill La Mass Miss Ore Pa Tex Wash")
)
_COMPANIES = "Inc|Cos?|Corp|Pp?t(?-i:[ye])s?|Ltd|Plc|Rt|Bancorp|Bhd|Assn|Univ|Intl|Sys"
_OTHERS = r"tel|est|ext|sq|Jr|Sr|Bros|Blvd|Rd|Ed\.D|Ph\.D|Esq|etc|al|seq|Bldg"
ABBREVIATION = f"{_DATES}|{_STATES}|{_COMPANIES}|{_OTHERS}"
TITLE = (
    "Mr|Mrs|Ms|Drs?|Profs?|Sens?|Reps?|Attys?|Lt|Col|Gen|Messrs|Govs?|Adm|Rev|Maj|Sgt|Cpl|Pvt|Capt"
    "|Ste?|Ave|Pres|Lieut|Hon|Brig|Co?mdr|Pfc|Spc|Supts?|Det|Mt|Ft|Adj|Adv|Asst|Assoc|Ens|Insp|Mlle|Mme"
    r"|Msgr|Sfc|vs|Alex|Wm|Jos|Cie|a\.k\.a|cf|TREAS|Ph|Invt|Elec|Natl|M(?-i:[ft])g|Dept"
)
BEFORE_NUMBERS = "ca|figs?|prop|nos?|art|pp|op"
# After one of these a single letter with a period has ended a sentence.
STARTERS = _capital(
    "About According Additionally After An A As At But Earlier He Her Here However If In It Last "
    "Many More Now Once One Other Our She Since So Some Such That The Their Then There These They "
    "This We When While What Yet You"
)
_NAME = r"[A-Za-z][A-Za-z\d_:.-]*"
_ATTRIBUTE = rf"""(?:{_NAME} *= *(?:'[^'\r\n]*'|"[^"\r\n]*")|{_NAME})"""
TAG = rf"<(?:[!?][A-Za-z-][^>\r\n]*|{_NAME}(?: +{_ATTRIBUTE})* */?|/{_NAME}) *>"
APOSTROPHE_WORDS = "|".join(
    (
        f"{APOS}n{APOS}?",
        f"[ldj]{APOS}",
        f"(?:Dunkin|somethin|ol){APOS}",
        f"{APOS}(?:em|[2-9]0s|till?|cause)",
        f"{_exactly('A-HJ-XZn')}{APOS_ETC}{L}{{2,}}",
        f"{L}+{_exactly('aeiouyAEIOUY')}{APOS_ETC}{_exactly('aeiouA-Z')}{L}*",
        r"cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l",
        f"O{APOS_ETC}o",
    )
)
URL = r"""https?://[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},-]"""
_SITE = r"""(?-i:[^ \t\n\f\r"`'<>|.!?(){},-_$])+\."""
_REST = r"""(?:/[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},-])?"""
SITE = (
    r"""(?:www\.(?:[^ \t\n\f\r"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}|(?:"""
    + _SITE
    + ")+(?:com|net|org|edu))"
    + _REST
)
EMAIL = (
    r"""(?:&lt;|<)?[a-zA-Z\d][^ \t\n\f\r"<>|()\u00a0{}]*@"""
    r"""(?:[^ \t\n\f\r"<>|(){}.\u00a0]+\.)*[^ \t\n\f\r"<>|(){}.\u00a0]+(?:&gt;|>)?"""
)
PHONE = (
    r"(?:(?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])"
    r"\d{3,4}[- \u00a0]?\d{3,5}|(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})"
)
FILE = (
    r"[A-Za-z\d]+(?:\.[A-Za-z\d]+)*\.(?:bat|bmp|class|cgi|cpp|docx?|dll|exe|gif|gz|html?|jar|java|jpe?g"
    r"|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|wav|xml|zip|[chx])"
)
SYMBOL = (
    r"[%&+\\^|~\u00a5-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00d7\u00f7\u0387\u05be\u05c0\u05c3\u05c6"
    "\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u066a\u066d\u0703-\u070d\u07f6-\u07f8\u0964"
    "\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u207a-\u207e"
    "\u208a-\u208e\u20a4\u2100-\u214f\u2190-\u2bff\u3001\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    "\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6]"
)
SMILEY = r"(?-i:[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])"
ASIAN_SMILEY = (
    r"(?-i:[\^x=~<>]\.\[\^x=~<>]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)"
    r"|\([\^x=~<>']-[\^x=~<>'`]\))"
)
