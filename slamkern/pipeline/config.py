"""The configuration of a run: one YAML file, one section a stage, every default in one place.

Sections: ``model``, ``data``, ``probe``, ``select``, ``train``, ``evaluate``. The ``train`` section has exactly the
fields and defaults of :class:`slamkern.TrainConfig` but ``output_dir``, which ``--out`` says. Unknown keys are refused
with the nearest known one; values are validated by pydantic, and every error is one line that names the file (or
``--set``) and the key. Nothing here loads a model or touches data.
"""

import dataclasses
import difflib
import hashlib
import json
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from slamkern.errors import SlamkernError
from slamkern.training.config import TrainConfig


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSection(Section):
    """Which model: a local Hugging Face folder, a GGUF file, a hub id, or ``smollm2``."""

    name: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"


class DataSection(Section):
    """Parallel text X -> English: ``path`` as :func:`slamkern.load_pairs` takes it; ``limit`` is per language."""

    path: str = ""
    languages: tuple[str, ...] | None = None
    content: Literal["question", "answer", "both"] = "question"
    limit: Annotated[int | None, Field(ge=1)] = None
    held_out: Annotated[int, Field(ge=1)] = 20
    seed: int = 0


class ProbeSection(Section):
    """What the model reads for its statistics: the questions of ``data`` (``task: data``) or of an evaluation task."""

    task: str = "data"
    path: str | None = None
    languages: tuple[str, ...] | None = None
    questions: Annotated[int, Field(ge=1)] = 200
    observe: Literal["gate", "hidden"] = "gate"
    token_budget: Annotated[int, Field(ge=1)] = 4096
    max_length: Annotated[int, Field(ge=2)] = 1024
    groups: Annotated[int, Field(ge=1)] = 8


class SelectSection(Section):
    """How layers are chosen: the arguments of :func:`slamkern.select_layers`, or one of the authors' presets.

    ``projections`` are the weights that are trained in the chosen layers.
    """

    preset: str | None = None
    k: Annotated[int, Field(ge=1)] = 6
    score: str = "active_msd"
    rule: str = "top_k"
    region: str = "lower"
    center: str | None = None
    neuron_fraction: Annotated[float | None, Field(gt=0, le=1)] = None
    bootstrap: Annotated[int, Field(ge=0)] = 200
    seed: int = 0
    projections: tuple[Literal["gate", "up", "down"], ...] = ("up", "down")


class EvaluateSection(Section):
    """What is measured before and after; ``task: null`` leaves answer accuracy out.

    ``chrf_limit``: held-out questions translated per language for chrF (generation is the slow part), 0 for none.
    ``english``: what the retention loss is measured on: a text file with an English text a line, or ``corpus:`` for
    problems of the embedded corpus with their solutions; without it, the held-out English questions.
    """

    task: str | None = "mgsm"
    path: str | None = None
    languages: tuple[str, ...] | None = None
    limit: Annotated[int | None, Field(ge=1)] = None
    prompt: str = "metamath"
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    batch_size: Annotated[int, Field(ge=1)] = 16
    chrf_limit: Annotated[int, Field(ge=0)] = 20
    english: str | None = None


def _section_of(dataclass: type, without: str) -> type[Section]:
    """A section with the fields and defaults of a dataclass but one, so that they are written down once."""
    hints = typing.get_type_hints(dataclass)
    named = [field for field in dataclasses.fields(dataclass) if field.name != without]
    fields: dict[str, Any] = {field.name: (hints[field.name], field.default) for field in named}
    return create_model("TrainSection", __base__=Section, **fields)


TrainSection = _section_of(TrainConfig, without="output_dir")


class RunConfig(Section):
    """Everything a run depends on. ``train_config()`` is the train section as the training loop takes it."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    probe: ProbeSection = ProbeSection()
    select: SelectSection = SelectSection()
    train: TrainSection = TrainSection()  # type: ignore[valid-type]
    evaluate: EvaluateSection = EvaluateSection()

    def train_config(self, output_dir: Path | None = None) -> TrainConfig:
        """The train section as a :class:`TrainConfig`."""
        return TrainConfig(output_dir=output_dir, **self.train.model_dump())  # type: ignore[attr-defined]

    def fingerprint(self) -> str:
        """A hash of every value: equal fingerprints, equal results."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]


SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "data": DataSection,
    "probe": ProbeSection,
    "select": SelectSection,
    "train": TrainSection,
    "evaluate": EvaluateSection,
}


def _unknown(key: str, known: Iterable[str], where: str) -> SlamkernError:
    known = list(known)
    prefix, _, last = key.rpartition(".")
    near = difflib.get_close_matches(last, known, n=1, cutoff=0.5)
    hint = f"did you mean {prefix + '.' if prefix else ''}{near[0]}?" if near else f"known: {', '.join(known)}"
    return SlamkernError(f"{where}: unknown key {key!r}; {hint}")


def _check_keys(values: Mapping[str, Any], where: str) -> None:
    for section, content in values.items():
        if section not in SECTIONS:
            raise _unknown(str(section), SECTIONS, where)
        if not isinstance(content, Mapping):
            raise SlamkernError(f"{where}: section {section!r} must hold key: value lines, not {content!r}")
        for key in content:
            if key not in SECTIONS[section].model_fields:
                raise _unknown(f"{section}.{key}", SECTIONS[section].model_fields, where)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SlamkernError(f"no configuration file {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SlamkernError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SlamkernError(f"{path}: expected sections ({', '.join(SECTIONS)}), found {type(values).__name__}")
    values = {section: {} if content is None else content for section, content in values.items()}
    _check_keys(values, str(path))
    return values


def parse_overrides(overrides: Iterable[str]) -> Iterator[tuple[str, str, Any]]:
    """(section, key, value) of each ``section.key=value``, the value read as YAML (numbers, lists, null)."""
    for text in overrides:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            raise SlamkernError(f"--set {text!r}: write section.key=value, for example train.learning_rate=2e-5")
        _check_keys({section: {key: None}}, "--set")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = value
        # No value is a mapping; what YAML takes for one is text with a colon, such as corpus:
        yield section, key, value if isinstance(parsed, dict) else parsed


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> RunConfig:
    """The defaults, changed by a YAML file, changed by ``section.key=value`` overrides in their order."""
    values = _read(Path(path)) if path is not None else {}
    for section, key, value in parse_overrides(overrides):
        values.setdefault(section, {})[key] = value
    return build_config(values, str(path) if path is not None else "--set")


def build_config(values: Mapping[str, Any], where: str = "configuration") -> RunConfig:
    """Validate nested values; the first thing wrong is one line that names its key."""
    _check_keys(values, where)
    try:
        config = RunConfig.model_validate(values)
        config.train_config()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:2])
        raise SlamkernError(f"{where}: {key}: {first['msg']}, not {first['input']!r}") from error
    except SlamkernError as error:  # the recipe checks its own numbers
        raise SlamkernError(f"{where}: train: {error}") from error
    return config


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first value in which two dumped configurations differ, in words; ``None`` when they agree."""
    for section in SECTIONS:
        before, after = old.get(section, {}), new.get(section, {})
        for key in SECTIONS[section].model_fields:
            if before.get(key) != after.get(key):
                return f"{section}.{key} was {before.get(key)!r}, now {after.get(key)!r}"
    return None
