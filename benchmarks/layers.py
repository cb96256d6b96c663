"""Where the languages of a real model live: the scores of every layer for every language.

The texts and the model are those of ``benchmarks.probe``. Counted, not timed: the same on every machine but for the
rounding of its matrix products. A row is one layer of one score: ``values`` has a number a language, and the score of
the layer is their mean (the formulas are in slamkern/selection/scores.py).
"""

from collections.abc import Sequence

from benchmarks.probe import model_of, texts_of
from benchmarks.stage import Stage, show
from slamkern import collect_stats, patch_model
from slamkern.selection.scores import SCORES

SCORE_NAMES = ("active_msd", "rate_msd")
QUESTIONS = 30  # a language


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("layers", __doc__.splitlines()[0], argv)
    name, model, tokenizer = model_of(stage.device, stage.dry)
    questions = 2 if stage.dry else QUESTIONS
    source, texts = texts_of(questions)
    stats = collect_stats(patch_model(model), tokenizer, texts, progress=not stage.dry)
    for score in SCORE_NAMES:
        for layer, values in enumerate(SCORES[score](stats).tolist()):
            stage.rows.append(
                {
                    "score": score,
                    "layer": layer,
                    "values": [float(f"{value:.4g}") for value in values],
                    "languages": list(stats.languages),
                    "model": name,
                    "texts": source,
                    "questions": questions,
                }
            )
    stage.save()
    means = [row | {"mean": sum(row["values"]) / len(row["values"])} for row in stage.rows]
    show(f"scores of the layers of {name}", means, ("score", "layer", "mean"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
