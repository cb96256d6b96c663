"""The ``slamkern`` command line: runs a command (see ``commands``); what goes wrong becomes one line and a status.

A caller's mistake, a missing file or a full disk ends as ``error: <one line>`` on stderr with status 2, Ctrl-C with
status 130 (SIGTERM: 143, SIGHUP: 129) and how to go on. Anything else is a bug of ours or of a library, or a lack of
memory: one line with its class and where its traceback was written, status 1; ``-v`` shows the traceback itself.

Of the processes that ``accelerate launch`` or ``torchrun`` start, the main one alone speaks, and the first that fails.
"""

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from slamkern import distributed
from slamkern.cli.commands import app
from slamkern.errors import SlamkernError, printable
from slamkern.training.interrupt import ended_by_signals
from slamkern.version import __version__

# How to go on after Ctrl-C; the other commands start again.
RESUME = {
    "train": "; the same command with --resume goes on",
    **dict.fromkeys(("run", "demo", "evaluate", "compare", "bakeoff"), "; the same command goes on from here"),
}
JOINT = ("probe", "train", "evaluate", "run", "bakeoff")  # what several processes do together


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    try:
        if distributed.launched() > 1:
            if command not in JOINT:
                raise SlamkernError(f"several processes do {', '.join(JOINT)}; start {command or 'this'} in one alone")
            distributed.join()
        with ended_by_signals(), redirect_stdout(sys.stdout if distributed.is_main() else io.StringIO()):
            status = app(arguments, prog_name="slamkern", standalone_mode=False)
        distributed.leave()
    except (SlamkernError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        status = 130
    except SystemExit as error:  # SIGTERM (143) and SIGHUP (129), before which training saves
        status = error.code
    except Exception as error:  # typer's own, whose module differs between its versions
        if type(error).__name__ == "Abort":
            status = 130
        elif not hasattr(error, "format_message"):
            return _unexpected(error, arguments)
        else:  # without a message, the help was printed instead
            return _fail(error.format_message()) if error.format_message() else 2
    if status in (129, 130, 143) and distributed.first_to_fail():
        print(f"interrupted{RESUME.get(command, '')}", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int = 2) -> int:
    if distributed.first_to_fail():
        where = f"process {os.environ.get('RANK')}: " if distributed.launched() > 1 else ""
        print(f"error: {where}{printable(' '.join(message.split()))}", file=sys.stderr)
    return status


def _unexpected(error: Exception, arguments: Sequence[str]) -> int:
    if any(flag in arguments[:2] for flag in ("-v", "--verbose")):
        traceback.print_exception(error)
    from slamkern.training.accumulate import out_of_memory

    lower = "; lower train.tokens_per_batch, probe.token_budget, probe.groups or evaluate.batch_size"
    advice = lower if out_of_memory(error) else ""
    text = str(error).strip().partition("\n")[0]
    return _fail(f"{type(error).__name__}: {text[:300]}{advice} (details in {_write_details(error, arguments)})", 1)


def _write_details(error: Exception, arguments: Sequence[str]) -> Path:
    """Append command and traceback to ``slamkern-error.log`` in --out, or to a new file where there is no --out yet."""
    out = next((Path(value) for flag, value in pairwise(arguments) if flag in ("--out", "-o")), None)
    path = out / "slamkern-error.log" if out is not None and out.is_dir() else None
    details = "".join(traceback.format_exception(error))
    text = f"{datetime.now().astimezone().isoformat()} slamkern {__version__}: {' '.join(arguments)}\n{details}\n"
    if path is not None:
        try:
            with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
                log.write(text)
            return path
        except OSError:  # full or not writable: this may be what went wrong
            pass
    with tempfile.NamedTemporaryFile(
        "w", prefix="slamkern-error-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(text)
    return Path(file.name)


if __name__ == "__main__":
    sys.exit(main())
