"""The small model of the demo: really trained, on this machine, on the embedded corpus, before anything is aligned.

A byte-level BPE tokenizer (digits apart) over all ten languages and a small Llama. It reads English questions with
their solutions (most of its text) and single questions of the other languages, never two languages in one sequence:
so it reasons in English, has seen the others, and knows no translation. Steps, seeds and sizes are fixed, so the same
machine gives the same model. Nothing here knows about alignment.
"""

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from slamkern.data.prompts import Prompt, get_prompt
from slamkern.data.synthetic import LANGUAGES, Problem, generate
from slamkern.progress import progress_bar

CODES = tuple(LANGUAGES)
EOS = "<|end|>"


@dataclass(frozen=True)
class ModelSize:
    """Shape of the model and length of its training.

    ``problems`` are told in English with their solution; ``foreign`` of them also appear as a bare question in every
    other language. One pass over that text, in rows of ``row`` tokens. A token of a solution weighs ``emphasis`` times
    as much in the loss as another: copying numbers and names is the hard part, and much of a question is chance.
    """

    vocabulary: int = 2048
    hidden: int = 96
    layers: int = 6
    heads: int = 4
    intermediate: int = 256
    problems: int = 6500
    foreign: int = 200
    row: int = 256
    rows_per_batch: int = 4
    initializer: float = 0.05
    emphasis: float = 5.0
    learning_rate: float = 6e-3
    seed: int = 0


def build_model(size: ModelSize, prompt: str, unseen: Container[str] = (), *, progress: bool = True) -> tuple[Any, Any]:
    """Train a tokenizer and a model; returns (model, tokenizer).

    ``prompt``: how questions are put to the model, see ``prompts``. ``unseen``: English questions it must not read.
    """
    problems = [problem for problem in generate(size.problems, seed=1) if problem.questions["en"] not in unseen]
    tokenizer = train_tokenizer(problems[: size.foreign], size.vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size.seed)
        model = _new_model(tokenizer, size)
        _pretrain(model, *_rows(problems, tokenizer, get_prompt(prompt), size), size, progress)
    return model.eval(), tokenizer


def train_tokenizer(problems: Sequence[Problem], vocabulary: int) -> Any:
    """Byte-level BPE over questions of all languages and English solutions; every digit is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for problem in problems for text in (*problem.questions.values(), problem.solutions["en"])]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def _new_model(tokenizer: Any, size: ModelSize) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=size.initializer,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def _rows(
    problems: Sequence[Problem], tokenizer: Any, prompt: Prompt, size: ModelSize
) -> tuple[torch.Tensor, torch.Tensor]:
    """All texts, in random order, as rows of ``row`` tokens, and their weights in the loss; a row's end may cut a text.

    tokens: (rows, row) int64; weights: (rows, row) float32.
    """
    texts = [(p.questions[code], "") for code in CODES if code != "en" for p in problems[: size.foreign]]
    texts += [(prompt.question(p.questions["en"], "en"), p.solutions["en"]) for p in problems]
    random.Random(size.seed).shuffle(texts)
    # Apart, as generation will: a prompt's last token must not depend on what follows.
    halves = [tokenizer(list(side), add_special_tokens=False)["input_ids"] for side in zip(*texts, strict=True)]
    tokens: list[int] = []
    weights: list[float] = []
    for question, solution in zip(*halves, strict=True):
        tokens += [*question, *solution, tokenizer.eos_token_id]
        weights += [1.0] * len(question) + [size.emphasis] * len(solution) + [1.0]
    whole = len(tokens) // size.row * size.row
    return torch.tensor(tokens[:whole]).view(-1, size.row), torch.tensor(weights[:whole]).view(-1, size.row)


def _confine(rows: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention within each text of ``rows`` (rows, row): its mask and positions.

    mask: (rows, 1, row, row) bool; positions: (rows, row) int64, from 0 in each text. For a model this small one mask
    is much faster than packed attention's one call a sequence.
    """
    place = torch.arange(rows.shape[1])
    ends = rows == end
    text = ends.cumsum(1) - ends.long()
    start = torch.where(text[:, :, None] == text[:, None, :], place, rows.shape[1]).amin(2)
    mask = (text[:, :, None] == text[:, None, :]) & (place[:, None] >= place[None, :])
    return mask[:, None], place - start


def _pretrain(model: Any, rows: torch.Tensor, weights: torch.Tensor, size: ModelSize, progress: bool) -> None:
    """AdamW with warm-up and a linear decay on the weighted mean of the next-token losses."""
    batches = list(zip(rows.split(size.rows_per_batch), weights.split(size.rows_per_batch), strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, max(0.02, 1 - step / len(batches)))
    )
    model.train()
    bar = progress_bar(batches, desc="train the demo model", unit="step", show=progress)
    for batch, weight in bar:
        mask, positions = _confine(batch, model.config.eos_token_id)
        logits = model(input_ids=batch, attention_mask=mask, position_ids=positions, use_cache=False).logits
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        loss = torch.dot(losses, weight[:, 1:].flatten()) / weight[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
