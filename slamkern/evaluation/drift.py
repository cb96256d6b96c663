"""How responses changed, without asking whether they are right: their language, length, and ways to degenerate.

These need no gold answers, so they also serve on a user's own questions, and they often say why accuracy fell: training
on translation into English can make a model answer in English, repeat the question, or not stop.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from slamkern.evaluation.recorded import Answer
from slamkern.evaluation.response_language import response_language

WINDOW = 10  # characters of a window; a repeated one is a repetition in any script
REPEATED = 0.5


@dataclass(frozen=True)
class Drift:
    """Responses to the questions in one language, on one side. Shares are percentages of all responses.

    languages: response language -> share, most frequent first (`response_language`); same_language: in the language
    of the question; english: in English; characters: mean length; empty: nothing but space; repetitive: more than half
    of the 10-character windows occurred before in the response (Welleck et al. 2020, seq-rep-n); echo: contains the
    question; truncated: cut at max_new_tokens, None where that is not recorded.
    """

    languages: dict[str, float]
    same_language: float
    english: float
    characters: float
    empty: float
    repetitive: float
    echo: float
    truncated: float | None


def measure_drift(language: str, pairs: Sequence[tuple[Answer, Answer]]) -> tuple[Drift, Drift]:
    """The responses to the questions in ``language``, before and after."""
    return _measure(language, [old for old, _ in pairs]), _measure(language, [new for _, new in pairs])


def repeated_share(text: str) -> float:
    """Share of the 10-character windows of ``text`` that occurred before in it; 0 for a text shorter than two."""
    plain = re.sub(r"\s+", " ", text.strip())
    windows = [plain[i : i + WINDOW] for i in range(len(plain) - WINDOW + 1)]
    return 1 - len(set(windows)) / len(windows) if len(plain) >= 2 * WINDOW else 0.0


def _measure(language: str, answers: Sequence[Answer]) -> Drift:
    spoken = Counter(response_language(answer.output) for answer in answers)
    shares = {code: 100 * count / len(answers) for code, count in spoken.most_common()}
    known = [answer.truncated for answer in answers if answer.truncated is not None]
    return Drift(
        languages=shares,
        same_language=shares.get(language, 0.0),
        english=shares.get("en", 0.0),
        characters=fmean(len(answer.output) for answer in answers),
        empty=_share(not answer.output.strip() for answer in answers),
        repetitive=_share(repeated_share(answer.output) > REPEATED for answer in answers),
        echo=_share(bool(answer.question.strip()) and answer.question.strip() in answer.output for answer in answers),
        truncated=_share(known) if len(known) == len(answers) else None,
    )


def _share(values: Iterable[bool]) -> float:
    return 100 * fmean(map(float, values))
