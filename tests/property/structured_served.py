"""Answers under schemas from the engine itself: the demo model thinks, calls tools and is hot.

`python -m tests.property.structured --served` runs it long. What ended with "stop" must be valid,
whatever else was decoded beside it; what ended with "tool_calls" must be calls of the tools.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supervisor.wire.frames import (
    Calling,
    Chat,
    End,
    Failed,
    FromEngine,
    Generate,
    Load,
    Sampling,
    Schema,
    Token,
)
from tests.property.structured import fault, served
from worker.engine.batch import BatchEngine
from worker.engine.thread import FINAL_FRAMES, Job

DEMO = Path(__file__).parents[2] / "worker" / "demo" / "model"
TOGETHER = 16
MARKERS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<|im_start|>",
    "a<|im_end|>b",
    "<s>",
    "[TOOL_CALLS]",
)
LITERALS: dict[str, Any] = {
    **{f"constant {marker}": {"const": marker} for marker in MARKERS},
    "markers to choose from": {"enum": list(MARKERS)},
    "a marker within": {"const": {"tag": "<think>", "b": 1}},
    "markers as names": {
        "type": "object",
        "properties": {marker: {"type": "boolean"} for marker in MARKERS},
        "required": list(MARKERS),
        "additionalProperties": False,
    },
    "looks like a call": {
        "type": "object",
        "properties": {"name": {"const": "f"}, "parameters": {"const": {"a": 1}}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    },
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
ASKED = ("What is the weather in Paris?", "Hello!", "Write <think> and <tool_call>.", "2 + 3")


class Answer:
    """A job's sink."""

    def __init__(self, name: str, schema: Any, request: Generate) -> None:
        self.name, self.schema, self.request = name, schema, request
        self.frames: list[FromEngine] = []

    def send(self, frames: Sequence[FromEngine]) -> None:
        self.frames.extend(frames)

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def tokens(self) -> list[Token]:
        return [frame for frame in self.frames if isinstance(frame, Token)]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    def kind(self) -> str:
        """How it ended."""
        last = self.frames[-1]
        if isinstance(last, Failed):
            return "failed"
        assert isinstance(last, End)
        return (
            f"{last.finish_reason} after thinking" if last.reasoning_tokens else last.finish_reason
        )

    def incomplete_error(self) -> str:
        """Why it is not what its end says, "" = it is."""
        last = self.frames[-1]
        if isinstance(last, Failed):
            return f"failed: {last.message}"
        assert isinstance(last, End)
        if last.finish_reason == "length":
            return ""
        if last.finish_reason == "stop":
            return fault(self.schema, self.text)
        arguments: dict[int, str] = {}
        for call in (call for token in self.tokens for call in token.calls):
            if call.name not in ("", "get_weather"):
                return f"a call of {call.name!r}"
            arguments[call.index] = arguments.get(call.index, "") + call.arguments
        schema = TOOLS[0]["function"]["parameters"]  # type: ignore[index]
        wrong = [why for each in arguments.values() if (why := fault(schema, each))]
        if self.text or not arguments or wrong or self.request.calling is None:
            return f"no calls: {wrong}"
        return ""


def answers(seed: int, count: int, *, literals: bool = False) -> list[Answer]:
    """What is asked for: every schema hot and hotter, with and without thinking and tools."""
    schemas = list((LITERALS if literals else {**LITERALS, **served()}).items())
    made = []
    for number in range(count):
        name, schema = schemas[number % len(schemas)]
        turn = number + number // len(schemas)
        tools = turn % 3 == 0
        request = Generate(
            str(number),
            Chat(
                [{"role": "user", "content": ASKED[turn % len(ASKED)]}],
                TOOLS if tools else [],
                {"enable_thinking": turn % 2 == 0},
            ),
            0.0,
            max_tokens=400,
            sampling=Sampling(temperature=(1.0, 1.3, 2.0)[turn % 3], seed=seed + number),
            calling=Calling("auto", ("get_weather",), turn % 2 == 0) if tools else None,
            structure=Schema(json.dumps(schema)),
        )
        made.append(Answer(name, schema, request))
    return made


def run(wanted: Sequence[Answer], folder: Path = DEMO) -> tuple[Counter[str], str]:
    """Generate them: how many ended in which way, and the first fault."""
    engine = BatchEngine()
    engine.warm_up()
    engine.load(Load("m", 1, str(folder), "/unused", TOGETHER, 2048), lambda done, total: None)
    ended: Counter[str] = Counter()
    waiting = list(reversed(wanted))
    running = 0
    try:
        while waiting or running:
            while waiting and running < TOGETHER:
                answer = waiting.pop()
                engine.insert(Job(answer.request, engine.prepare(answer.request), answer))
                running += 1
            for job, frames in engine.step():
                job.sink.send(frames)
                if not isinstance(frames[-1], FINAL_FRAMES):
                    continue
                running -= 1
                answer = job.sink  # type: ignore[assignment]
                ended[answer.kind()] += 1
                if why := answer.incomplete_error():
                    request = answer.request
                    return ended, (
                        f"{answer.name!r}, answer {request.request_id} with seed "
                        f"{request.sampling.seed}: {why}\n{answer.text!r}"
                    )
    finally:
        engine.close()
    return ended, ""
