"""The number in a model's output, by two rules.

``extract_answer`` is the rule of MathOctopus and QAlign, to the letter, so that scores compare with published ones:
delete a comma between digits, take the last ``\\d+(\\.\\d+)?``, 0.0 where there is none. It knows no signs, fractions
or decimal commas. ``extract_answer_strict`` reads numbers as people write them and is reported beside it.
"""

import re
import unicodedata

TOLERANCE = 1e-3


def extract_answer(text: str) -> float:
    """The last number of ``text`` by the MathOctopus/QAlign rule; 0.0 if there is none.

    As upstream, one pass deletes the commas (``1,2,3`` becomes ``12,3``), and any Unicode digit is a digit.
    """
    joined = re.sub(r"(\d),(\d)", r"\1\2", text)
    numbers = re.findall(r"\d+(?:\.\d+)?", joined)
    return float(numbers[-1]) if numbers else 0.0


def is_correct(prediction: float | None, gold: float) -> bool:
    """Whether the prediction is within 1e-3 of the gold answer (None never is)."""
    return prediction is not None and abs(prediction - gold) <= TOLERANCE


# What comes before a final answer, in English and in the languages of MGSM and MSVAMP.
_MARKER = re.compile(
    r"####|\\boxed\{"
    r"|\b(?:the (?:final )?answer is|die antwort (?:ist|lautet)|la respuesta (?:final )?es"
    r"|la réponse (?:finale )?est|jibu (?:la mwisho )?ni)\b"
    r"|ответ\s*[:\uff1a\u2014-]|答案(?:是|为|為|[:\uff1a])|答えは|答え[:\uff1a]|คำตอบคือ|উত্তর (?:হল|হলো)|సమాధానం",
    re.IGNORECASE,
)
_DIGITS = (
    r"\d{1,3}(?:[ \u00a0\u202f\u2009'\u2019]\d{3})+(?:[.,]\d+)?(?!\d)"  # 1 234 567,8
    r"|\d+(?:[.,]\d+)*"  # 1.234,5  1,234.5  18
    r"|(?<!\d)\.\d+"  # .5
)
# A minus after a letter, digit or bracket is a hyphen or an operator: "10-3", "covid-19".
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w.,)\]])-)?[$€£¥₹]?(?:(?P<whole>\d+) (?=\d+/\d))?(?P<number>{_DIGITS})"
    rf"(?:\s?/\s?(?P<below>\d+)(?![\d/]))?"
)
_SEPARATORS = {0x066B: ".", 0x066C: ",", 0xFF0C: ",", 0xFF0E: ".", 0x2044: "/", 0x2215: "/", 0xFF0F: "/"}
_MINUSES = dict.fromkeys((0x2212, 0xFF0D, 0x2010, 0x2011, 0x2012, 0x2013, 0xFE63), "-")
_FAMILIES = ("bg cs hr pl ru sk sl sr uk", "ca es fr gl it pt ro", "da de is nl no sv", "el et fi hu id lt lv tr vi")
DECIMAL_COMMA = frozenset(code for family in _FAMILIES for code in family.split())


def extract_answer_strict(text: str, language: str | None = None) -> float | None:
    """The answer as a person would read it; None where there is no number.

    A number after the last ``####``, ``\\boxed{`` or "the answer is" (also in the languages of MGSM) is preferred to
    the last number of the text. Understood: signs, fractions (3/4, ½, 2 1/2, ``\\frac``), thousands and decimals in
    both conventions (1,234.5; 1.234,5; 1 234), digits of every script, full-width forms. A comma before exactly three
    digits groups thousands; a point does so only where ``language`` writes decimals with a comma (German 80.000).
    """
    plain = _plain(text)
    markers = list(_MARKER.finditer(plain))
    if markers:
        tail = plain[markers[-1].end() :]
        tail = tail.split("}", 1)[0] if markers[-1].group().endswith("{") else tail.strip().split("\n", 1)[0]
        # "the answer is 3 + 4 = 7"
        found = _numbers(tail.rsplit("=", 1)[-1], language) or _numbers(tail, language)
        if found:
            return found[0]
    found = _numbers(plain, language)
    return found[-1] if found else None


def _plain(text: str) -> str:
    """ASCII digits, signs, separators and fractions; every other character stays."""
    characters = []
    for character in text.translate(_SEPARATORS | _MINUSES):
        decimal = unicodedata.decimal(character, None)
        if decimal is not None:
            characters.append(str(decimal))
        elif unicodedata.category(character) == "No" and "\u2044" in unicodedata.normalize("NFKC", character):
            space = " " if characters and characters[-1].isdigit() else ""
            characters.append(space + unicodedata.normalize("NFKC", character).replace("\u2044", "/"))
        else:
            characters.append(character)
    return re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", "".join(characters))


def _numbers(plain: str, language: str | None) -> list[float]:
    values = []
    for match in _NUMBER.finditer(plain):
        value = _value(match["number"], language)
        if match["below"] is not None:
            if float(match["below"]) == 0.0:
                continue
            value /= float(match["below"])  # not int: a model may write a thousand digits
        if match["whole"] is not None:
            value += float(match["whole"])
        values.append(-value if match["sign"] else value)
    return values


def _value(digits: str, language: str | None) -> float:
    """The value of digits with their separators, in whichever convention they were written."""
    digits = re.sub(r"[ \u00a0\u202f\u2009'\u2019]", "", digits)
    commas, points = digits.count(","), digits.count(".")
    if commas and points:
        decimal = "," if digits.rindex(",") > digits.rindex(".") else "."
    elif commas:
        decimal = "." if _groups(digits, ",") else ","
    elif points:
        decimal = "," if _groups(digits, ".") and (points > 1 or language in DECIMAL_COMMA) else "."
    else:
        decimal = "."
    thousands = "." if decimal == "," else ","
    whole, _, fraction = digits.replace(thousands, "").partition(decimal)
    return float(f"{whole or '0'}.{fraction.split(decimal)[0] or '0'}")


def _groups(digits: str, separator: str) -> bool:
    """Whether the separator groups thousands: 1,234 and 12,345,678 and 1,00,000 (Indian), not 0,125."""
    first, *middle, last = digits.split(separator)
    return 1 <= len(first) <= 3 and first != "0" and len(last) == 3 and all(len(group) in (2, 3) for group in middle)
