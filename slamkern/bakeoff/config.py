"""What a bake-off compares: the sections of a run, the same for every cell, and the cells.

A cell is one choice of what is trained. Everything it does not name is that of the sections. A cell ``base``, which
trains nothing, is always there: the others are judged against it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from slamkern.errors import SlamkernError
from slamkern.pipeline.config import RunConfig, load_config
from slamkern.pipeline.sections import AlignSection, Count, EvaluateSection, Projections, Section, Seeds
from slamkern.reading import read_yaml
from slamkern.schemas.check import first_problem

BASE = "base"
Checked = TypeVar("Checked", bound=Section)
# Which of a cell's values have a meaning for what it trains.
_MEANT = {
    "none": {"reply_start"},
    "full": set(),
    "lora": {"rank"},
    "ffn": {"layers", "projections", "neurons"},
    "attention": {"layers"},
    "scaled": {"of", "scale"},
}


class Cell(Section):
    """One choice of what to train.

    train: full; lora (every linear map of the layers, alpha = 2 rank, no dropout); ffn; attention; none;
    scaled: what the cell ``of`` trained, its change times ``scale``.
    layers: ``all``, ``list:0,3``, or ``RULE:K`` or ``RULE:K:REGION``: lowest, highest, ends, middle, random (by the
    cell's seed), a score of ``selection.scores``, weight_snr or gradient_norm; the region is ``all`` unless named.
    neurons: this share of the neurons of each layer, those that are most specific to a language by LAPE.
    learning_rate: instead of that of the section. align: values instead of those of the section.
    seeds: instead of those of the screen.
    reply_start: words that replies are made to begin with: what a change of language alone would bring.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=60)]
    why: str = ""
    train: Literal["none", "full", "lora", "ffn", "attention", "scaled"] = "ffn"
    layers: str = "all"
    projections: Projections = ("up", "down")
    neurons: Annotated[float | None, Field(gt=0, le=1)] = None
    rank: Count = 16
    learning_rate: Annotated[float | None, Field(gt=0)] = None
    align: dict[str, Any] = Field(default_factory=dict)
    reply_start: str = ""
    of: str = ""
    scale: float = 1.0
    seeds: Seeds | None = None

    @model_validator(mode="after")
    def _meant(self) -> "Cell":
        trained = set() if self.train in ("none", "scaled") else {"learning_rate", "align", "seeds"}
        known = _MEANT[self.train] | trained | {"name", "why", "train"}
        if unmeant := sorted(self.model_fields_set - known):
            raise ValueError(f"{unmeant[0]} has no meaning for a cell with train: {self.train}")
        if self.train == "scaled" and not self.of:
            raise ValueError("a cell with train: scaled needs of, the name of the cell that is trained")
        return self


class Final(Section):
    """What the best cells are measured on after the screen: other questions, more of everything.

    ``evaluate``: values instead of those of the section, as ``{task: msvamp, questions: [60, 300], chrf_limit: 20}``.
    """

    seeds: Seeds = (0, 1, 2)
    evaluate: dict[str, Any] = Field(default_factory=dict)


class BakeoffSection(Section):
    """The cells; ``seeds`` of the screen, and how many of the cells go into the ``final`` (none without it)."""

    cells: Annotated[tuple[Cell, ...], Field(min_length=1)]
    seeds: Seeds = (0,)
    finalists: Count = 5
    final: Final | None = None

    @model_validator(mode="after")
    def _names(self) -> "BakeoffSection":
        names = [cell.name for cell in self.cells]
        if twice := next((name for name in names if names.count(name) > 1 or name == BASE), None):
            raise ValueError(f"{twice!r} is the untouched model" if twice == BASE else f"two cells are called {twice}")
        trained = {cell.name for cell in self.cells if cell.train not in ("none", "scaled")}
        if wrong := next((cell for cell in self.cells if cell.of and cell.of not in trained), None):
            raise ValueError(f"cell {wrong.name} is of {wrong.of!r}, which is no cell that is trained")
        return self


