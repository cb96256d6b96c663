"""The one exception that says: the input is wrong, and here is what would work; and text made safe to print."""


class SlamkernError(ValueError):
    """A caller's mistake. The message is one line that names the value and what would work.

    The command line prints it after ``error:`` and exits with status 2.
    """


def printable(text: str) -> str:
    """``text`` with what would steer a terminal (escape sequences in a name, say) written out as escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class DamagedFileError(SlamkernError):
    """A file of ours is not what was written: truncated, changed, or gone."""
