"""``slamkern unfrozen``: a selection as axolotl and Spectrum write it."""

from pathlib import Path
from typing import Annotated

import typer

from slamkern.cli.options import Config, Model, Set, configure, say


def unfrozen(
    selection: Annotated[Path, typer.Argument(help="selection.json, or the folder it is in.")],
    model: Model = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Print a selection as unfrozen_parameters, the YAML that axolotl and Spectrum use."""
    from slamkern.pipeline.blueprint import blueprint
    from slamkern.selection.exchange import unfrozen_parameters
    from slamkern.selection.layers import LayerSelection

    settings = configure(config, overrides, model={"name": model})
    chosen = LayerSelection.load(selection / "selection.json" if selection.is_dir() else selection)
    say(unfrozen_parameters(blueprint(settings.model), chosen, settings.select.projections), nl=False)
