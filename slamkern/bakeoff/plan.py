"""What a bake-off will take, without doing it: cell by cell the trained parameters, memory, work and disk, and the sum.

Loads no weights and writes nothing. Layers that a score chooses are not known before the base model is measured; layers
are of one size, so that only work and memory depend on which, and these are of layers from the first on: at most as
much. Memory is the peak of a training step (``training.shape_memory``); for LoRA, whose modules are PEFT's, and models
that are not Llama-like it is that of weights, gradients and the optimizer, and activations come on top. Each process of
a job trains whole cells: more of them shorten the sum and no cell.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from slamkern.bakeoff.config import Bakeoff, Cell
from slamkern.bakeoff.layers import STATS, needed_files, number_of_layers
from slamkern.bakeoff.supervisor import check_bakeoff, tasks_of
from slamkern.bakeoff.trainable import attention_weights
from slamkern.data.pairs import Pair
from slamkern.pipeline.launch import Launch, read_launch
from slamkern.pipeline.plan import Plan, checkpoint_bytes
from slamkern.pipeline.sections import RunConfig
from slamkern.pipeline.stages import longest_examples, probe_texts, reply_questions
from slamkern.selection.trainable import trained_sizes
from slamkern.training.batches import StepPlan, context_of, tokenize
from slamkern.training.footprint import gigabytes, gradient_bytes, state_bytes
from slamkern.training.shape_memory import shape_footprint


def plan_bakeoff(bakeoff: Bakeoff, folder: Path, launch: Launch | None = None) -> list[tuple[str, str]]:
    """Lines of the plan, (name, what) each; ``folder`` tells what is done. SlamkernError as `supervisor.run`.

    launch: the job whose processes share the cells; by default the one that this process is part of.
    """
    aligned, held_out = check_bakeoff(bakeoff)
    plan = Plan(bakeoff.run, Launch())
    if any(STATS in needed_files(cell) for cell in bakeoff.bakeoff.cells):
        plan.probe(probe_texts(bakeoff.run, aligned))
    plan.examples(aligned, held_out)  # adds the line of the replies
    tasks = tasks_of(bakeoff, folder)
    done = {task.name for task in tasks if task.file.exists()}
    final = bakeoff.bakeoff.final
    flops, disk, trainings = 0.0, 0, 0
    batches: dict[str, Batches] = {}
    for cell in bakeoff.bakeoff.cells:
        seeds = bakeoff.seeds_of(cell)
        what = {"none": "trains nothing", "scaled": f"what {cell.of} trained, times {cell.scale:g}"}.get(cell.train)
        if what is None:
            recipe = bakeoff.of(cell, seeds[0])
            examples = f"{recipe.align} {recipe.train.num_train_epochs} {recipe.train.max_steps}"
            sizes = batches[examples] = batches.get(examples) or _batches(plan, recipe, aligned)
            trained = trained_parameters_of(plan.model, cell)
            work = 2.0 * sizes.tokens * (2 * (plan.parameters - _looked_up(plan.model)) + trained)
            everywhere = len({*seeds, *(final.seeds if final is not None else ())})
            flops, trainings = flops + everywhere * work, trainings + everywhere
            size = plan.dtype.itemsize
            disk += everywhere * (trained * size + checkpoint_bytes(trained, size))
            what = (
                f"{trained:,} parameters ({100 * trained / plan.parameters:.2f} %), {sizes.tokens:,} tokens, at most"
                f" {work:.3g} FLOPs, {_memory(plan, cell, recipe, trained, sizes)}"
            )
        states = [f"seed {seed} {'done' if f'{cell.name}-{seed}-screen' in done else 'to do'}" for seed in seeds]
        plan.lines.append((cell.name, f"{what}; {', '.join(states)}"))
    most = ", if every cell came into the final," if final is not None else ""
    plan.launch = launch or read_launch(None)
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
    layers = range(_layers(model, cell))
    if cell.train == "attention":
        return sum(parameter.numel() for layer in layers for parameter in attention_weights(model, layer))
    whole = sum(trained_sizes(model, layers, cell.projections))
    return whole if cell.neurons is None else round(cell.neurons * whole)


def _layers(model: Any, cell: Cell) -> int:
    return number_of_layers(cell, model.config.get_text_config().num_hidden_layers)


@dataclass(frozen=True)
class Batches:
    """Tokens of all steps, replies as long as they may be; of the largest micro-batch, all and those with a label."""

    tokens: int
    largest: int
    supervised: int


def _batches(plan: Plan, recipe: RunConfig, aligned: Sequence[Pair]) -> Batches:
    pairs = longest_examples(recipe, aligned, reply_questions(recipe, aligned, []))
    context = context_of(plan.model)
    examples = tokenize(pairs, plan.tokenizer, recipe.train, context=context)
    batches = [batch for step in StepPlan(examples.lengths.tolist(), recipe.train) for batch in step]
    lengths, labels = (
        [sum(counts[index] for index in batch) for batch in batches]
        for counts in (examples.lengths.tolist(), examples.supervised.tolist())
    )
    return Batches(sum(lengths), max(lengths), max(labels))


def _memory(plan: Plan, cell: Cell, recipe: RunConfig, trained: int, sizes: Batches) -> str:
    """Of the weights, the optimizer and, where they can be computed, a step's activations."""
    size, accumulation = plan.dtype.itemsize, recipe.train.gradient_accumulation_steps
    state, gradients = (count(trained, size, accumulation) for count in (state_bytes, gradient_bytes))
    if cell.train == "ffn" or cell.train == "attention" or cell.train == "full":
        with suppress(AttributeError):  # no Llama-like decoder
            layers = range(plan.shape.num_hidden_layers if cell.train == "full" else _layers(plan.model, cell))
            whole = shape_footprint(
                plan.shape, layers, part=cell.train, projections=cell.projections, itemsize=size,
                accumulation=accumulation,
            )  # fmt: skip
            if cell.neurons is not None:  # as much as of whole layers, but for what belongs to parameters
                whole = replace(whole, state=state, gradients=gradients, offloaded_gradients=trained * size)
            return gigabytes(whole.total(sizes.largest, supervised=sizes.supervised))
    return f"{gigabytes(plan.parameters * size + state + gradients)} and activations"


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
