"""Whether texts fit into the model's context and the recipe's lengths, found out with its tokenizer alone."""

from collections.abc import Sequence
from typing import Any

from slamkern.data.alignment import aligned_examples
from slamkern.data.pairs import Pair
from slamkern.data.prompts import encode_prompts, get_prompt
from slamkern.data.tasks import Question
from slamkern.data.tokenization import check_some_fit
from slamkern.evaluation.generation import check_lengths
from slamkern.evaluation.translation import asked_pairs
from slamkern.pipeline.sections import RunConfig
from slamkern.pipeline.stages import reply_questions
from slamkern.training.batches import longest_example


def check_examples(
    config: RunConfig, tokenizer: Any, context: int | None, aligned: Sequence[Pair], held_out: Sequence[Pair]
) -> None:
    """SlamkernError where no example can be trained on or held out, or a question is too long to be replied to.

    Replies are not known yet: they are taken to be as short as can be.
    """
    prompt = get_prompt(config.train.prompt, tokenizer)
    questions = reply_questions(config, aligned, held_out)
    rows = encode_prompts([prompt.question(text, "en") for text in questions], tokenizer)
    check_lengths(rows, config.align.max_new_tokens, context, [text[:40] for text in questions])
    replies = dict.fromkeys(questions, ".")
    limit = longest_example(config.train, context)
    for pairs in filter(None, (aligned, held_out)):
        check_some_fit(aligned_examples(pairs, config.align.target, replies), tokenizer, prompt, max_length=limit)


def check_translations(config: RunConfig, tokenizer: Any, context: int | None, held_out: Sequence[Pair]) -> None:
    """SlamkernError for a language whose held-out pairs are all too long, or one too long to be translated for chrF."""
    prompt, section = get_prompt(config.train.prompt, tokenizer), config.evaluate
    for code in dict.fromkeys(pair.source_language for pair in held_out):
        pairs = [pair for pair in held_out if pair.source_language == code]
        check_some_fit(pairs, tokenizer, prompt, max_length=config.train.max_length)
    asked = asked_pairs(held_out, tokenizer, prompt, section.chrf_limit, max_length=config.train.max_length)
    rows = encode_prompts([prompt.translation(pair)[0] for pair in asked], tokenizer)
    names = [f"{pair.source_language}: {pair.source[:40]!r}" for pair in asked]
    check_lengths(rows, section.max_new_tokens, context, names)


def check_answers(config: RunConfig, tokenizer: Any, context: int | None, questions: Sequence[Question]) -> None:
    """SlamkernError for a prompt that cannot be had, and a question that leaves no room for an answer."""
    prompt = config.evaluate.prompt_for(tokenizer)
    rows = encode_prompts([prompt.question(q.question, q.language) for q in questions], tokenizer)
    check_lengths(rows, config.evaluate.max_new_tokens, context, [question.id for question in questions])
