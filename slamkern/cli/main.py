"""The ``slamkern`` command line: runs a command (see ``commands``); what goes wrong becomes one line and a status.

A caller's mistake, a missing file or a full disk ends as ``error: <one line>`` on stderr with status 2, Ctrl-C with
status 130 and how to go on.
"""

import sys
from collections.abc import Sequence

from slamkern.cli.commands import app
from slamkern.errors import SlamkernError

# How to go on after Ctrl-C; the other commands start again.
RESUME = {
    "train": "; the same command with --resume goes on",
    **dict.fromkeys(("run", "demo", "evaluate"), "; the same command goes on from here"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = app(arguments, prog_name="slamkern", standalone_mode=False)
    except (SlamkernError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        status = 130
    except Exception as error:  # typer's own, whose module differs between its versions
        if type(error).__name__ == "Abort":
            status = 130
        elif not hasattr(error, "format_message"):
            raise
        else:  # without a message, the help was printed instead
            return _fail(error.format_message()) if error.format_message() else 2
    if status == 130:
        command = next((argument for argument in arguments if not argument.startswith("-")), "")
        print(f"interrupted{RESUME.get(command, '')}", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
