"""One reader under atheris: ``python -m campaigns.fuzz READER SECONDS FOLDER`` (from tests/), or without it.

FOLDER holds ``run``, a finished run, and gets ``READER/corpus`` and ``READER/findings``: an input for each place where
something other than a SlamkernError of one line was raised. The search goes on after a finding.
"""

import random
import sys
import traceback
from pathlib import Path

from campaigns.mutation import mutate

# A hang or gigabytes end the process, which counts as a finding; a chat template may take its ten seconds.
LIMITS = ("-timeout=60", "-rss_limit_mb=6000", "-max_len=65536", "-print_final_stats=1")


def finding(read, data: bytes, folder: Path) -> str | None:
    """What a reader raised other than a SlamkernError of one line, and where in the package; None for nothing."""
    from slamkern.errors import SlamkernError

    try:
        read(data, folder)
    except SlamkernError as error:
        return f"a message of several lines: {str(error)!r:.80}" if "\n" in str(error) else None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/slamkern/" in frame.filename]
        place = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno} {place.name}: {error!s:.120}"
    return None


def main(name: str, seconds: float, folder: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["slamkern"]):
        from campaigns.readers import READERS

        import slamkern.integrations.trainer  # noqa: F401 - so that nothing is imported later, without being watched
    read = READERS[name].read
    place = folder / name
    found: set[str] = set()

    def one(data: bytes) -> None:
        problem = finding(read, data, place / "work")
        if (
            problem is not None
            and (key := problem.split(":")[0] + problem.split(" at ")[-1].split(":")[0]) not in found
        ):
            found.add(key)
            (place / "findings" / f"{len(list((place / 'findings').iterdir()))}.input").write_bytes(data)
            with (place / "findings.txt").open("a") as lines:
                lines.write(" ".join(problem.split()) + "\n")

    def other(data: bytes, largest: int, seed: int) -> bytes:
        draw = random.Random(seed)
        return mutate(data, draw)[:largest] if draw.random() < 0.6 else atheris.Mutate(data, largest)

    arguments = [
        sys.argv[0],
        *LIMITS,
        f"-max_total_time={seconds:.0f}",
        f"-artifact_prefix={place}/stopped-",
        str(place / "corpus"),
    ]
    atheris.Setup(arguments, one, custom_mutator=other)
    atheris.Fuzz()


def without_atheris(read, examples: list[bytes], folder: Path, *, trials: int, seed: int = 0) -> list[str]:
    """What a number of changed examples make a reader raise; the same each time."""
    draw = random.Random(seed)
    problems = []
    for _ in range(trials):
        problem = finding(read, mutate(draw.choice(examples), draw), folder)
        problems += [] if problem is None else [problem]
    return problems


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
