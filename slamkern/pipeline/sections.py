"""What can be configured: one section a stage, each value with its type, range and default; the whole is a RunConfig.

Values are validated strictly: ``true`` is no number and 3 no text. Names (tasks, scores, languages) are checked here,
whatever needs a file or a model is not.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from slamkern.data.alignment import Target, needs_replies
from slamkern.data.languages import language
from slamkern.data.prompts import Prompt, get_prompt
from slamkern.data.tasks import TASKS, Question, load_task
from slamkern.ops import Observable
from slamkern.selection.layers import PRESETS
from slamkern.selection.scores import SCORES
from slamkern.training.config import TrainConfig


def one_of(known: Collection[str], what: str) -> AfterValidator:
    """Refuse a name that is not known."""

    def check(name: str | None) -> str | None:
        if name is not None and name not in known:
            raise ValueError(f"unknown {what} {name!r}; known: {' '.join(known)}")
        return name

    return AfterValidator(check)


def _split(value: Any) -> Any:
    """``de,fr`` for ``[de, fr]``."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    return tuple(value) if isinstance(value, list) else value


def _numbers(value: Any) -> Any:
    """``60,140`` for ``[60, 140]``, and ``0`` for ``[0]``."""
    value = (value,) if isinstance(value, int) else _split(value)
    digits = isinstance(value, tuple) and all(isinstance(part, str) and part.isdecimal() for part in value)
    return tuple(map(int, value)) if digits else value


