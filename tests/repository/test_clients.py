"""docs/clients.md: its recipes are what `bulkhead launch` does, and are what they look like."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from supervisor.cli.programs import PROGRAMS, Start, Target
from tests.repository.test_docs import CLIENTS, fences, section

PAGE = CLIENTS.read_text()
TARGET = Target("http://127.0.0.1:11435", "coder", 32768)
HEADINGS = {
    "codex": "### Codex",
    "claude": "### Claude Code",
    "opencode": "### OpenCode",
    "aider": "### aider",
    "openwebui": "### Open WebUI",
}
OTHERS = (
    *("### Cursor", "### Zed", "### Continue", "### Cline", "### VS Code", "### LangChain"),
    *("### LiteLLM", "### pydantic-ai", "### Vercel `ai`", "## Home Assistant"),
)


def begun(program: str) -> Start:
    return PROGRAMS[program].start(TARGET, ())


def kept(program: str, language: str) -> str:
    """The block that makes it stay."""
    return fences(section(PAGE, HEADINGS[program]), language)[0]


def test_every_program_has_its_recipe() -> None:
    assert set(HEADINGS) == set(PROGRAMS)
    for heading in (*HEADINGS.values(), *OTHERS):
        assert "11435" in section(PAGE, heading) or "/v1" in section(PAGE, heading), heading


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_shell_lines_are_what_launch_prints(program: str) -> None:
    shown = fences(section(PAGE, HEADINGS[program]), "sh")[0]
    assert shown.splitlines() == begun(program).shell_lines(TARGET)


def test_what_stays_for_codex_is_the_same() -> None:
    command = begun("codex").command
    given = [word for word in command if "=" in word]
    assert tomllib.loads(kept("codex", "toml")) == tomllib.loads("\n".join(given))


def test_what_stays_for_claude_is_the_same() -> None:
    assert json.loads(kept("claude", "json")) == {"env": begun("claude").environ}


def test_what_stays_for_opencode_is_the_same() -> None:
    content = json.loads(begun("opencode").environ["OPENCODE_CONFIG_CONTENT"])
    assert json.loads(kept("opencode", "json")) == content


def test_what_stays_for_aider_is_the_same() -> None:
    said: dict[str, Any] = yaml.safe_load(kept("aider", "yaml"))
    start = begun("aider")
    assert said["model"] == said["weak-model"] == start.command[2]
    assert said["openai-api-base"] == start.environ["OPENAI_API_BASE"]
    assert "--no-show-model-warnings" in start.command
    assert said["show-model-warnings"] is False


@pytest.mark.parametrize("block", fences(PAGE, "python"))
def test_python_is_python(block: str) -> None:
    compile(block, "docs/clients.md", "exec")


def test_yaml_is_yaml() -> None:
    blocks = [yaml.safe_load(block) for block in fences(PAGE, "yaml")]
    assert len(blocks) == 3
    assert all(blocks)


def test_urls_fit_the_api_that_is_spoken() -> None:
    """OpenAI's clients append to /v1, Anthropic's and Ollama's to the root."""
    for url in re.findall(r"http://127\.0\.0\.1:11435[\w/.-]*", PAGE):
        path = url.removeprefix("http://127.0.0.1:11435")
        assert path in ("", "/v1", "/v1/chat/completions"), url
