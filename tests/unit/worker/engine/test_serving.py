"""worker.engine.serving: what is kept of a request that waits for room. What is made of one is seen
in the tests of the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supervisor.wire.frames import Generate, Schema, Text
from tests.helpers.engine_runs import start
from worker.engine.thread import NoRoom


def asked(number: int) -> Generate:
    schema = Schema(json.dumps({"const": number}))
    return Generate("r", Text("a prompt"), 1.0, structure=schema, echo=True)


def test_who_waits_for_room_keeps_its_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = start(folder)
    prompts, constraints = engine._serving._prompts, engine._serving._constraints
    first: Any = engine.prepare(asked(100))
    constraints._cache.most = constraints._cache.size
    made: list[str] = []
    tokens = prompts.tokens

    def counted(request: Any) -> Any:
        made.append(request.request_id)
        return tokens(request)

    monkeypatch.setattr(prompts, "tokens", counted)
    with pytest.raises(NoRoom) as told:
        engine.prepare(asked(101))
    assert told.value.refusal.retry_after
    line, go_on = told.value.line, told.value.go_on
    called: list[int] = []
    line.wait(lambda: called.append(1))
    with pytest.raises(NoRoom) as again:
        go_on()
    assert again.value.line is line
    line.wait(lambda: called.append(2))
    assert not called
    del told, again
    del first
    assert called == [2]
    prepared = go_on()
    line.leave()
    assert made == ["r"]
    assert (prepared.echo, prepared.size) == ("a prompt", len(tokens(asked(101))))
    assert prepared.constraint is not None
    engine.close()
