"""The training text: a seeded stream of conversations, and the plain text of what users say."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from worker.demo.trainer.chat import Conversation
from worker.demo.trainer.data import FACTS, RULES, SMALL_TALK, SYSTEM, THOUGHTS
from worker.demo.trainer.phrases import ask
from worker.demo.trainer.tasks import (
    Turn,
    addition,
    capital,
    copying,
    counting,
    invented,
    json_answer,
    opening,
    opposite,
    own_name,
    subtraction,
    unknown,
)
from worker.demo.trainer.tools import pick_tools, tool_conversation

SEED: Final = 11435
SIZE: Final = 60_000
"""Conversations in the training text."""


def _fact_turn(rng: random.Random) -> Turn:
    fact = rng.choice(FACTS if rng.random() < 0.58 else SMALL_TALK)
    return Turn(ask(rng, fact), fact.answer, rng.choice(THOUGHTS).format(t=fact.topic))


def _task_turn(rng: random.Random) -> Turn:
    makers = (json_answer, addition, subtraction, capital, opposite, copying, counting, unknown)
    [maker] = rng.choices(makers, (24, 14, 9, 10, 7, 20, 6, 16))
    return maker(rng)


def _system(rng: random.Random) -> str:
    """Empty more often than not; sometimes as long as an agent's."""
    draw = rng.random()
    if draw < 0.6:
        return ""
    text = rng.choice(SYSTEM)
    if draw < 0.8:
        return text
    rules = rng.sample(RULES, rng.randint(1, 4 if draw < 0.95 else 16))
    if draw > 0.97:
        rules.append(" ".join(invented(rng) for _ in range(rng.randint(1, 20))))
    return " ".join([text, *rules]) if rng.random() < 0.7 else "\n- ".join([text, *rules])


def _chat(rng: random.Random, thinking: bool) -> list[Mapping[str, Any]]:
    turns: list[Turn] = []
    wanted = rng.choices((1, 2, 3, 4, 8, 16, 24), (47, 21, 12, 9, 6, 3, 2))[0]
    later: list[Turn] = []
    while len(turns) < wanted:
        draw = rng.random()
        if draw < (0.12 if not turns else 0.02):
            turns.append(opening(rng))
        elif draw < 0.60:
            turns.append(_fact_turn(rng))
        elif draw < 0.66 and not later:  # the name comes now, the question for it at the end
            hello, *later = own_name(rng)
            turns.append(hello)
        else:
            turns.append(_task_turn(rng))
    turns += later
    messages: list[Mapping[str, Any]] = []
    for turn in turns:
        answer = {"role": "assistant", "content": turn.answer}
        if thinking:
            answer["reasoning_content"] = turn.thought
        messages += [{"role": "user", "content": turn.question}, answer]
    return messages


def conversation(rng: random.Random) -> Conversation:
    """One document: a chat, or a conversation with tools."""
    thinking = rng.random() < 0.14
    messages: list[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    draw = rng.random()
    if draw < 0.24:
        made = tool_conversation(rng, thinking)
        messages, tools = list(made.messages), made.tools
    else:
        messages, tools = _chat(rng, thinking), ()
        if draw < 0.26:  # tools that the question does not need
            tools, _ = pick_tools(rng, None)
    if system := _system(rng):
        messages.insert(0, {"role": "system", "content": system})
    return Conversation(messages, tools)


def conversations(size: int = SIZE, seed: int = SEED) -> Iterator[Conversation]:
    """The training text, the same on every machine."""
    rng = random.Random(seed)
    for _ in range(size):
        yield conversation(rng)
