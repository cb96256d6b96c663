"""The languages that prompts can name, by ISO 639-1 code."""

import difflib
from dataclasses import dataclass

from slamkern.errors import SlamkernError


@dataclass(frozen=True)
class Language:
    """A language: its ISO 639-1 ``code`` and its English ``name`` as prompts print it."""

    code: str
    name: str


LANGUAGES: dict[str, Language] = {
    code: Language(code, name)
    for code, name in (
        ("ar", "Arabic"), ("bg", "Bulgarian"), ("bn", "Bengali"), ("ca", "Catalan"), ("cs", "Czech"),
        ("da", "Danish"), ("de", "German"), ("el", "Greek"), ("en", "English"), ("es", "Spanish"),
        ("et", "Estonian"), ("eu", "Basque"), ("fa", "Persian"), ("fi", "Finnish"), ("fr", "French"),
        ("gl", "Galician"), ("gu", "Gujarati"), ("he", "Hebrew"), ("hi", "Hindi"), ("hr", "Croatian"),
        ("hu", "Hungarian"), ("id", "Indonesian"), ("is", "Icelandic"), ("it", "Italian"), ("ja", "Japanese"),
        ("ka", "Georgian"), ("kk", "Kazakh"), ("kn", "Kannada"), ("ko", "Korean"), ("lt", "Lithuanian"),
        ("lv", "Latvian"), ("ml", "Malayalam"), ("mr", "Marathi"), ("ms", "Malay"), ("my", "Burmese"),
        ("ne", "Nepali"), ("nl", "Dutch"), ("no", "Norwegian"), ("pa", "Punjabi"), ("pl", "Polish"),
        ("pt", "Portuguese"), ("ro", "Romanian"), ("ru", "Russian"), ("sk", "Slovak"), ("sl", "Slovenian"),
        ("sq", "Albanian"), ("sr", "Serbian"), ("sv", "Swedish"), ("sw", "Swahili"), ("ta", "Tamil"),
        ("te", "Telugu"), ("th", "Thai"), ("tl", "Tagalog"), ("tr", "Turkish"), ("uk", "Ukrainian"),
        ("ur", "Urdu"), ("vi", "Vietnamese"), ("yo", "Yoruba"), ("zh", "Chinese"), ("zu", "Zulu"),
    )
}  # fmt: skip


def language(code: str) -> Language:
    """The language of a code; an unknown one is refused with the nearest known codes."""
    if code in LANGUAGES:
        return LANGUAGES[code]
    by_name = {entry.name.lower(): entry.code for entry in LANGUAGES.values()}
    near = [by_name[name] for name in difflib.get_close_matches(code.lower(), by_name, n=3)]
    near += [close for close in difflib.get_close_matches(code.lower(), LANGUAGES, n=3) if close not in near]
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; known: {' '.join(LANGUAGES)}"
    raise SlamkernError(f"unknown language {code!r}{hint}")
