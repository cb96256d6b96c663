"""A configuration from what a user wrote: a YAML file, then ``--set section.key=value``, then a command's options.

They are merged in this order over the defaults and validated once (see ``sections``). Unknown keys are refused with the
nearest known one, and every error is one line that names where the value was given and its key. Nothing here loads a
model or touches data.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError

from slamkern.errors import SlamkernError
from slamkern.pipeline.sections import RunConfig
from slamkern.reading import parse_yaml, read_yaml
from slamkern.schemas.check import first_problem

__all__ = ["SECTIONS", "RunConfig", "build_config", "load_config"]

Values = Mapping[str, Mapping[str, Any]]
NOTHING: Values = MappingProxyType({})
# The type of each key of each section; where training writes is not configured but said by --out.
SECTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        section: {key: hint for key, hint in get_type_hints(kind).items() if key != "output_dir"}
        for section, kind in get_type_hints(RunConfig).items()
    }
)


def load_config(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    options: Values = NOTHING,
    *,
    base: Values = NOTHING,
    where: str = "configuration",
) -> RunConfig:
    """The defaults, changed by ``base``, by a YAML file, by ``section.key=value`` overrides and by ``options``.

    ``where``: what errors call ``base``. ``options`` holds typed values as ``{section: {key: value}}``; None means that
    the option was not given.
    """
    layers = [(where, base)]
    if path is not None:
        layers.append((str(path), _file_values(Path(path))))
    layers += [("--set", _override(text)) for text in overrides]
    given = {
        section: {key: value for key, value in values.items() if value is not None}
        for section, values in options.items()
    }
    return _build([*layers, ("command line", given)])


def build_config(values: Values) -> RunConfig:
    """The configuration with these nested values."""
    return _build([("configuration", values)])


def _build(layers: Iterable[tuple[str, Values]]) -> RunConfig:
    """Merge the layers, later ones over earlier ones, and validate; the first thing wrong is one line."""
    merged: dict[str, dict[str, Any]] = {}
    given_in: dict[tuple[str, ...], str] = {}
    for where, layer in layers:
        _check_keys(layer, where)
        for section, values in layer.items():
            merged.setdefault(section, {}).update(values)
            given_in |= {(section, key): where for key in values} | {(section,): where}
    try:
        # As JSON, whose lists are tuples and whose objects are dataclasses even where nothing else is converted.
        return RunConfig.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        place, message = first_problem(error)
        place = place[:2]
        if not place:
            raise SlamkernError("configuration: a value is no text in UTF-8") from error
        raise SlamkernError(f"{given_in.get(place, 'configuration')}: {'.'.join(place)}: {message}") from error


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
            raise SlamkernError(f"{where}: section {section!r} must hold key: value lines, not {content!r:.80}")
        for key in content:
            if key not in SECTIONS[section]:
                raise _unknown(f"{section}.{key}", SECTIONS[section], where)


def _file_values(path: Path) -> Values:
    values = read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SlamkernError(f"{path}: expected sections ({', '.join(SECTIONS)}), found {type(values).__name__}")
    return {section: {} if content is None else content for section, content in values.items()}


def _override(text: str) -> Values:
    """``section.key=value``, the value read as YAML (numbers, lists, null) unless the key holds text."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        raise SlamkernError(f"--set {text!r}: write section.key=value, for example train.learning_rate=2e-5")
    _check_keys({section: {key: None}}, "--set")
    try:
        parsed = parse_yaml(value, "--set")
    except SlamkernError:
        parsed = value
    hint = SECTIONS[section][key]
    if isinstance(parsed, bool | int | float) and str in (hint, *get_args(hint)):
        parsed = value
    # No value is a mapping; what YAML takes for one is text with a colon, such as corpus:
    return {section: {key: value if isinstance(parsed, dict) else parsed}}
