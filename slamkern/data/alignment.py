"""What alignment trains on, from pairs and the model's own replies: translations, replies in English, and replays.

    translation             question -> the same question in English (SLAM)
    reply                   question -> the model's own reply to the English question (self-distillation)
    translation_then_reply  question -> the English question, then that reply
    replay                  English question -> that reply, which keeps what the model said before

Replies are the model's own, so that nothing has to change but what it makes of the question. The prompt of a
translation asks for one; in all others the question itself is put.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, cycle, islice, zip_longest
from typing import Literal, get_args

from slamkern.data.pairs import Pair
from slamkern.errors import SlamkernError

log = logging.getLogger(__name__)

Target = Literal["translation", "reply", "translation_then_reply"]
TARGETS: tuple[str, ...] = get_args(Target)


def needs_replies(targets: Sequence[str], replay: float) -> bool:
    """Whether examples of these kinds are made of replies."""
    return replay > 0 or set(targets) != {"translation"}


def english_questions(pairs: Sequence[Pair], limit: int | None = None) -> list[str]:
    """The first ``limit`` English sides of the questions among ``pairs``, each once."""
    sides = dict.fromkeys(pair.target for pair in pairs if pair.kind == "question" and pair.target_language == "en")
    return list(sides)[:limit]


def aligned_examples(
    pairs: Sequence[Pair],
    targets: Sequence[str] = ("translation",),
    replies: Mapping[str, str] | None = None,
    *,
    limit: int | None = None,
    replay: float = 0.0,
    seed: int = 0,
) -> Sequence[Pair]:
    """Training examples from translation pairs; where every one is its translation, the pairs themselves.

    Args:
        targets: what the reply to a question is, of ``TARGETS``; several are taken in turn in every language.
        replies: English question -> the model's own reply. Questions without one serve translation alone.
        limit: so many examples, languages in turn and pairs drawn by ``seed``; None: every pair once, in its order.
        replay: English questions with their replies, this many for each example; drawn by ``seed``.

    Fewer than asked for are logged. SlamkernError for an unknown target, and where no pair has a reply.
    """
    replies = replies or {}
    if unknown := [name for name in targets if name not in TARGETS]:
        raise SlamkernError(f"unknown target {unknown[0]!r}; known: {' '.join(TARGETS)}")
    if set(targets) == {"translation"} and limit is None and not replay:
        return pairs  # which may be more than fit into memory
    made = list(_made(pairs, targets, replies, limit, seed))
    if not made:
        raise SlamkernError(f"none of the {len(pairs)} pairs is a question whose English side has a reply")
    if limit is not None and len(made) < limit:
        log.warning("there are %d examples instead of %d: pairs with a reply are fewer", len(made), limit)
    wanted = round(replay * len(made))
    again = random.Random(f"replay {seed}").sample(sorted(replies), min(wanted, len(replies)))
    if len(again) < wanted:
        log.warning("%d replies are replayed instead of %d: there are no more", len(again), wanted)
    return made + [Pair(text, replies[text], "en", "en", "response") for text in again]


def _made(
    pairs: Sequence[Pair], targets: Sequence[str], replies: Mapping[str, str], limit: int | None, seed: int
) -> Iterator[Pair]:
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.source_language].append(pair)
    if limit is not None:
        for code, group in groups.items():
            random.Random(f"examples {seed} {code}").shuffle(group)
    made = [_of_language(group, targets, replies) for group in groups.values()]
    if limit is None:
        yield from chain.from_iterable(made)
        return
    rounds = (row for turn in zip_longest(*made) for row in turn if row is not None)
    yield from islice(rounds, limit)


def _of_language(pairs: Sequence[Pair], targets: Sequence[str], replies: Mapping[str, str]) -> Iterator[Pair]:
    """One example a pair, the targets in turn, until no pair is left that serves the next one."""
    every = iter(range(len(pairs)))
    answered = (i for i, pair in enumerate(pairs) if pair.kind == "question" and pair.target in replies)
    taken: set[int] = set()
    for target in cycle(targets):
        found = next((i for i in (every if target == "translation" else answered) if i not in taken), None)
        if found is None:
            return
        taken.add(found)
        yield _example(pairs[found], target, replies)


def _example(pair: Pair, target: str, replies: Mapping[str, str]) -> Pair:
    if target == "translation":
        return pair
    reply = replies[pair.target]
    text = reply if target == "reply" else f"{pair.target}\n\n{reply}"
    return replace(pair, target=text, kind="response")
