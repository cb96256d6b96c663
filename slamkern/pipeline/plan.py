"""What long work will take, without doing it: parameters, memory, FLOPs, time and disk, from a configuration and data.

The model is built from its configuration on the meta device, so nothing of its weights is read; texts are tokenized as
they will be. Memory is that of ``shape_memory`` and FLOPs are the minimum of ``step_cost``, both for Llama-like
decoders; where a model is none, those lines say so. Of several processes, memory and what is sent are those of one
(``scale_out``). Times are FLOPs at a stated utilization and bytes at a stated rate, nothing measured.
"""

from collections.abc import Collection, Mapping, Sequence

from slamkern.data.pairs import Pair
from slamkern.data.prompts import encode_prompts, get_prompt
from slamkern.data.tasks import Question
from slamkern.data.tokenization import tokenize_pairs
from slamkern.evaluation.translation import asked_pairs
from slamkern.modules.varlen_attention import shares_keys
from slamkern.pipeline.blueprint import blueprint
from slamkern.pipeline.checks import check_run
from slamkern.pipeline.launch import Launch, read_launch
from slamkern.pipeline.loading import load_tokenizer, resolve_device
from slamkern.pipeline.sections import RunConfig
from slamkern.pipeline.stages import alignment_pairs, longest_examples, probe_texts, reply_questions
from slamkern.selection.layers import LayerSelection, choose_before_probe
from slamkern.selection.trainable import trained_sizes
from slamkern.training.batches import StepPlan, context_of, tokenize
from slamkern.training.checkpoint import KEPT
from slamkern.training.footprint import Footprint, gigabytes
from slamkern.training.memory_budget import offload_choice, parse_bytes
from slamkern.training.scale_out import sharded_footprint, wire_bytes
from slamkern.training.shape_memory import shape_footprint
from slamkern.training.step_cost import Dimensions

TERAFLOPS, UTILIZATION = 989.0, 0.4  # dense bfloat16 of an H100 SXM (its data sheet), and what training often reaches
BYTES_A_TOKEN = 4  # of text, about
STATE_BYTES = 12  # a float32 master and two moments
# Bytes a second that a GPU sends: NVLink 4 of an H100 (its data sheet, one direction); one 400 Gbit/s adapter a GPU.
NVLINK, NETWORK = 450e9, 50e9
WAYS = {"replicated": "all weights in each", "sharded": "sharded with FSDP2"}


def checkpoint_bytes(trained: int, itemsize: int) -> int:
    """Of the checkpoints that are kept: delta and optimizer each."""
    return KEPT * trained * (itemsize + STATE_BYTES)