class Bakeoff(Section):
    """The whole configuration."""

    run: RunConfig
    bakeoff: BakeoffSection

    @property
    def cells(self) -> dict[str, Cell]:
        """By name, ``base`` first."""
        return {cell.name: cell for cell in (Cell(name=BASE, train="none"), *self.bakeoff.cells)}

    def trained(self, cell: Cell) -> Cell:
        """The cell whose training this one stands on."""
        return self.cells[cell.of] if cell.of else cell

    def seeds_of(self, cell: Cell, *, final: bool = False) -> tuple[int, ...]:
        """Of the screen or of the final; what trains nothing has one, always the same."""
        section = self.bakeoff
        if cell.train == "none":
            return (0,)
        cell = self.trained(cell)
        return section.final.seeds if final and section.final is not None else cell.seeds or section.seeds

    def of(self, cell: Cell, seed: int, *, final: bool = False) -> RunConfig:
        """The sections as they are for a cell and a seed, in the screen or in the final."""
        run, section = self.run, self.bakeoff.final
        evaluate: dict[str, Any] = {"reply_start": cell.reply_start}
        if final and section is not None:
            evaluate |= _one_choice(section.evaluate)
        recipe: dict[str, Any] = {"seed": seed}
        if cell.learning_rate is not None:
            recipe["learning_rate"] = cell.learning_rate
        return changed(run, align=cell.align, train=recipe, evaluate=evaluate)


def _one_choice(evaluate: dict[str, Any]) -> dict[str, Any]:
    """Values for the section of an evaluation: a choice of questions takes the place of the other one."""
    if evaluate.get("questions") is not None:
        return {"limit": None} | evaluate
    return evaluate if evaluate.get("limit") is None else {"questions": None} | evaluate


def changed(run: RunConfig, **sections: Mapping[str, Any]) -> RunConfig:
    """``run`` with other values in some sections, validated again."""
    values = run.model_dump(mode="json")
    values["train"].pop("output_dir", None)
    merged = {name: content | dict(sections.get(name, {})) for name, content in values.items()}
    return load_config(base=merged)


def load_bakeoff(path: str | Path, overrides: Iterable[str] = ()) -> Bakeoff:
    """The configuration in a YAML file, changed by ``section.key=value``, checked."""
    values = read_yaml(Path(path))
    values = values if isinstance(values, dict) else {}
    section = values.pop("bakeoff", None)
    if not isinstance(section, dict) or not isinstance(section.get("cells"), list):
        found = " ".join(map(str, values)) or "none"
        raise SlamkernError(
            f"{path}: expected a section bakeoff with cells, such as bakeoff: {{cells: [{{name: low, layers:"
            f" 'lowest:4'}}]}}, beside the sections of a run; its other sections: {found}"
        )
    return build_bakeoff(load_config(overrides=overrides, base=values, where=str(path)), section, str(path))


def build_bakeoff(run: RunConfig, section: Mapping[str, Any], where: str = "configuration") -> Bakeoff:
    """The configuration with these values of the section ``bakeoff``."""
    checked = _checked(BakeoffSection, section, f"{where}: bakeoff")
    for number, cell in enumerate(checked.cells):
        values = run.align.model_dump(mode="json") | cell.align
        _checked(AlignSection, values, f"{where}: bakeoff.cells.{number}.align")
    if checked.final is not None:
        values = run.evaluate.model_dump(mode="json") | _one_choice(checked.final.evaluate)
        _checked(EvaluateSection, values, f"{where}: bakeoff.final.evaluate")
    return Bakeoff(run=run, bakeoff=checked)


def _checked(kind: type[Checked], values: Mapping[str, Any], where: str) -> Checked:
    try:
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        place, message = first_problem(error)
        raise SlamkernError(f"{'.'.join((where, *place))}: {message}") from error
