"""Which language a response is in: by its script where that decides, else by py3langid.

Bengali, Thai, Telugu, Japanese and the like have a script of their own; for Latin, Cyrillic, Arabic and Devanagari
py3langid (extra ``gate``; 139 languages, numpy only, its model in the wheel) chooses among those of `languages`. Of the
first 100 MSVAMP questions in each of en de es fr sw it names all, and at least 98 from their first 40 characters.
"""

import unicodedata
from collections import Counter
from functools import cache
from typing import Any

from slamkern.errors import SlamkernError

UNKNOWN = "unknown"
MIN_LETTERS = 12  # "x = 18" is in no language

# The first word of a character's Unicode name -> the language, where the script decides.
_SCRIPTS = {
    "BENGALI": "bn", "THAI": "th", "TELUGU": "te", "TAMIL": "ta", "KANNADA": "kn", "MALAYALAM": "ml", "GUJARATI": "gu",
    "GURMUKHI": "pa", "MYANMAR": "my", "GEORGIAN": "ka", "GREEK": "el", "HEBREW": "he", "HANGUL": "ko",
    "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh",
}  # fmt: skip
_SHARED = {
    "LATIN": "ca cs da de en es et eu fi fr gl hr hu id is it lt lv ms nl no pl pt ro sk sl sq sv sw tl tr vi yo zu",
    "CYRILLIC": "bg kk ru sr uk",
    "ARABIC": "ar fa ur",
    "DEVANAGARI": "hi mr ne",
}


def response_language(text: str) -> str:
    """ISO 639-1 code of the language most of the letters are in; ``unknown`` below 12 letters.

    SlamkernError where the script is shared by languages and py3langid is not installed.
    """
    letters = [character for character in text if character.isalpha()]
    if len(letters) < MIN_LETTERS:
        return UNKNOWN
    scripts = Counter(_script(character) for character in letters)
    # Japanese writes most of its letters with Chinese ones; Chinese has no kana at all.
    kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
    if kana and kana + scripts["CJK"] > len(letters) / 2:
        return "ja" if kana >= 0.05 * (kana + scripts["CJK"]) else "zh"
    script, _ = scripts.most_common(1)[0]
    if script in _SCRIPTS:
        return _SCRIPTS[script]
    if script not in _SHARED:
        return UNKNOWN
    # Formulas and names in another script would mislead an identifier of bytes.
    words = "".join(c if not c.isalpha() or _script(c) == script else " " for c in text)
    return str(_identifier(script).classify(words)[0])


@cache
def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]


@cache
def _identifier(script: str) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise SlamkernError(
            f"telling the languages in {script.title()} script apart needs py3langid: pip install 'slamkern[gate]'"
        ) from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(_SHARED[script].split())
    return identifier
