"""Prompts: how an instruction becomes the text that a model is given, and how that text becomes token ids.

A preset is a template with ``{instruction}`` (required) and ``{language}`` (optional: the English name of the language
that the answer should be in). For a translation pair the instruction is QAlign's
``Translate the following sentences from {Source} to {Target}. {text}`` (Zhu et al., 2024, and the authors of SLAM);
for a question it is the question itself. Every word of a prompt comes from the preset and from the data.

This file does not truncate, batch or mask: that is ``packing``.
"""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slamkern.data.chat_template import check_chat_template, render
from slamkern.data.languages import language
from slamkern.data.pairs import Pair
from slamkern.errors import SlamkernError
from slamkern.reading import MIB, read_text

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
MATHOCTOPUS = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request "
    "in {language}. Please answer in {language}.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
AUTHORS = "Human: {instruction}\nAssistant: "


@dataclass(frozen=True)
class Prompt:
    """A named way to ask.

    ``template`` holds ``{instruction}``; None means the chat template of ``tokenizer``. ``question_suffix`` follows the
    template for questions only: a request for reasoning has no place before a translation.
    """

    name: str
    template: str | None
    question_suffix: str = ""
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def translation(self, pair: Pair) -> tuple[str, str]:
        """Prompt text and response text of one example: a translation, or a question with what to reply to it."""
        if pair.kind == "response":
            return self.question(pair.source, pair.target_language), pair.target
        source, target = language(pair.source_language), language(pair.target_language)
        instruction = f"Translate the following sentences from {source.name} to {target.name}. {pair.source}"
        return self._render(instruction, target.name), pair.target

    def question(self, question: str, language_code: str) -> str:
        """Prompt text that asks ``question``, which is in the language ``language_code``."""
        return self._render(question, language(language_code).name) + self.question_suffix

    def _render(self, instruction: str, answer_language: str) -> str:
        if self.template is None:
            return render(self.tokenizer, instruction)
        # The language first: an instruction that happens to contain "{language}" must stay as it is.
        return self.template.replace("{language}", answer_language).replace("{instruction}", instruction)


_PRESETS = {
    "alpaca": Prompt("alpaca", ALPACA),
    "qalign": Prompt("alpaca", ALPACA),
    "mathoctopus": Prompt("mathoctopus", MATHOCTOPUS),
    "metamath": Prompt("metamath", ALPACA, question_suffix=" Let's think step by step."),
    "authors": Prompt("authors", AUTHORS),
}
PROMPTS: tuple[str, ...] = (*_PRESETS, "chat")


def get_prompt(spec: str, tokenizer: Any = None) -> Prompt:
    """The prompt called ``spec``: a name of ``PROMPTS``, an inline template, or a UTF-8 file that holds a template.

    ``chat`` needs the ``tokenizer`` and its chat template. One newline at the end of a template file is not part of
    the template, because editors add it. ``SlamkernError`` for an unknown name, a missing file, a template without
    ``{instruction}`` and a tokenizer without a chat template.
    """
    if spec in _PRESETS:
        return _PRESETS[spec]
    if spec == "chat":
        return _chat(tokenizer)
    if "{instruction}" in spec:
        return Prompt("custom", spec)
    if len(spec) < 4096 and "\n" not in spec and Path(spec).is_file():
        text = read_text(spec, limit=MIB).removesuffix("\n")
        if "{instruction}" not in text:
            raise SlamkernError(f"prompt template {spec} does not contain {{instruction}}")
        return Prompt(Path(spec).stem, text)
    near = difflib.get_close_matches(spec, PROMPTS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(PROMPTS)}"
    raise SlamkernError(
        f"prompt {spec[:80]!r} is neither a preset, an existing file nor a template with {{instruction}}; {hint}"
    )


def _chat(tokenizer: Any) -> Prompt:
    if tokenizer is None:
        raise SlamkernError("prompt 'chat' needs the tokenizer: get_prompt('chat', tokenizer)")
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise SlamkernError(f"the tokenizer {name} has no chat template; use another prompt: {', '.join(_PRESETS)}")
    check_chat_template(tokenizer)
    return Prompt("chat", None, tokenizer=tokenizer)


def encode_prompts(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of prompt texts, each with the tokenizer's opening tokens (BOS) exactly once and without EOS.

    A chat template often writes BOS as text while the tokenizer adds its own; a tokenizer may also append EOS by
    default, which would end a prompt before its response. So the ids are made without special tokens, and the opening
    ones are put before them where the text does not already bring them.
    """
    if not texts:
        return []
    opening = _opening_tokens(tokenizer)
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [ids if ids[: len(opening)] == opening else opening + ids for ids in encoded]


def _opening_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before any text, found by comparison (no two tokenizers name the option alike)."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return list(full[:start])
    raise SlamkernError(f"the tokenizer {type(tokenizer).__name__} changes the text when it adds special tokens")
