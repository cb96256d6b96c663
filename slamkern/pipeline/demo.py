"""The demo: a complete run (see ``pipeline``) on the embedded corpus, with nothing to download and no GPU.

With ``tiny`` a small model is trained first (see ``demo_model``), never on a question that is held out for measuring;
with ``smollm2`` the same steps run on SmolLM2-135M. The numbers that are printed and reported are measured.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slamkern.errors import SlamkernError
from slamkern.pipeline import run
from slamkern.pipeline.config import RunConfig, load_config
from slamkern.pipeline.demo_model import ModelSize, build_model
from slamkern.pipeline.stages import alignment_pairs
from slamkern.reading import parse_yaml
from slamkern.training.export import export_model

log = logging.getLogger(__name__)

# Sized for two cores: about a minute to train the tiny model, half a minute for everything else.
RECIPES = {
    "tiny": """
        model: {dtype: float32, device: cpu}
        data: {path: "corpus:", limit: 400, held_out: 16}
        probe: {questions: 64}
        select: {k: 2}
        train: {learning_rate: 2.0e-3, max_steps: 120, tokens_per_batch: 1536, prompt: authors, packing: false}
        evaluate: {task: corpus, limit: 20, prompt: authors, max_new_tokens: 72, batch_size: 128, chrf_limit: 16,
                   english: "corpus:"}
    """,
    "smollm2": """
        model: {name: smollm2}
        data: {path: "corpus:", limit: 100, held_out: 4}
        probe: {questions: 8}
        select: {k: 6}
        train: {learning_rate: 3.0e-4, max_steps: 30, tokens_per_batch: 512, prompt: authors}
        evaluate: {task: corpus, limit: 2, prompt: authors, max_new_tokens: 64, batch_size: 32, chrf_limit: 2,
                   english: "corpus:"}
    """,
}


def demo_config(out: str | Path, model: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of the demo on ``tiny`` or ``smollm2``, with ``section.key=value`` overrides."""
    if model not in RECIPES:
        raise SlamkernError(f"the demo has no model {model!r}; use {' or '.join(RECIPES)} (`slamkern run` takes any)")
    recipe = parse_yaml(RECIPES[model], "demo")
    if model == "tiny":
        recipe["model"]["name"] = str(Path(out) / "model")
    return load_config(overrides=overrides, base=recipe)


def run_demo(
    out: str | Path,
    model: str = "tiny",
    *,
    overrides: Iterable[str] = (),
    size: ModelSize | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the demo in ``out``, or go on with it; returns the metrics of the run."""
    out = Path(out)
    config = demo_config(out, model, overrides)
    with run.Run.claim(config, out) as claimed:
        if claimed.finished:
            log.warning("%s holds a finished demo; these are its results. To do it again: rm -r %s", out, out)
            return claimed.results()
        aligned, held_out = alignment_pairs(config)
        # Questions to be measured on must be new to the model itself, not only to its alignment.
        unseen = {pair.target for pair in held_out}

        def make_model(_: Path) -> None:
            built = build_model(size or ModelSize(), config.evaluate.prompt, unseen, progress=progress)
            export_model(*built, out / "model")

        if model == "tiny":
            claimed.stage("model", "model/config.json", make_model)
        return run.go_on(claimed, aligned, held_out, progress=progress)
