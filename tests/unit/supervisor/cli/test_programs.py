"""supervisor.cli.programs: what each program is given, and what is shown of it."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import tomllib

import pytest

from supervisor.cli.programs import PROGRAMS, Start, Target

NAMES = ["coder", "mlx-community/Qwen3-4B-4bit", "it's", 'quo"ted', "模型 $HOME `x` \\", "😀"]


def start(program: str, target: Target, *arguments: str) -> Start:
    return PROGRAMS[program].start(target, arguments)


def target(model: str = "coder", key: str = "", context: int | None = 32768) -> Target:
    return Target("http://127.0.0.1:11435", model, context, key)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_own_arguments_come_last_and_as_they_are(program: str) -> None:
    own = ("exec", "--flag", "two words", "$x")
    begun = start(program, target(), *own)
    assert begun.command[0] == PROGRAMS[program].executable
    assert begun.command[-len(own) :] == own


@pytest.mark.parametrize("model", NAMES)
def test_codex_reads_its_settings_as_toml(model: str) -> None:
    command = start("codex", target(model)).command
    given = [word for flag, word in itertools.pairwise(command) if flag == "-c"]
    settings = tomllib.loads("\n".join(given))
    provider = settings["model_providers"]["bulkhead"]
    assert (settings["model"], settings["model_provider"]) == (model, "bulkhead")
    assert settings["model_context_window"] == 32768
    assert (provider["base_url"], provider["wire_api"]) == (
        "http://127.0.0.1:11435/v1",
        "responses",
    )
    assert start("codex", target()).environ[provider["env_key"]]


def test_a_context_that_is_not_known_is_not_told() -> None:
    unknown = target(context=None)
    assert not any("context" in word for word in start("codex", unknown).command)
    (model,) = opencode(unknown)["provider"]["bulkhead"]["models"].values()
    assert model == {"name": "coder"}


def opencode(to: Target) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    content = json.loads(start("opencode", to).environ["OPENCODE_CONFIG_CONTENT"])
    assert isinstance(content, dict)
    return content


def test_opencode_s_content_has_no_key_in_it() -> None:
    told = json.dumps(opencode(target(key="secret-key")))
    assert "secret-key" not in told
    assert "{env:BULKHEAD_API_KEY}" in told
    assert start("opencode", target(key="secret-key")).environ["BULKHEAD_API_KEY"] == "secret-key"


def test_claude_uses_the_one_model_for_everything_and_no_other_key() -> None:
    begun = start("claude", target("m"))
    environ = begun.environment({"ANTHROPIC_API_KEY": "sk-ant-own", "HOME": "/h"})
    assert environ["HOME"] == "/h"
    assert "ANTHROPIC_API_KEY" not in environ
    assert environ["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:11435"
    models = {name: value for name, value in environ.items() if "MODEL" in name}
    assert len(models) == 6
    assert set(models.values()) == {"m"}
    assert environ["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "32768"
    unknown = start("claude", Target("http://127.0.0.1:11435", "m")).environ
    assert "CLAUDE_CODE_MAX_CONTEXT_TOKENS" not in unknown


@pytest.mark.parametrize("key", ["", "secret-key"])
@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_shown_does_the_same_in_a_shell_and_hides_the_key(
    program: str, model: str, key: str
) -> None:
    to = target(model, key)
    begun = start(program, to, "two words", "$x")
    *settings, command = begun.shell_lines(to)
    assert not key or key not in "\n".join([*settings, command])
    inherited = {"PATH": "/usr/bin:/bin", "ANTHROPIC_API_KEY": "own", "BULKHEAD_API_KEY": key}
    script = "\n".join([*settings, "env -0; printf '\\0'", f"printf '%s\\0' {command}"])
    done = subprocess.run(
        ["/bin/sh", "-ec", script], env=inherited, capture_output=True, text=True, check=True
    )
    environ, _, words = done.stdout.partition("\0\0")
    seen = dict(line.split("=", 1) for line in environ.split("\0"))
    expected = begun.environment(inherited)
    assert {name: seen.get(name) for name in expected} == expected
    assert "ANTHROPIC_API_KEY" not in begun.without or "ANTHROPIC_API_KEY" not in seen
    assert tuple(words.removesuffix("\0").split("\0")) == begun.command


def test_without_a_key_of_the_server_s_the_line_asks_for_none() -> None:
    to = target()
    assert not any(":?" in line for line in start("codex", to).shell_lines(to))
    with_key = target(key="k")
    begun = start("codex", with_key)
    asking, *rest = begun.shell_lines(with_key)
    assert ":?" in asking
    assert rest == begun.told_lines(with_key)
    assert shlex.split(start("claude", to).shell_lines(to)[-1]) == ["claude"]


def test_a_key_is_no_part_of_what_is_printed_of_a_target() -> None:
    assert "secret-key" not in repr(target(key="secret-key"))