def _languages(codes: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for code in codes or ():
        language(code)
        if codes is not None and codes.count(code) > 1:
            raise ValueError(f"{code} stands there twice")
    if codes == ():
        raise ValueError("no languages given; name some or leave it out for all")
    return codes


def _range(numbers: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if numbers is not None:
        first, last, every = (*numbers, 1)[:3] if len(numbers) in (2, 3) else (0, 0, 0)
        if not (0 <= first < last and every >= 1):
            expected = "expected [FIRST, LAST] or [FIRST, LAST, EVERY], as [60, 140, 8]"
            raise ValueError(f"{list(numbers)} are no questions; {expected}")
    return numbers


Count = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), BeforeValidator(_numbers)]
Range = Annotated[tuple[int, ...] | None, AfterValidator(_range), BeforeValidator(_numbers)]
Languages = Annotated[tuple[str, ...] | None, AfterValidator(_languages), BeforeValidator(_split)]
Targets = Annotated[tuple[Target, ...], Field(min_length=1), BeforeValidator(_split)]
Projections = Annotated[tuple[Literal["gate", "up", "down"], ...], Field(min_length=1), BeforeValidator(_split)]


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no changes after validation, no value taken for another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelSection(Section):
    """Which model: a local Hugging Face folder, a GGUF file, a hub id, or ``smollm2``.

    ``dtype``: ``auto`` is bfloat16 on a GPU and float32 on a CPU; ``fast`` takes bfloat16 on a CPU too where that has
    instructions for its products. ``trust_remote_code`` runs Python code that comes with it; ``allow_pickle`` reads
    weights that are no safetensors.
    """

    name: str = ""
    dtype: Literal["auto", "fast", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def arguments(self) -> dict[str, Any]:
        """What :func:`slamkern.pipeline.loading.load_model` is called with."""
        values = self.model_dump()
        return {"spec": values.pop("name"), **values}


class DataSection(Section):
    """Parallel text X -> English: ``path`` as :func:`slamkern.load_pairs` takes it; ``limit`` is per language."""

    path: str = ""
    languages: Languages = None
    content: Literal["question", "answer", "both"] = "question"
    limit: Count | None = None
    held_out: Count = 20
    seed: Seed = 0


class AlignSection(Section):
    """What training teaches as the reply to a question in another language (see ``slamkern.data.alignment``).

    ``target``: translation (SLAM), reply (the model's own to the English question: self-distillation) or
    translation_then_reply; several with commas are taken in turn. ``examples``: so many, languages in turn; without it
    every pair once. ``replay``: English questions with the model's own replies, this many for each example.
    For these the model first replies to ``questions`` English questions, in at most ``max_new_tokens`` tokens each.
    """

    target: Targets = ("translation",)
    examples: Count | None = None
    replay: Annotated[float, Field(ge=0, le=100)] = 0.0
    questions: Count = 120
    max_new_tokens: Count = 280
    batch_size: Count = 48

    @property
    def needs_replies(self) -> bool:
        return needs_replies(self.target, self.replay)


class ProbeSection(Section):
    """What the model reads for its statistics: the questions of ``data`` (``task: data``) or of an evaluation task.

    ``data``: where the task's questions are, as for ``evaluate``.
    """

    task: Annotated[str, one_of(("data", *TASKS), "task")] = "data"
    data: str | None = None
    languages: Languages = None
    questions: Count = 200
    observe: Observable = "gate"
    token_budget: Count = 4096
    max_length: Annotated[Count, Field(ge=2)] = 1024
    groups: Count = 8
    cuda_graphs: bool = False


class SelectSection(Section):
    """How layers are chosen: the arguments of :func:`slamkern.select_layers`, or one of the authors' presets.

    ``projections`` are the weights that are trained in the chosen layers.
    """

    preset: Annotated[str | None, one_of(PRESETS, "preset")] = None
    k: Count = 6
    score: Annotated[str, one_of(SCORES, "score")] = "active_msd"
    rule: str = "top_k"
    region: str = "lower"
    center: Literal["mean", "en"] | None = None
    neuron_fraction: Annotated[float | None, Field(gt=0, le=1)] = None
    bootstrap: Annotated[int, Field(ge=0, le=100_000)] = 200
    seed: Seed = 0
    projections: Projections = ("up", "down")


class EvaluateSection(Section):
    """What is measured before and after; ``task: null`` leaves answer accuracy out.

    ``data``: where the task's questions are (see ``tasks``), without it the hub. ``limit``: the first questions of each
    language; or ``questions``: ``[60, 140]`` are the 61st to the 140th, so that choices are made by others, and
    ``[60, 140, 8]`` every eighth of them: neighbors may be one problem with other numbers, as they are in MSVAMP.
    ``reply_start``: words that every answer is made to begin with, which are not part of it.
    ``chrf_limit``: held-out questions translated per language for chrF (generation is the slow part), 0 for none.
    ``english``: what the retention loss is measured on: a text file with an English text a line, or ``corpus:`` for
    problems of the embedded corpus with their solutions; without it, the held-out English questions.
    """

    task: Annotated[str | None, one_of(TASKS, "task")] = "mgsm"
    data: str | None = None
    languages: Languages = None
    limit: Count | None = None
    questions: Range = None
    prompt: str = "metamath"
    max_new_tokens: Count = 512
    batch_size: Count = 16
    reply_start: str = ""
    chrf_limit: Annotated[int, Field(ge=0, lt=2**31)] = 20
    english: str | None = None

    @model_validator(mode="after")
    def _one_range(self) -> "EvaluateSection":
        if self.questions is not None and self.limit is not None:
            raise ValueError(f"limit {self.limit} and questions {list(self.questions)} both choose; give one of them")
        return self

    def prompt_for(self, tokenizer: Any) -> Prompt:
        """How a question is put."""
        prompt = get_prompt(self.prompt, tokenizer)
        return replace(prompt, question_suffix=prompt.question_suffix + self.reply_start)

    def load(self) -> list[Question]:
        """The questions that are asked; none without a task."""
        if self.task is None:
            return []
        first, last, *every = self.questions or (0, self.limit)
        return load_task(self.task, self.languages, self.data, last, first=first, every=every[0] if every else 1)


class RunConfig(Section):
    """Everything a run depends on."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    align: AlignSection = AlignSection()
    probe: ProbeSection = ProbeSection()
    select: SelectSection = SelectSection()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateSection = EvaluateSection()
