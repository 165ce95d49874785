"""The demo and what agents send: it fits, and the answer is about what the user said last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gateway.openai.chat import parse_chat
from supervisor.wire.frames import End, FromEngine, Generate, Load, Token
from tests.helpers.recorded import CHATS, PROGRAMS, recorded
from worker.demo import MODEL_DIR
from worker.demo.trainer.tokenizer import LONGEST_ANSWER
from worker.engine.batch import BatchEngine
from worker.engine.thread import Job, Prepared

CONTEXT = 65_536


@pytest.fixture(scope="module")
def engine() -> Iterator[BatchEngine]:
    made = BatchEngine()
    made.warm_up()
    load = Load("demo", 1, str(MODEL_DIR), "/unused", 8, 0)
    assert made.load(load, lambda done, total: None).context == CONTEXT
    yield made
    made.close()


class Run:
    """A chat's job, and what it was given."""

    def __init__(self, engine: BatchEngine, body: dict[str, Any]) -> None:
        self.frames: list[FromEngine] = []
        request, prepared = prepare(engine, body)
        self.job = Job(request, prepared, self)
        engine.insert(self.job)

    def send(self, frames: Sequence[FromEngine]) -> None:
        self.frames.extend(frames)

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def text(self) -> str:
        return "".join(frame.text for frame in self.frames if isinstance(frame, Token))

    @property
    def end(self) -> End:
        end = self.frames[-1]
        assert isinstance(end, End)
        return end


def prepare(engine: BatchEngine, body: dict[str, Any]) -> tuple[Generate, Prepared]:
    (request,) = parse_chat(body).choices("r", 1.0, 1)
    return request, engine.prepare(request)


def test_seven_programs_were_recorded() -> None:
    assert len(PROGRAMS) == 7
    assert len(CHATS) == 5


@pytest.mark.parametrize("program", CHATS)
def test_a_recorded_request_fits_with_room_for_an_answer(engine: BatchEngine, program: str) -> None:
    body = recorded(program).body
    request, prepared = prepare(engine, body)
    assert len(prepared.prompt) > 2048
    assert len(prepared.prompt) + LONGEST_ANSWER <= CONTEXT
    assert request.calling is not None
    assert len(request.calling.names) == len(body["tools"])


def test_the_largest_recorded_request_fits(engine: BatchEngine) -> None:
    """Claude Code's, as a chat: of all of them the one that makes the most tokens."""
    body = recorded("claude-code").body
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "description": tool["description"],
                "parameters": tool["input_schema"],
            },
        }
        for tool in body["tools"]
    ]
    messages = [{"role": "system", "content": body["system"]}, *body["messages"]]
    chat = {"model": "demo", "messages": messages, "tools": tools}
    _, prepared = prepare(engine, chat)
    assert 35_000 < len(prepared.prompt) < CONTEXT - LONGEST_ANSWER


def test_behind_an_agents_preamble_it_still_answers_the_user(engine: BatchEngine) -> None:
    said = {
        "hi": "How can I help",
        "What is Bulkhead?": "MLX",
        "Which port does Bulkhead listen on?": "11435",
    }
    opening = recorded("continue").preamble
    runs = {
        question: Run(
            engine,
            {**opening, "messages": [*opening["messages"], {"role": "user", "content": question}]},
        )
        for question in said
    }
    while engine.busy:
        for job, frames in engine.step():
            job.sink.send(frames)
    assert {run.end.prompt_tokens > 2048 for run in runs.values()} == {True}
    answers = {question: run.text for question, run in runs.items()}
    assert {q: a for q, a in answers.items() if said[q] not in a} == {}
    assert {run.end.finish_reason for run in runs.values()} == {"stop"}
