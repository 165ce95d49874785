"""One run of a scenario against a server of its own, and what must be true of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.agents.access import answers, requests
from tests.agents.network import dead_proxies
from tests.agents.scenario import AFTER, BEFORE, FILE, MODEL, Place, Scenario, environ
from tests.agents.striker import striking
from tests.helpers.scripted_llama import Turn, make_scripted_llama
from tests.helpers.serving import DEADLINE, ROOT, Server, serving

_CONFIG = """
[server]
port = 0
[memory]
spare = true
[models.{model}]
source = "{folder}"
"""
_SHORT = 12
"""Tokens of an answer that may be over before its worker can be struck, such as a title."""


@dataclass(slots=True)
class Result:
    """What came of it."""

    misses: list[str] = field(default_factory=list)
    """What is not as it must be."""
    seconds: float = 0.0
    answers: int = 0
    """That the model has given."""
    prompt: int = 0
    """Tokens of the longest prompt."""
    strikes: int = 0
    recovered: int = 0
    """Answers that more than one worker has made."""
    refused: Counter[str] = field(default_factory=Counter)
    """Status, method and path of requests that did not succeed."""


def run(scenario: Scenario, folder: Path, installed: Path, *, strike: bool, shut: bool) -> Result:
    """Start a server, run the program in `folder`, which does not exist, and judge. What it said is
    then in `output.txt` there. `shut`: there is no network anyway."""
    home, work = folder / "home", folder / "work"
    home.mkdir(parents=True)
    work.mkdir()
    (work / FILE).write_text(BEFORE)
    turns = scenario.turns(Place("", home, work, installed))
    corpus = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    with playing(folder, turns, scenario.aside, corpus) as server:
        place = Place(server.url, home, work, installed)
        for path, text in scenario.files(place).items():
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_text(text)
        begun, strikes = time.monotonic(), 0
        if strike:
            with striking(server, MODEL, scenario.strikes) as striker:
                status = _run(scenario, place, folder / "output.txt", shut)
            strikes = striker.strikes
        else:
            status = _run(scenario, place, folder / "output.txt", shut)
        result = Result(seconds=time.monotonic() - begun, strikes=strikes)
        result.misses += _of_the_program(scenario, place, status, folder / "output.txt")
        _of_the_server(scenario, server, len(turns), result, strike)
    return result


@contextlib.contextmanager
def playing(
    folder: Path, turns: Sequence[Turn], aside: str = "", corpus: Sequence[str] = ()
) -> Iterator[Server]:
    """A server of a model that plays this conversation."""
    model = make_scripted_llama(folder / "model", turns, aside=aside, corpus=corpus)
    config = _CONFIG.format(model=MODEL, folder=model)
    # A terminal's ^C is for us: it shall not look as if the server had failed.
    with serving(folder / "state", config=config, process_group=0) as server:
        yield server


def _run(scenario: Scenario, place: Place, output: Path, shut: bool) -> int | None:
    """The program's exit status; None when it had to be ended."""
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
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # some leave helpers behind
            process.wait(DEADLINE)
            _kill_daemons(place.home)


def _kill_daemons(home: Path) -> None:
    """What the program has left in sessions of their own, such as Cline's hub: all that has this
    home, which nobody else has."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone, or somebody else's
            if process.environ().get("HOME") == str(home):
                process.kill()
                left.append(process)
    psutil.wait_procs(left, DEADLINE)


def _of_the_program(
    scenario: Scenario, place: Place, status: int | None, output: Path
) -> Iterator[str]:
    """What the program did not do."""
    if status is None:
        yield f"it still ran after {scenario.seconds:g} s"
    elif status:
        yield f"exit status {status}"
    # A terminal's width may have broken the lines.
    said = " ".join(output.read_text(errors="replace").split())
    if scenario.answer not in said:
        yield "its output does not show the answer"
    now = (place.work / FILE).read_text()
    if now != (AFTER if scenario.edits else BEFORE):
        yield f"{FILE} is {now!r}"


def _of_the_server(
    scenario: Scenario, server: Server, turns: int, result: Result, strike: bool
) -> None:
    """Take down what the server saw, and what of it must not be."""
    given = answers(server)
    result.answers = len(given)
    result.prompt = max((int(answer["prompt"]) for answer in given), default=0)
    result.recovered = sum("recoveries" in answer for answer in given)
    result.refused.update(
        f"{line['status']} {line['method']} {line['path']}"
        for line in requests(server)
        if not line["status"].startswith("2")
    )
    if result.answers < scenario.runs * turns:
        result.misses.append(f"{result.answers} answers, not {scenario.runs * turns}")
    for route in scenario.routes:
        if route not in {answer["path"] for answer in given}:
            result.misses.append(f"it did not use {route}")
    if strike:
        result.misses += [
            f"an answer was not struck: {answer}"
            for answer in given
            if int(answer["completion"]) > _SHORT and "recoveries" not in answer
        ]
    deaths = sum(model["deaths"] for model in server.health()["models"])
    reports = len(server.request("GET", "/admin/crashes").json["crashes"])
    if not deaths == reports == result.strikes:
        result.misses.append(f"{result.strikes} strikes, {deaths} deaths, {reports} crash reports")
