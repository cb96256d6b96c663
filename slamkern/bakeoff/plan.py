"""What a bake-off will take, without doing it: cell by cell the trained parameters, memory, work and disk, and the sum.

Loads no weights and writes nothing. Layers that a score chooses are not known before the base model is measured; layers
are of one size, so that only the work depends on them, which is that of layers from the first on: at most as much.
Memory is of weights, gradients and the optimizer: what is kept for the backward comes on top (a dry run of one recipe,
``slamkern train --dry-run``, counts it).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from slamkern.bakeoff.config import Bakeoff, Cell
from slamkern.bakeoff.layers import STATS, needed_files, number_of_layers
from slamkern.bakeoff.supervisor import check_bakeoff, tasks_of
from slamkern.bakeoff.trainable import attention_weights
from slamkern.data.pairs import Pair
from slamkern.pipeline.plan import Plan, checkpoint_bytes, longest_examples
from slamkern.pipeline.sections import RunConfig
from slamkern.pipeline.stages import probe_texts, reply_questions
from slamkern.selection.trainable import apply_selection
from slamkern.training.batches import StepPlan, tokenize
from slamkern.training.footprint import gigabytes, gradient_bytes, state_bytes


def plan_bakeoff(bakeoff: Bakeoff, folder: Path) -> list[tuple[str, str]]:
    """Lines of the plan, (name, what) each; ``folder`` tells what is done. SlamkernError as `supervisor.run`."""
    aligned, held_out = check_bakeoff(bakeoff)
    plan = Plan(bakeoff.run)
    if any(STATS in needed_files(cell) for cell in bakeoff.bakeoff.cells):
        plan.probe(probe_texts(bakeoff.run, aligned))
    plan.examples(aligned, held_out)  # adds the line of the replies
    tasks = tasks_of(bakeoff, folder)
    done = {task.name for task in tasks if task.file.exists()}
    final = bakeoff.bakeoff.final
    flops, disk, trainings = 0.0, 0, 0
    tokens: dict[str, int] = {}
    for cell in bakeoff.bakeoff.cells:
        seeds = bakeoff.seeds_of(cell)
        what = {"none": "trains nothing", "scaled": f"what {cell.of} trained, times {cell.scale:g}"}.get(cell.train)
        if what is None:
            recipe = bakeoff.of(cell, seeds[0])
            examples = f"{recipe.align} {recipe.train.num_train_epochs} {recipe.train.max_steps}"
            count = tokens[examples] = tokens.get(examples) or _tokens(plan, recipe, aligned)
            trained = trained_parameters_of(plan.model, cell)
            work = 2.0 * count * (2 * (plan.parameters - _looked_up(plan.model)) + trained)
            everywhere = len({*seeds, *(final.seeds if final is not None else ())})
            flops, trainings = flops + everywhere * work, trainings + everywhere
            size = plan.dtype.itemsize
            disk += everywhere * (trained * size + checkpoint_bytes(trained, size))
            what = (
                f"{trained:,} parameters ({100 * trained / plan.parameters:.2f} %), {count:,} tokens, at most"
                f" {work:.3g} FLOPs, {gigabytes(_memory(plan, recipe, trained))} and activations"
            )
        states = [f"seed {seed} {'done' if f'{cell.name}-{seed}-screen' in done else 'to do'}" for seed in seeds]
        plan.lines.append((cell.name, f"{what}; {', '.join(states)}"))
    most = ", if every cell came into the final," if final is not None else ""
    plan.work("all trainings", f"{trainings}{most} and up to {gigabytes(disk)} of disk", flops)
    for name, config, models in _measurements(bakeoff):
        if config.evaluate.task is not None:
            plan.lines.append((name, f"answers of {models} models"))
            plan.evaluate(config.evaluate.load(), times=models)
    plan.lines.append(("tasks", f"{len(done)} of {len(tasks)} done" + (", without the final" if final else "")))
    return plan.lines


def trained_parameters_of(model: Any, cell: Cell) -> int:
    """How many parameters a cell trains; of single neurons about as many. The model may be on the meta device."""
    if cell.train == "full":
        return sum(parameter.numel() for parameter in model.parameters())
    if cell.train == "lora":
        head = model.get_output_embeddings()
        maps = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
        return sum(cell.rank * (module.in_features + module.out_features) for module in maps)
    layers = range(number_of_layers(cell, model.config.get_text_config().num_hidden_layers))
    if cell.train == "attention":
        return sum(parameter.numel() for layer in layers for parameter in attention_weights(model, layer))
    whole = sum(entry.parameter.numel() for entry in apply_selection(model, layers, cell.projections))
    return whole if cell.neurons is None else round(cell.neurons * whole)


def _tokens(plan: Plan, recipe: RunConfig, aligned: Sequence[Pair]) -> int:
    """Of all steps, with replies as long as they may be."""
    pairs = longest_examples(recipe, aligned, reply_questions(recipe, aligned, []))
    context = getattr(plan.shape, "max_position_embeddings", None)
    lengths = tokenize(pairs, plan.tokenizer, recipe.train, context=context).lengths.tolist()
    return sum(lengths[index] for step in StepPlan(lengths, recipe.train) for batch in step for index in batch)


def _memory(plan: Plan, recipe: RunConfig, trained: int) -> int:
    size, accumulation = plan.dtype.itemsize, recipe.train.gradient_accumulation_steps
    return (
        plan.parameters * size + state_bytes(trained, size, accumulation) + gradient_bytes(trained, size, accumulation)
    )


def _looked_up(model: Any) -> int:
    """Parameters that are looked up and multiply nothing."""
    tied = model.get_input_embeddings().weight is getattr(model.get_output_embeddings(), "weight", None)
    return 0 if tied else int(model.get_input_embeddings().weight.numel())


def _measurements(bakeoff: Bakeoff) -> list[tuple[str, RunConfig, int]]:
    """(round, its sections, how many models are asked) of the screen and the final."""
    section, base = bakeoff.bakeoff, bakeoff.cells["base"]
    screened = sum(len(bakeoff.seeds_of(cell)) for cell in bakeoff.cells.values())
    rounds = [("screen", bakeoff.of(base, 0), screened)]
    if section.final is not None:
        finalists = min(section.finalists, len(section.cells)) * len(section.final.seeds)
        rounds.append(("final", bakeoff.of(base, 0, final=True), 1 + finalists))
    return rounds
