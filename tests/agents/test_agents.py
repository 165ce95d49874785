"""`make agents` in short: one server for all, and deaths for the SDKs alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.agents.access import answers
from tests.agents.frameworks import DIALECTS, FRAMEWORKS, OPENING, SDK_LOOP, SHARED, asking
from tests.agents.install import folder_of, is_installed, packages
from tests.agents.programs import PROGRAMS
from tests.agents.run import playing
from tests.agents.scenario import MODEL, Place, Scenario, environ
from tests.agents.striker import POSSIBLE, striking
from tests.helpers.serving import Server

SECONDS = 120.0
"""Until a script must have ended."""
IN_SHORT = ("vercel-ai", "openai-agents-js")
"""Scenarios that have packages of their own, which `make suite` installs in seconds."""
SHORT = [
    scenario
    for scenario in FRAMEWORKS
    if (scenario.shared == SHARED and scenario.turns is asking) or scenario.name in IN_SHORT
]
SDKS = next(scenario for scenario in FRAMEWORKS if scenario.name == "sdks")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("agents")
    turns = asking(Place("", folder, folder, folder))
    with playing(folder, turns) as server:
        yield server


def run(scenario: Scenario, server: Server, folder: Path, installed: Path) -> str:
    """What it says; it must end with 0."""
    place = Place(server.url, folder, folder, installed)
    done = subprocess.run(
        list(scenario.command(place)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        cwd=folder,
        env=environ(scenario, place),
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.skipif(not POSSIBLE, reason="the middle of an answer is seen on Linux alone")
def test_sdks_accept_streams_that_are_struck(server: Server, tmp_path: Path) -> None:
    asked = [f"{dialect}:stream" for dialect in DIALECTS]
    scenario = replace(SDKS, command=lambda place: [sys.executable, str(SDK_LOOP), MODEL, *asked])
    before = len(answers(server))
    with striking(server, MODEL, SDKS.strikes) as striker:
        said = run(scenario, server, tmp_path, tmp_path)
    assert said.count(OPENING) == len(asked)
    given = answers(server)[before:]
    assert len(given) == striker.strikes == 2 * len(asked)
    assert all(answer["recoveries"] == "1" for answer in given)


@pytest.mark.parametrize("scenario", SHORT, ids=lambda scenario: scenario.name)
def test_frameworks_end_their_loops(scenario: Scenario, server: Server, tmp_path: Path) -> None:
    name = scenario.packages
    if not is_installed(name):
        pytest.skip(f"`make suite` installs {name}")
    before = len(answers(server))
    said = run(scenario, server, tmp_path, folder_of(name))
    assert said.count(scenario.answer) == scenario.runs // 2
    given = answers(server)[before:]
    assert len(given) == 2 * scenario.runs
    assert {answer["path"] for answer in given} == set(scenario.routes)


def test_every_scenario_has_its_packages() -> None:
    wanted = {scenario.packages for scenario in (*PROGRAMS, *FRAMEWORKS)}
    assert wanted == set(packages())
