"""One run of a scenario against a server of its own, and what must be true of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.agents.network import dead_proxies
from tests.agents.scenario import AFTER, ASIDE, BEFORE, FILE, MODEL, Place, Scenario, environ
from tests.agents.striker import Striker
from tests.helpers.scripted_llama import make_scripted_llama
from tests.helpers.serving import DEADLINE, ROOT, Deadline, Server, serving

_CONFIG = """
[server]
port = 0
[memory]
spare = true
[models.{model}]
source = "{folder}"
"""
_LINE = re.compile(r"^\S+ INFO +req-\S+ (.*)$|^\S+ \w+ +\S+ (client=.*)$", re.MULTILINE)
_SHORT = 12
"""Tokens of an answer that may be over before its worker can be struck."""


@dataclass(slots=True)
class Result:
    """What came of it."""

    misses: list[str] = field(default_factory=list)
    """What is not as it must be."""
    seconds: float = 0.0
    answers: int = 0
    """That the model has given."""
    tokens: int = 0
    """Prompt tokens of the longest."""
    strikes: int = 0
    recovered: int = 0
    """Answers that more than one worker has made."""
    others: Counter[str] = field(default_factory=Counter)
    """Requests that were no success: status, method and path."""


def run(scenario: Scenario, folder: Path, installed: Path, *, strike: bool, shut: bool) -> Result:
    """Start a server, run the program in `folder`, which is empty, and judge. `shut`: there is no
    network anyway."""
    result = Result()
    home, work = folder / "home", folder / "work"
    home.mkdir(parents=True)
    work.mkdir()
    (work / FILE).write_text(BEFORE)
    corpus = tuple(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    draft = Place("", home, work, installed)
    model = make_scripted_llama(
        folder / "model", scenario.turns(draft), aside=scenario.aside, corpus=corpus
    )
    state = folder / "state"
    with serving(state, config=_CONFIG.format(model=MODEL, folder=model)) as server:
        place = Place(server.url, home, work, installed)
        for path, text in scenario.files(place).items():
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_text(text)
        striker = Striker(server, MODEL, lambda: len(_answers(server)))
        if strike:
            striker.start()
        begun = time.monotonic()
        try:
            status = _run(scenario, place, folder / "output.txt", shut)
        finally:
            if strike:
                striker.stop()
        result.seconds = time.monotonic() - begun
        result.strikes = striker.strikes
        _judge(scenario, server, place, status, result, strike)
    return result


def _run(scenario: Scenario, place: Place, output: Path, shut: bool) -> int | None:
    """Its exit status; None when it had to be ended."""
    with output.open("wb") as said:
        process = subprocess.Popen(
            list(scenario.command(place)),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=place.work,
            env=environ(scenario, place) | ({} if shut else dead_proxies()),
            start_new_session=True,
        )
        try:
            return process.wait(scenario.seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Some leave helpers behind.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(DEADLINE)


def _judge(
    scenario: Scenario,
    server: Server,
    place: Place,
    status: int | None,
    result: Result,
    strike: bool,
) -> None:
    miss = result.misses.append
    if status != 0:
        miss(f"exit status {status}" if status is not None else f"still ran after {scenario.seconds:g} s")
    output = (place.home.parent / "output.txt").read_text(errors="replace")
    if " ".join(scenario.answer.split()) not in " ".join(output.split()):
        miss("its output does not show the answer")
    if scenario.edits and (now := (place.work / FILE).read_text()) != AFTER:
        miss(f"{FILE} is {now!r}")
    wanted = scenario.runs * len(scenario.turns(place))
    answers = _answers(server)
    result.answers = len(answers)
    result.tokens = max((int(answer["prompt"]) for answer in answers), default=0)
    result.recovered = sum("recoveries" in answer for answer in answers)
    if result.answers < wanted:
        miss(f"{result.answers} answers, not {wanted}")
    for line in _requests(server):
        if line["status"] != "200":
            result.others[f"{line['status']} {line['method']} {line['path']}"] += 1
    used = {answer["path"] for answer in answers}
    for route in scenario.routes:
        if route not in used:
            miss(f"it did not use {route}, but {sorted(used)}")
    deaths = sum(model["deaths"] for model in server.health()["models"])
    crashes = len(server.request("GET", "/admin/crashes").json["crashes"])
    if (deaths, crashes) != (result.strikes, result.strikes):
        miss(f"{result.strikes} strikes, {deaths} deaths, {crashes} crash reports")
    for answer in answers:
        if strike and int(answer["completion"]) > _SHORT and "recoveries" not in answer:
            miss(f"not struck: {answer}")


def _requests(server: Server) -> list[dict[str, str]]:
    """The access log."""
    found = []
    for line in server.log("gateway.log").splitlines():
        if " client=" in line:
            words = line.partition(" client=")[2].split(" ")[1:]
            found.append(dict(word.split("=", 1) for word in words if "=" in word))
    return found


def _answers(server: Server) -> list[dict[str, str]]:
    """Those of the model."""
    return [line for line in _requests(server) if "completion" in line]
