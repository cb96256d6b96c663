"""A chat template is a program from whoever made the model: tried out once, with limits, before it is used.

transformers runs templates in jinja2's sandbox, which keeps them from files and from Python's insides, but lets
``{{ 'x' * 10**10 }}`` take all memory while it compiles. So a short question is rendered first in a child process with
little time and memory; what that shows (an error, a limit reached, a question that is left out) is refused.
"""

import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any

from slamkern.errors import SlamkernError

QUESTION = "How many legs do 7 cats and 5 birds have?"
SECONDS, MEMORY, CHARACTERS = 10, 2**30, 100_000


def check_chat_template(tokenizer: Any) -> None:
    """SlamkernError where the chat template of ``tokenizer`` fails, takes too much, or does not ask the question."""
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    problem, text = _within_limits(lambda: render(tokenizer, QUESTION))
    if not problem and QUESTION not in text:
        problem = "leaves out the question"
    if not problem and len(text) > CHARACTERS:
        problem = f"makes {len(text):,} characters or more of a short question"
    if problem:
        raise SlamkernError(f"the chat template of {name} {problem}; use another prompt")


def render(tokenizer: Any, question: str) -> str:
    """The prompt text that asks ``question``; SlamkernError where the template fails on it."""
    messages = [{"role": "user", "content": question}]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # whatever a template does wrong
        first = (str(error).strip().splitlines() or [""])[0]
        raise SlamkernError(f"the chat template fails: {type(error).__name__}: {first:.200}") from error


def _within_limits(work: Callable[[], str]) -> tuple[str, str]:
    """(problem or "", text) of ``work`` in a child with limits; where there is no fork, without."""
    if not hasattr(os, "fork"):
        return "", work()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the child only renders
        child = os.fork()
    if child == 0:
        _child(work, writer)
    os.close(writer)
    try:
        answer, deadline = b"", time.monotonic() + SECONDS
        while len(answer) <= 4 * CHARACTERS:  # bytes: at most four a character
            ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
            if not ready or not (part := os.read(reader, 65536)):
                break
            answer += part
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    verdict, text = answer[:1], answer[1:].decode("utf-8", "replace")
    if verdict == b"+":
        return "", text
    if verdict == b"-":
        return f"cannot be used ({text})", ""
    return f"takes more than {SECONDS} s or {MEMORY // 2**20:,} MiB for a short question", ""


def _child(work: Callable[[], str], writer: int) -> None:
    """Write ``+`` and the text, or ``-`` and what went wrong; never returns."""
    try:
        try:
            _limit_memory()
            answer = b"+" + work().encode("utf-8", "replace")
        except SlamkernError as error:
            answer = b"" if isinstance(error.__cause__, MemoryError) else b"-" + str(error).encode("utf-8", "replace")
        except MemoryError:
            answer = b""
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _limit_memory() -> None:
    import resource

    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux: only time is limited
        return
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
