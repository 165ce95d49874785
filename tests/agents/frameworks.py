"""Frameworks and SDKs: a tool is called twice at once, and the answer says what it gave."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.agents.scenario import KEY, MODEL, Place, Scenario
from tests.helpers.scripted_llama import Turn, call

_SCRIPTS = Path(__file__).with_name("scripts")
ASKING = (
    "When something opens I do not know by heart, and a guess would be worse than no answer, so I "
    "ask the one who keeps the list of all opening hours in this town, by the name of the place.\n"
)
OPENING = (
    "Both open at seven in the morning; before that the harbour's gate is closed, and nobody is "
    "there whom one could ask for anything. Boats that come by night drop anchor outside, behind "
    "the long wall, where they are safe from the west wind and can see when the light turns green."
)
SHARED = "frameworks"
"""Packages of several."""
PLACES = ("harbour", "market")
_CALLS = [call("opening_hour", place=place) for place in PLACES]
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
OLLAMA = "/api/chat"


def asking(place: Place) -> Sequence[Turn]:
    """The conversation of all that call tools as they come."""
    return [Turn(ASKING + "\n".join(_CALLS)), Turn(OPENING, needs=" opens at seven.")]


def _smolagents(place: Place) -> Sequence[Turn]:
    # Its calls are demanded, so that there is no text beside them.
    final = call("final_answer", answer=OPENING)
    return [Turn(_CALLS[0]), Turn(final, needs="The harbour opens at seven.")]


def _instructor(place: Place) -> Sequence[Turn]:
    return [Turn(call("Opening", place="harbour", hour=9))]


def _python(script: str, *arguments: str) -> Callable[[Place], Sequence[str]]:
    path = str(_SCRIPTS / script)
    return lambda place: [str(place.installed / "bin/python"), path, MODEL, *arguments]


def _node(script: str, *arguments: str) -> Callable[[Place], Sequence[str]]:
    def command(place: Place) -> Sequence[str]:
        # A module's imports are looked for where it lies.
        copy = shutil.copy(_SCRIPTS / script, place.installed / script)
        return ["node", str(copy), MODEL, *arguments]

    return command


def _settings(place: Place) -> dict[str, str]:
    """Base URL and key, as each SDK reads them from the environment."""
    return {
        "OLLAMA_HOST": place.url,
        "OPENAI_BASE_URL": f"{place.url}/v1",
        "OPENAI_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": place.url,
        "ANTHROPIC_API_KEY": KEY,
    }


def _settings_js(place: Place) -> dict[str, str]:
    """Vercel's provider for Anthropic wants the version in the URL."""
    return _settings(place) | {"ANTHROPIC_BASE_URL": f"{place.url}/v1"}


def _framework(
    name: str,
    command: Callable[[Place], Sequence[str]],
    *routes: str,
    turns: Callable[[Place], Sequence[Turn]] = asking,
    environ: Callable[[Place], dict[str, str]] = _settings,
    answer: str = OPENING,
    shared: str = "",
    runs: int = 2,
    strikes: Sequence[int] = (50, 8),
) -> Scenario:
    return Scenario(
        name,
        command,
        turns,
        routes,
        shared,
        environ,
        aside="",
        answer=answer,
        edits=False,
        runs=runs,
        strikes=strikes,
    )


DIALECTS = ("chat", "responses", "messages", "ollama")
"""That `scripts/sdk_loop.py` speaks."""
SDK_LOOP = _SCRIPTS / "sdk_loop.py"

FRAMEWORKS = (
    _framework(
        "sdks",
        _python("sdk_loop.py", *(f"{d}:{how}" for d in DIALECTS for how in ("whole", "stream"))),
        CHAT,
        RESPONSES,
        MESSAGES,
        OLLAMA,
        runs=8,
    ),
    _framework("langchain", _python("langchain_loop.py"), CHAT, MESSAGES, shared=SHARED, runs=4),
    _framework("litellm", _python("litellm_loop.py"), CHAT, RESPONSES, runs=3),
    _framework("llama-index", _python("llama_index_loop.py"), CHAT),
    _framework(
        "smolagents",
        _python("smolagents_loop.py"),
        CHAT,
        turns=_smolagents,
        shared=SHARED,
        strikes=(8,),
    ),
    _framework(
        "instructor",
        _python("instructor_loop.py"),
        CHAT,
        turns=_instructor,
        answer="harbour 9",
        strikes=(8,),
    ),
    _framework(
        "pydantic-ai",
        _python("pydantic_ai_loop.py", "openai", "openai-chat", "anthropic"),
        RESPONSES,
        CHAT,
        MESSAGES,
        shared=SHARED,
        runs=6,
    ),
    _framework("openai-agents", _python("openai_agents_loop.py"), RESPONSES, shared=SHARED),
    _framework(
        "vercel-ai",
        _node("vercel_ai_loop.mjs", "responses", "chat", "messages"),
        RESPONSES,
        CHAT,
        MESSAGES,
        environ=_settings_js,
        runs=6,
    ),
    _framework("openai-agents-js", _node("openai_agents_js_loop.mjs"), RESPONSES),
)
