"""What dry runs say: for the configurations of 13B and 70B in ``presets``, and against measured memory on small models.

Dry runs get nothing but a model's configuration and a tokenizer. The presets' models are Llama of their sizes; their
data are replaced by the embedded corpus, whose lengths are alike. Measured on small models of random weights: all that
torch allocates in a step of training on a CPU, by its profiler.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import Row
from benchmarks.stage import Stage, show
from slamkern.bench.workload import any_tokenizer, shape_builder, shape_config
from slamkern.data.packing import collate
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.patch import patch_model
from slamkern.pipeline.config import load_config
from slamkern.pipeline.launch import Launch, read_launch
from slamkern.pipeline.plan import Plan
from slamkern.pipeline.stages import alignment_pairs
from slamkern.selection.layers import choose_before_probe
from slamkern.selection.trainable import apply_selection, trained_parameters
from slamkern.training.batches import StepPlan, tokenize
from slamkern.training.loss import packed_loss, read_head
from slamkern.training.optimizer import MasterAdamW
from slamkern.training.step_cost import peak_growth, storage_bytes

PRESETS = Path(__file__).with_name("presets")
PLANNED = {
    "13b-8-gpus": ("Llama-2-13B", "8-gpus", "replicated"),
    "70b-2-nodes": ("Llama-2-70B", "2-nodes", "sharded"),
}
MEASURED = ("SmolLM2-135M", "Llama-100M", "Qwen2.5-0.5B")
GPU_BYTES = 80e9
COLUMNS = ("configuration", "way", "billions", "trained_millions", "memory_gb", "measured_gb", "off_percent", "wire_gb")


def config_folder(folder: Path, shape: str) -> Path:
    """A model's configuration and a tokenizer, without weights."""
    path = folder / shape
    shape_config(shape).save_pretrained(path)
    any_tokenizer().save_pretrained(path)
    return path


def row_of(plan: Plan, configuration: str, way: str) -> Row:
    """The numbers of a plan of training."""
    parts = plan.memory[way]
    row: Row = {"configuration": configuration, "way": way, "processes": plan.launch.processes}
    row |= {"billions": plan.parameters / 1e9, "trained_millions": plan.trained / 1e6}
    row |= {"teraflops_a_step": plan.flops / plan.steps / 1e12}
    row |= {"seconds_a_step": plan.seconds / plan.steps, "memory_gb": sum(parts.values()) / 1e9}
    row |= {f"{part.replace(' ', '_')}_gb": value / 1e9 for part, value in parts.items()}
    row |= {"delta_gb": plan.delta_bytes / 1e9, "checkpoints_gb": plan.checkpoint_bytes / 1e9}
    return row | ({"wire_gb": plan.wire[way] / 1e9} if plan.wire else {})


def planned(folder: Path, preset: str, *, problems: int) -> list[Row]:
    """A row for all weights in each process, and one sharded."""
    shape, launch, _ = PLANNED[preset]
    overrides = [f"model.name={config_folder(folder, shape)}", f"data.path=corpus:{problems}"]
    config = load_config(PRESETS / f"{preset}.yaml", overrides)
    plan = Plan(config, read_launch(PRESETS / f"{launch}.accelerate.yaml"))
    plan.train(alignment_pairs(config)[0], None)
    rows = [row_of(plan, preset, way) for way in plan.memory]
    return [row | {"fits": "yes" if row["memory_gb"] * 1e9 <= GPU_BYTES else "no"} for row in rows]


def measured(folder: Path, shape: str) -> Row:
    """A plan of a step on a CPU, and what that step takes."""
    values: dict[str, Any] = {"name": str(config_folder(folder, shape)), "dtype": "float32", "device": "cpu"}
    overrides = [f"model.{key}={value}" for key, value in values.items()]
    overrides += ["data.path=corpus:40", "data.held_out=1", "train.max_steps=1", "train.tokens_per_batch=512"]
    overrides += ["train.prompt=authors", "select.k=2", "select.rule=lowest"]
    config = load_config(None, overrides)
    pairs, _ = alignment_pairs(config)
    plan = Plan(config, Launch())
    plan.train(pairs, None)
    row = row_of(plan, shape, "replicated")

    model = patch_model(shape_builder(shape, torch.device("cpu"), torch.float32)())
    apply_selection(model, choose_before_probe(model.config.num_hidden_layers, 2, "lowest", "lower"))
    examples = tokenize(pairs, plan.tokenizer, config.train)
    lengths = examples.lengths.tolist()
    batches = [batch for step in StepPlan(lengths, config.train) for batch in step]
    largest = max(batches, key=lambda batch: sum(lengths[index] for index in batch))
    batch = collate([examples[index] for index in largest])
    batch = replace(batch, input_ids=batch.input_ids % model.config.vocab_size, labels=batch.labels.clamp(max=99))
    optimizer, head = MasterAdamW(trained_parameters(model).items()), read_head(model)
    optimizer.gradients()
    optimizer.step(0.0)  # moments exist from the first step on
    with packed_attention(model), peak_growth(torch.device("cpu")) as growth:
        packed_loss(model, batch, head=head).backward()
        optimizer.collect_gradients()
        optimizer.step(1e-5)
    resident = storage_bytes([*model.parameters(), *model.buffers(), *optimizer.state_dict().values()])
    taken = (resident + growth[0]) / 1e9
    return row | {"measured_gb": taken, "off_percent": 100 * (row["memory_gb"] / taken - 1)}


def main(argv: Sequence[str] | None = None) -> int:
    stage = Stage("dry_run", __doc__.splitlines()[0], argv)
    with tempfile.TemporaryDirectory() as folder:
        for preset in PLANNED:
            stage.rows += planned(Path(folder), preset, problems=40 if stage.dry else 1000)
            stage.save()
        for shape in ("tiny",) if stage.dry else MEASURED:
            stage.rows.append(measured(Path(folder), shape))
            stage.save()
    show("dry runs", stage.rows, COLUMNS)
    return 0 if all(abs(row.get("off_percent", 0)) <= 10 for row in stage.rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
