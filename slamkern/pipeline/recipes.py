"""Recipes that were measured, as configurations to begin with: ``slamkern run --recipe NAME``.

Model, data and the place of the task's questions are still to be said; a file, ``--set`` and options change the rest.
What each one gained is in benchmarks/README.md. Without one, a run trains as the paper does.
"""

from collections.abc import Mapping
from typing import Any

from slamkern.errors import SlamkernError
from slamkern.reading import parse_yaml

RECIPES = {
    # Self-distillation: an instruction-tuned model that reasons in English learns its own English replies as those to
    # questions in other languages. Sized for a model of half a billion parameters, of which it takes 25 minutes of
    # two cores. Of answers of at most 180 tokens half were cut, which is why these may have 400.
    "reply": """
        model: {dtype: fast}
        data: {held_out: 6}
        align: {target: reply, examples: 160, replay: 0.2, questions: 120, max_new_tokens: 280}
        probe: {questions: 16}
        select: {k: 4, rule: lowest, region: all}
        train: {learning_rate: 5.0e-5, warmup_steps: 4, num_train_epochs: 1, tokens_per_batch: 1024, prompt: chat}
        evaluate: {task: msvamp, languages: [en, de, es, sw, th, zh], questions: [0, 20], prompt: chat,
                   max_new_tokens: 400, batch_size: 48, chrf_limit: 0}
    """,
}


def recipe(name: str) -> Mapping[str, Mapping[str, Any]]:
    """The sections of a recipe. SlamkernError for an unknown name."""
    if name not in RECIPES:
        raise SlamkernError(f"no recipe {name!r}; known: {' '.join(RECIPES)}")
    sections: Mapping[str, Mapping[str, Any]] = parse_yaml(RECIPES[name], f"recipe {name}")
    return sections
