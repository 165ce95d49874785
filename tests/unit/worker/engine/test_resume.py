"""A request that is cut anywhere and resumed elsewhere says what it would have said.

The engine that workers run, on the CPU, where prefilling and decoding agree to the last bit. Each
request is cut at many of its tokens; frames before the cut and after it must make the undisturbed
answer, with its end. The same for requests that are set aside and taken up again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from supervisor.errors import InternalError
from supervisor.wire.frames import (
    Accepted,
    Calling,
    Chat,
    End,
    FromEngine,
    Generate,
    Grammar,
    Load,
    Pattern,
    Sampling,
    Schema,
    Text,
    Token,
)
from tests.helpers.tiny_llama import make_model
from tests.property.structured_served import DEMO, TOOLS
from worker.engine.batch import BatchEngine
from worker.engine.thread import FINAL_FRAMES, Job

NOISE = Text("Tell me — höre! 日本")
HOT = Sampling(temperature=0.9, seed=7)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "numbers": {"type": "array", "items": {"type": "integer"}, "maxItems": 6},
        },
        "required": ["name", "numbers"],
        "additionalProperties": False,
    }
)


def chat(text: str, **more: Any) -> Chat:
    return Chat([{"role": "user", "content": text}], **more)


TINY = {
    "greedy": Generate("", NOISE, 1.0, max_tokens=60, sampling=Sampling(temperature=0.0)),
    "sampled": Generate("", NOISE, 1.0, max_tokens=60, sampling=HOT),
    "filtered": Generate(
        "",
        NOISE,
        1.0,
        max_tokens=60,
        sampling=Sampling(
            temperature=1.2, seed=3, top_p=0.9, top_k=40, min_p=0.01, xtc_probability=0.5
        ),
    ),
    "penalised": Generate(
        "",
        NOISE,
        1.0,
        max_tokens=60,
        min_tokens=40,
        sampling=Sampling(
            temperature=0.7,
            seed=5,
            presence_penalty=0.6,
            frequency_penalty=0.4,
            repetition_penalty=1.3,
            logit_bias=((65, 2.0),),
        ),
    ),
    "told": Generate("", NOISE, 1.0, max_tokens=40, sampling=HOT, logprobs=3),
    "short": Generate("", NOISE, 1.0, max_tokens=1, sampling=HOT),
}
ASKED = {
    "answer": Generate("", chat("What is Bulkhead?"), 1.0, max_tokens=120),
    "thoughts": Generate(
        "",
        chat("What is 2 + 3?", template={"enable_thinking": True}),
        1.0,
        max_tokens=120,
        sampling=Sampling(temperature=1.0, seed=4),
    ),
    "stopped": Generate(
        "", chat("What is Bulkhead?"), 1.0, max_tokens=120, stop=("process", "crash", " a w")
    ),
    "call": Generate(
        "",
        chat("What is the weather in Paris?", tools=TOOLS),
        1.0,
        max_tokens=120,
        calling=Calling("auto", ("get_weather",)),
    ),
    "forced": Generate(
        "",
        chat("Hello!", tools=TOOLS),
        1.0,
        max_tokens=120,
        sampling=Sampling(temperature=1.0, seed=9),
        calling=Calling("required", ("get_weather",), parallel=False),
    ),
    "schema": Generate(
        "",
        chat("Hello!", template={"enable_thinking": True}),
        1.0,
        max_tokens=160,
        sampling=Sampling(temperature=1.1, seed=2),
        structure=Schema(SCHEMA),
    ),
    "expression": Generate(
        "",
        chat("Hello!", template={"enable_thinking": True}),
        1.0,
        max_tokens=160,
        sampling=Sampling(temperature=1.1, seed=2),
        structure=Pattern("(?:[a-z]{2,9} ){8,}end\\.", "regex"),
    ),
    "grammar": Generate(
        "",
        Text("Bulkhead"),
        1.0,
        max_tokens=160,
        sampling=Sampling(temperature=1.1, seed=2),
        structure=Grammar(
            "start: r0{8}\nr0: /\\(/ r0 /\\)/ / / | T1 / /\nT1: /[a-z]{2,9}/\n", "grammar"
        ),
    ),
}


class Sink:
    def __init__(self) -> None:
        self.frames: list[FromEngine] = []

    def send(self, frames: Sequence[FromEngine]) -> None:
        self.frames.extend(frames)

    def close(self) -> None:
        """Nothing is held open."""


class Desk:
    """An engine that is given requests, and finishes them all."""

    def __init__(self, folder: Path) -> None:
        self.engine = BatchEngine()
        self.engine.warm_up()
        self.engine.load(Load("m", 1, str(folder), "", 8, 0), lambda done, total: None)

    def submit(self, request: Generate) -> tuple[Job, Sink]:
        sink = Sink()
        prepared = self.engine.prepare(request)
        job = Job(request, prepared, sink)
        if prepared.end is None:
            self.engine.insert(job)
        else:
            sink.send([Accepted(prepared.size), prepared.end])
        return job, sink

    def step(self) -> None:
        for job, frames in self.engine.step():
            job.sink.send(frames)

    def answer(self, request: Generate) -> list[FromEngine]:
        _, sink = self.submit(request)
        while self.engine.busy:
            self.step()
        return said(sink.frames)


def said(frames: Sequence[FromEngine]) -> list[FromEngine]:
    """What a client is told of: tokens and the end."""
    return [frame for frame in frames if isinstance(frame, (Token, *FINAL_FRAMES))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = Desk(make_model(tmp_path_factory.mktemp("tiny") / "m", "llama", words=600, seed=1))
    yield desk
    desk.engine.close()


@pytest.fixture(scope="module")
def demo() -> Iterator[Desk]:
    desk = Desk(DEMO)
    yield desk
    desk.engine.close()


def check_cuts(desk: Desk, request: Generate, cuts: int) -> None:
    whole = desk.answer(request)
    tokens = [frame for frame in whole if isinstance(frame, Token)]
    ids = tuple(token.id for token in tokens)
    assert isinstance(whole[-1], End)
    if request.max_tokens != 1:
        assert len(set(ids)) > 10  # a model that repeats itself proves nothing
    places = range(1, len(ids) + 1)
    if len(places) > cuts:
        chosen = random.Random(len(ids)).sample(places, cuts - 2)
        places = sorted({1, len(ids), *chosen})  # type: ignore[assignment]
    sinks = [(cut, desk.submit(replace(request, emitted=ids[:cut]))[1]) for cut in places]
    while desk.engine.busy:
        desk.step()
    for cut, sink in sinks:
        assert tokens[:cut] + said(sink.frames) == whole, f"cut after {cut} tokens"


@pytest.mark.parametrize("name", TINY)
def test_noise_goes_on_where_it_was_cut(tiny: Desk, name: str) -> None:
    check_cuts(tiny, TINY[name], 8)


@pytest.mark.parametrize("name", ASKED)
def test_every_part_of_an_answer_goes_on_where_it_was_cut(demo: Desk, name: str) -> None:
    check_cuts(demo, ASKED[name], 12)


def test_tokens_without_a_logit_are_refused_whoever_says_that_a_worker_made_them(
    tiny: Desk,
) -> None:
    width = tiny.engine._serving.width
    for token in (-1, width, 2**40):
        with pytest.raises(InternalError):
            tiny.engine.prepare(replace(TINY["greedy"], emitted=(5, token)))
    tiny.engine.prepare(replace(TINY["greedy"], emitted=(0, width - 1)))


@pytest.mark.parametrize("architecture", ["gemma3_text", "granitemoehybrid", "lfm2"])
def test_every_kind_of_cache_is_made_anew(architecture: str, tmp_path: Path) -> None:
    desk = Desk(make_model(tmp_path / "m", architecture, seed=3))
    try:
        check_cuts(desk, TINY["greedy"], 4)
        check_parking(desk, TINY["greedy"], 4)
    finally:
        desk.engine.close()


def check_parking(desk: Desk, request: Generate, rounds: int) -> None:
    """Park the request at any step, beside an older one, and take it up again later."""
    whole = desk.answer(request)
    other = replace(request, sampling=replace(request.sampling, seed=99, temperature=0.8))
    beside = desk.answer(other)
    chance = random.Random(len(whole))
    parked = desk.engine._generation._parked.__contains__
    times = 0
    for _ in range(rounds):
        _, neighbour = desk.submit(other)
        job, sink = desk.submit(request)
        while not sink.frames or not isinstance(sink.frames[-1], FINAL_FRAMES):
            for _ in range(chance.randrange(1, 15)):
                desk.step()
            desk.engine.limit(1)
            desk.step()
            before = len(sink.frames)
            times += parked(job)
            for _ in range(chance.randrange(6)):
                if desk.engine.busy:
                    desk.step()
            assert len(sink.frames) == before or not parked(job)
            desk.engine.limit(0)
        while desk.engine.busy:
            desk.step()
        assert said(sink.frames) == whole
        assert said(neighbour.frames) == beside
    assert times


@pytest.mark.parametrize("name", ["greedy", "penalised", "told"])
def test_parking_changes_nothing(tiny: Desk, name: str) -> None:
    check_parking(tiny, TINY[name], 2)


@pytest.mark.parametrize("name", ["thoughts", "stopped", "schema"])
def test_parking_within_any_part_changes_nothing(demo: Desk, name: str) -> None:
    check_parking(demo, ASKED[name], 2)
