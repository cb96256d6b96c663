"""The one exception that says: the input is wrong, and here is what would work."""


class SlamkernError(ValueError):
    """A caller's mistake. The message is one line that names the value and what would work.

    The command line prints it after ``error:`` and exits with status 2.
    """