class Plan:
    """Lines of a plan, (name, what) each; the model's dimensions and its tokenizer are read once."""

    def __init__(self, config: RunConfig, launch: Launch | None = None, *, ways: Collection[str] = tuple(WAYS)) -> None:
        """launch: the job that does the work; by default the one that this process is part of. ways: how its
        processes may hold the model.
        """
        self.ways = ways
        self.config, self.launch = config, launch or read_launch(None)
        self.memory: dict[str, dict[str, int]] = {}  # replicated, sharded -> part -> bytes
        self.wire: dict[str, int] = {}  # replicated, sharded -> bytes a step
        self.trained = self.steps = self.delta_bytes = self.checkpoint_bytes = 0
        self.flops = self.seconds = 0.0  # of training
        spec, trust = config.model.name, config.model.trust_remote_code
        self.tokenizer = load_tokenizer(spec, trust_remote_code=trust)
        self.model = blueprint(config.model)
        self.shape, self.dtype = self.model.config.get_text_config(), self.model.dtype
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        name = str(self.dtype).removeprefix("torch.")
        weights = gigabytes(self.parameters * self.dtype.itemsize)
        self.lines = [("model", f"{type(self.model).__name__}, {self.parameters:,} parameters, {weights} in {name}")]

    def probe(self, texts: Mapping[str, Sequence[str]]) -> None:
        """One forward of every text, and the statistics file."""
        section = self.config.probe
        lengths = {
            code: sum(min(len(ids), section.max_length) for ids in self.tokenizer(list(rows))["input_ids"])
            for code, rows in texts.items()
        }
        tokens = sum(lengths.values())
        embeddings = self.model.get_input_embeddings().weight.numel()
        each = ", ".join(f"{code} {count:,}" for code, count in lengths.items())
        self.work("probe", f"{tokens:,} tokens ({each})", 2 * tokens * (self.parameters - embeddings))
        if neurons := getattr(self.shape, "intermediate_size", None):
            values = len(texts) * self.shape.num_hidden_layers * neurons
            # Per language int64, and two float64; per group of questions float32 and int32.
            self.lines.append(("  disk", f"{gigabytes(values * (24 + 8 * section.groups))} of statistics"))

    def examples(self, aligned: Sequence[Pair], held_out: Sequence[Pair]) -> Sequence[Pair]:
        """What would be trained on; the replies that the model would give first are as long as they may be."""
        section = self.config.align
        questions = reply_questions(self.config, aligned, held_out)
        if questions:
            prompt = get_prompt(self.config.train.prompt, self.tokenizer)
            read = sum(map(len, encode_prompts([prompt.question(text, "en") for text in questions], self.tokenizer)))
            written = len(questions) * section.max_new_tokens
            self.lines.append(
                ("replies", f"{len(questions):,} questions, {read:,} tokens read, at most {written:,} written")
            )
        return longest_examples(self.config, aligned, questions)

    def train(self, pairs: Sequence[Pair], selection: LayerSelection | None) -> None:
        """Every step on these pairs; without a selection, of as many layers as will be chosen."""
        config, section = self.config.train, self.config.select
        layers = selection.layers if selection is not None else choose_before_probe(
            self.shape.num_hidden_layers, section.k, section.rule, section.region, section.preset
        )  # fmt: skip
        context = context_of(self.model)
        examples = tokenize(pairs, self.tokenizer, config, context=context)
        lengths, supervised = examples.lengths.tolist(), examples.supervised.tolist()
        plan = StepPlan(lengths, config)
        batches = [batch for step in plan for batch in step]
        largest, labels = (
            max(sum(counts[index] for index in batch) for batch in batches) for counts in (lengths, supervised)
        )
        trained = sum(trained_sizes(self.model, layers if selection is None else selection, section.projections))
        share = 100 * trained / self.parameters
        which = ", ".join(map(str, layers)) + ("" if selection is not None else " (or others, as the probe says)")
        self.lines.append(("train", f"{trained:,} parameters ({share:.2f} %) of the layers {which}"))
        self.trained, self.steps = trained, len(plan)
        tokens = sum(lengths[index] for batch in batches for index in batch)
        what = f"{len(plan):,} steps, {tokens:,} tokens, {tokens / len(plan):,.0f} a step"
        try:
            dimensions = Dimensions.of(self.shape)
            steps = ([index for batch in step for index in batch] for step in plan)
            flops = sum(
                dimensions.minimum_flops([lengths[i] for i in step], sum(supervised[i] for i in step), layers)
                for step in steps
            )
            self.flops, self.seconds = flops, self.work("  work", what, flops)
            if set(section.projections) == {"up", "down"}:
                self._memory(largest, labels, layers, trained)
        except AttributeError as error:
            self.lines.append(
                ("  work", f"{what}; FLOPs and memory are not known for {self.shape.model_type} ({error})")
            )
        self.delta_bytes = trained * self.dtype.itemsize
        self.checkpoint_bytes = checkpoint_bytes(trained, self.dtype.itemsize)
        delta, kept = gigabytes(self.delta_bytes), gigabytes(self.checkpoint_bytes)
        self.lines.append(("  disk", f"{delta} of trained weights, up to {kept} of checkpoints"))

    def evaluate(self, questions: Sequence[Question], times: int = 1) -> None:
        """Every answer as long as it may be, and kept with its question."""
        prompt = get_prompt(self.config.evaluate.prompt, self.tokenizer)
        texts = [prompt.question(question.question, question.language) for question in questions]
        written = self._answers("evaluate", "questions", texts, times)
        asked = sum(len(question.question.encode()) for question in questions)
        disk = gigabytes(times * (asked + BYTES_A_TOKEN * written))
        self.lines.append(("  disk", f"{disk} of answers, at {BYTES_A_TOKEN} bytes a token"))

    def translations(self, held_out: Sequence[Pair], times: int) -> None:
        """Those for chrF, every one as long as it may be."""
        limit, longest = self.config.evaluate.chrf_limit, self.config.train.max_length
        prompt = get_prompt(self.config.train.prompt, self.tokenizer)
        if asked := asked_pairs(held_out, self.tokenizer, prompt, limit, max_length=longest):
            self._answers("chrF", "translations", [prompt.translation(pair)[0] for pair in asked], times)

    def weights(self, what: str) -> None:
        """Memory of work that trains nothing; ``what`` comes on top."""
        each = f" in each of {self.launch.processes} processes" if self.launch.processes > 1 else ""
        held = gigabytes(self.parameters * self.dtype.itemsize)
        self.lines.append(("  memory", f"{held} of weights{each}, and {what}"))

    def _answers(self, name: str, what: str, prompts: list[str], times: int) -> int:
        """A line of prompts read and answers written; returns how many tokens all of those have at most."""
        read = sum(map(len, encode_prompts(prompts, self.tokenizer)))
        written = len(prompts) * self.config.evaluate.max_new_tokens
        # Decoding waits for memory, not for FLOPs, so these say nothing about its time.
        flops = f"{2 * times * (read + written) * self.parameters:.3g} FLOPs"
        name = name if times == 1 else f"{name}, {times} times"
        self.lines.append(
            (name, f"{len(prompts):,} {what}, {read:,} tokens read, at most {written:,} written; {flops}")
        )
        return written

    def losses(self, name: str, texts: Sequence[Pair], prompt: str, times: int = 1) -> None:
        """One forward of every held-out pair, so many times."""
        examples = tokenize_pairs(
            texts, self.tokenizer, get_prompt(prompt, self.tokenizer), max_length=self.config.train.max_length
        )
        tokens = times * int(examples.lengths.sum())
        what = f"{len(texts):,} pairs, {tokens:,} tokens" + (f" in {times} passes" if times > 1 else "")
        self.work(name, what, 2 * tokens * self.parameters)

    def _memory(self, positions: int, supervised: int, layers: Sequence[int], trained: int) -> None:
        """What one process holds and sends, with all weights and, of several processes, sharded."""
        config, processes, itemsize = self.config.train, self.launch.processes, self.dtype.itemsize
        micro_batches = -(-config.gradient_accumulation_steps // processes)
        fp8 = config.frozen_precision == "fp8"
        on_host = resolve_device(self.config.model.device).type == "cpu"
        repeated = not (shares_keys() or (on_host and self.launch.here))
        whole = shape_footprint(
            self.shape, layers, itemsize=itemsize, fp8=fp8, accumulation=micro_batches, repeated_keys=repeated
        )
        ways = {"replicated": whole}
        if processes > 1 and not fp8 and "sharded" in self.ways:
            ways["sharded"] = sharded_footprint(whole, self.shape, layers, processes, itemsize=itemsize)
        self.memory = {name: _parts(footprint, positions, supervised) for name, footprint in ways.items()}
        for name, parts in self.memory.items():
            words = ", ".join(f"{part} {gigabytes(value)}" for part, value in parts.items())
            where = f" in each of {processes} processes, {WAYS[name]}" if processes > 1 else ""
            total = gigabytes(sum(parts.values()))
            self.lines.append(("  memory", f"{total} at {positions:,} tokens{where}, nothing recomputed: {words}"))
        if config.memory_budget is not None:
            budget = parse_bytes(config.memory_budget)
            choice = offload_choice(config.optimizer_offload, on_host)
            how = whole.describe(positions, whole.plan(positions, budget, offload=choice))
            self.lines.append(("  budget", f"{gigabytes(budget)}: {how}"))
        if processes == 1:
            return
        weights = self.parameters * itemsize
        sent = wire_bytes(self.shape, layers, trained, weights, processes, micro_batches, itemsize=itemsize)
        self.wire = {name: sent[name] for name in ways}
        link, rate = ("NVLink", NVLINK) if self.launch.machines == 1 else ("the network", NETWORK)
        for name, count in self.wire.items():
            seconds = _duration(count / rate)
            at = f"{seconds} at {rate / 1e9:g} GB/s of {link}"
            self.lines.append(("  wire", f"{gigabytes(count)} sent by each process in a step, {WAYS[name]}: {at}"))

    def work(self, name: str, what: str, flops: float) -> float:
        """Adds a line that says how long so many FLOPs take; returns the seconds."""
        processes = self.launch.processes
        seconds = flops / (processes * TERAFLOPS * 1e12 * UTILIZATION)
        gpus = f"{processes} H100s" if processes > 1 else "an H100"
        at = f"{_duration(seconds)} on {gpus} at {UTILIZATION:.0%} of {TERAFLOPS:g} TFLOP/s"
        self.lines.append((name, f"{what}; {flops:.3g} FLOPs, {at}"))
        return seconds


def _parts(footprint: Footprint, positions: int, supervised: int) -> dict[str, int]:
    """Bytes at the peak of a step, by what they are for."""
    parts = {"weights": footprint.weights, "optimizer": footprint.state}
    parts["saved for backward"] = footprint.saved_bytes(positions)
    return parts | {"workspace": footprint.total(positions, supervised=supervised) - sum(parts.values())}


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_run(config: RunConfig, launch: Launch | None = None) -> list[tuple[str, str]]:
    """The plan of a whole run; SlamkernError as :func:`check_run`."""
    aligned, held_out = alignment_pairs(config)
    check_run(config, aligned, held_out, launch)
    plan = Plan(config, launch, ways=("replicated",))
    plan.probe(probe_texts(config, aligned))
    plan.train(plan.examples(aligned, held_out), None)
    if held_out:
        plan.losses("held-out losses", held_out, config.train.prompt, times=2)
        plan.translations(held_out, times=2)
    if config.evaluate.task is not None:
        plan.evaluate(config.evaluate.load(), times=2)
    return plan.lines
