"""Tables of what FP8 does to losses, and of how its products are added up."""

from collections.abc import Sequence

from benchmarks.markdown import markdown
from benchmarks.results import Row


def runs(rows: Sequence[Row]) -> str:
    """Losses of the two runs; in percent how far those of FP8 are from the other's."""
    percent = {key: f"{100 * rows[1][key]:.2f} %" for key in ("largest", "mean", "limit")}
    verdict = f"<= {percent['limit']}: {'met' if rows[1]['met'] else 'missed'}"
    differences = [["", "", ""], [percent["largest"], percent["mean"], verdict]]
    own = [[r["loss_first"], r["loss_last"], r["held_out_first"], r["held_out_last"]] for r in rows]
    afterwards = [rows[0]["held_out_last"], rows[1]["held_out_unquantized"]]
    names = ["in FP8, emulated" if row["emulated"] else "in FP8" for row in rows]
    names[0] = rows[0]["dtype"]
    return markdown(
        ("frozen weights", "model", "steps", "first loss", "last loss", "held-out before", "held-out after",
         "the same, FP8 off", "steps differ by at most", "on average", "limit"),
        ([names[i], row["model"], row["steps"], *(f"{x:.4f}" for x in (*own[i], afterwards[i])), *differences[i]]
         for i, row in enumerate(rows)),
    )  # fmt: skip


def products(rows: Sequence[Row]) -> str:
    """A line for each way to add: errors by the length of the reduction."""
    chosen = [row for row in rows if row["part"] == "products"]
    reductions = list(dict.fromkeys(row["reduction"] for row in chosen))
    errors = {(row["sums"], row["signs"], row["reduction"]): row["relative_error"] for row in chosen}
    sums = dict.fromkeys(row["sums"] for row in chosen)
    body = [
        [name, signs, *(f"{errors[name, signs, reduction]:.2g}" for reduction in reductions)]
        for signs in ("mixed", "one")
        for name in sums
    ]
    heads = ("relative error of a product: sums", "signs", *(f"{n:,} terms" for n in reductions))
    return markdown(heads, body)


def accumulation(rows: Sequence[Row]) -> str:
    """A line a run."""
    body = []
    for row in rows:
        if row["part"] == "training":
            losses = [f"{row[key]:.4f}" for key in ("loss_first", "loss_last", "held_out_last")]
            apart = [f"{100 * row[key]:.2f} %" for key in ("largest", "mean")]
            body.append([row["sums"], row["model"], row["steps"], *losses, *apart])
    heads = (
        "sums",
        "model",
        "steps",
        "first loss",
        "last loss",
        "held-out after",
        "steps differ by at most",
        "on average",
    )
    return markdown(heads, body)
