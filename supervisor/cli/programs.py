"""What a program needs to work on a running Bulkhead: its command line and environment. Pure.

Nothing of the user's own configuration is changed: a program gets what it needs for this one run.
docs/clients.md has the same for those who want it to stay.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NO_KEY = "bulkhead"
"""Programs insist on a key. A server without keys takes any."""
_SHOWN_KEY = "$BULKHEAD_API_KEY"


@dataclass(frozen=True, slots=True)
class Target:
    """The server and the model that a program is to use. `url` is its root, without `/v1`;
    `context` in tokens, None = not known; `key` "" = the server asks for none."""

    url: str
    model: str
    context: int | None = None
    key: str = field(default="", repr=False)

    @property
    def base(self) -> str:
        return f"{self.url}/v1"

    @property
    def token(self) -> str:
        return self.key or NO_KEY


@dataclass(frozen=True, slots=True)
class Start:
    """How a program is started: what is set in its environment, what is removed from it, and its
    command line."""

    command: tuple[str, ...]
    environ: Mapping[str, str]
    without: tuple[str, ...] = ()

    def environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """The program's, made of our `own`."""
        kept = {name: value for name, value in own.items() if name not in self.without}
        return {**kept, **self.environ}

    def shell_lines(self, target: Target) -> list[str]:
        """What does the same in a POSIX shell. A key is not shown: it is taken from
        `$BULKHEAD_API_KEY`, which has to be set."""
        need = [': "${BULKHEAD_API_KEY:?set it to a key of the server}"'] if target.key else []
        return [*need, *self.told_lines(target)]

    def told_lines(self, target: Target) -> list[str]:
        """The same for somebody who only reads it."""
        lines = [f"unset {name}" for name in self.without]
        for name, value in self.environ.items():
            lines.append(f"export {name}={_quoted(value, target.key)}")
        lines.append(" ".join(_quoted(word, target.key) for word in self.command))
        return lines


@dataclass(frozen=True, slots=True)
class Program:
    """One that can be launched."""

    executable: str
    install: str
    """How people get it."""
    start: Callable[[Target, Sequence[str]], Start]
    """The arguments are the user's own."""
    needs: int = 0
    """Tokens of context that its first request takes, about."""


def _codex(target: Target, arguments: Sequence[str]) -> Start:
    settings: dict[str, Any] = {
        "model": target.model,
        "model_provider": "bulkhead",
        "model_providers.bulkhead.name": "Bulkhead",
        "model_providers.bulkhead.base_url": target.base,
        "model_providers.bulkhead.wire_api": "responses",
        "model_providers.bulkhead.env_key": "BULKHEAD_API_KEY",
    }
    if target.context is not None:
        settings["model_context_window"] = target.context
    # Values are TOML; its strings and numbers are written as JSON's.
    given = [word for name, value in settings.items() for word in ("-c", f"{name}={_toml(value)}")]
    return Start(("codex", *given, *arguments), {"BULKHEAD_API_KEY": target.token})


def _claude(target: Target, arguments: Sequence[str]) -> Start:
    names = (
        "ANTHROPIC_MODEL",
        # Each is asked for some kind of side task.
        "ANTHROPIC_SMALL_FAST_MODEL",
        "ANTHROPIC_DEFAULT_OPUS_MODEL",
        "ANTHROPIC_DEFAULT_SONNET_MODEL",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL",
        "CLAUDE_CODE_SUBAGENT_MODEL",
    )
    environ = {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": target.token,
        **dict.fromkeys(names, target.model),
        # A local model's prompts begin alike only without its changing first line.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    if target.context is not None:
        # Else it takes 200,000 for granted.
        environ["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] = str(target.context)
    # With a key as well it asks which of the two to use.
    return Start(("claude", *arguments), environ, without=("ANTHROPIC_API_KEY",))


def _opencode(target: Target, arguments: Sequence[str]) -> Start:
    model: dict[str, Any] = {"name": target.model}
    if target.context is not None:
        model["limit"] = {"context": target.context, "output": max(1, target.context // 4)}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Bulkhead",
        "options": {"baseURL": target.base, "apiKey": "{env:BULKHEAD_API_KEY}"},
        "models": {target.model: model},
    }
    content = {
        "provider": {"bulkhead": provider},
        "model": f"bulkhead/{target.model}",
        "small_model": f"bulkhead/{target.model}",
    }
    return Start(
        ("opencode", *arguments),
        {"BULKHEAD_API_KEY": target.token, "OPENCODE_CONFIG_CONTENT": json.dumps(content)},
    )


def _aider(target: Target, arguments: Sequence[str]) -> Start:
    model = f"openai/{target.model}"
    return Start(
        ("aider", "--model", model, "--weak-model", model, "--no-show-model-warnings", *arguments),
        {"OPENAI_API_BASE": target.base, "OPENAI_API_KEY": target.token},
    )


def _openwebui(target: Target, arguments: Sequence[str]) -> Start:
    environ = {
        "OPENAI_API_BASE_URL": target.base,
        "OPENAI_API_KEY": target.token,
        "DEFAULT_MODELS": target.model,
        "ENABLE_OLLAMA_API": "False",
        # Else what an earlier run has stored goes before these.
        "ENABLE_PERSISTENT_CONFIG": "False",
    }
    # It listens on every address unless told otherwise.
    return Start(("open-webui", "serve", "--host", "127.0.0.1", *arguments), environ)


PROGRAMS: Mapping[str, Program] = {
    "codex": Program("codex", "npm install -g @openai/codex", _codex, 12_000),
    "claude": Program("claude", "npm install -g @anthropic-ai/claude-code", _claude, 20_000),
    "opencode": Program("opencode", "npm install -g opencode-ai", _opencode, 10_000),
    "aider": Program("aider", "pip install aider-chat", _aider, 4_000),
    "openwebui": Program("open-webui", "pip install open-webui", _openwebui),
}


def _toml(value: str | int) -> str:
    """JSON writes a surrogate pair where TOML wants the character itself."""
    return json.dumps(value, ensure_ascii=False)


def _quoted(text: str, key: str) -> str:
    if key and text == key:
        return f'"{_SHOWN_KEY}"'
    return shlex.quote(text)
