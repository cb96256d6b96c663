"""Whether two recorded evaluations differ in their model alone; if not, their difference would not be the model's."""

from collections.abc import Sequence

from slamkern.errors import SlamkernError
from slamkern.evaluation.recorded import DATA_REVISION, Answer, Recorded

# What an answer depends on besides model and question, as the settings of either kind name it.
BY_LANGUAGE = ("stop", DATA_REVISION)
EXPECTED = ("task", "prompt", "max_new_tokens", "stop", "dtype")


def check_comparable(
    before: Recorded, after: Recorded, languages: Sequence[str], allow: Sequence[str] = ()
) -> list[str]:
    """Refuse unequal settings, prompts and questions, all of them named; returns the settings that are not recorded.

    Settings: task, prompt (and what its template made of an example), stop strings, rule, max_new_tokens, dtype, and
    whatever else both recorded. Data: in each of ``languages`` both must have answered the same questions with the same
    gold answers, of the same revision of the whole set where both recorded it. Settings in
    ``allow`` may differ.
    """
    differing = []
    for name in dict.fromkeys((*before.settings, *after.settings)):
        old, new = before.settings.get(name), after.settings.get(name)
        if name in BY_LANGUAGE and isinstance(old, dict) and isinstance(new, dict):
            # One language says it all, and its values fit into a line.
            code = next((code for code in languages if old.get(code) != new.get(code)), None)
            old, new, name = (None, None, name) if code is None else (old.get(code), new.get(code), f"{name} of {code}")
        if name not in allow and old is not None and new is not None and old != new:
            differing.append(f"{name} ({_short(old)} before, {_short(new)} after)")
    differing += _differing_data(before, after, languages)
    if differing:
        raise SlamkernError(
            f"{before.name} and {after.name} cannot be compared, for not only the model differs: {'; '.join(differing)}"
        )
    names = dict.fromkeys((*EXPECTED, *before.settings, *after.settings))
    return [name for name in names if not (_known(before, name) and _known(after, name))]


def _known(side: Recorded, name: str) -> bool:
    if name == "prompt" and all(answer.prompt is not None for answer in side.answers.values()):
        return True
    return side.settings.get(name) is not None


def _differing_data(before: Recorded, after: Recorded, languages: Sequence[str]) -> list[str]:
    """At most one complaint a kind: the first language and question that differ."""
    complaints: dict[str, str] = {}
    for language in languages:
        old, new = _answers(before, language), _answers(after, language)
        if old.keys() != new.keys():
            complaints.setdefault(
                "questions",
                f"questions in {language} ({len(old)} before, {len(new)} after, {len(old.keys() & new)} in both)",
            )
        for number in (number for number in old if number in new):
            for kind, name in (("question", "data revision"), ("gold", "data revision"), ("prompt", "prompt")):
                first, second = getattr(old[number], kind), getattr(new[number], kind)
                if first is not None and second is not None and first != second:
                    complaints.setdefault(
                        name, f"{name} ({kind} {number} in {language}: {_short(first)} before, {_short(second)} after)"
                    )
    return list(complaints.values())


def _answers(side: Recorded, language: str) -> dict[str, Answer]:
    return {number: answer for (code, number), answer in side.answers.items() if code == language}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:60]}...{text[-25:]}"
