"""The one exception that says: the input is wrong, and here is what would work; and text made safe to print."""

import unicodedata


class SlamkernError(ValueError):
    """A caller's mistake. The message is one line that names the value and what would work.

    The command line prints it after ``error:`` and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        # A name or a value in it may come from a file and hold line breaks.
        super().__init__(message.replace("\r", "\\r").replace("\n", "\\n"))


def refuse_string(value: object, name: str) -> None:
    """SlamkernError where a list of strings is meant and one string is given, which is a list of its letters."""
    if isinstance(value, str):
        raise SlamkernError(f"{name} is the string {value[:40]!r}; expected a list, such as [{value[:40]!r}]")


def printable(text: str) -> str:
    """``text`` with what would steer a terminal (escape sequences in a name, say) written out as escapes.

    These are control characters but for line feed and tab, halves of surrogate pairs, separators of lines, and marks
    that turn the direction of writing around. Spaces and joiners of any script stay.
    """
    return "".join(repr(c)[1:-1] if _steers(c) else c for c in text)


def _steers(character: str) -> bool:
    if character.isprintable() or character in "\n\t":
        return False
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return turns or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


class DamagedFileError(SlamkernError):
    """A file of ours is not what was written: truncated, changed, or gone."""
