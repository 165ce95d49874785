"""Command-line programs: read a file, edit it, look at it, answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.agents.scenario import ANSWER, FILE, KEY, MODEL, NEW, OLD, TASK, Place, Scenario
from tests.helpers.scripted_llama import Turn, call

READING = (
    "First I look at the whole file, from its first line to its last, since an edit must fit what "
    "really stands there, and I do not know yet how the opening time has been put.\n"
)
EDITING = (
    "Now I know how the line reads. I replace it by one that names the new hour and leave ferry "
    "and market alone, because nobody has asked for a change in either of them.\n"
)
LOOKING = (
    "The edit has been made. Before I tell anything I print the file once more and compare: trust "
    "is good, but somebody will stand before a closed gate if this went wrong.\n"
)


def conversation(read: str, edit: str, look: str) -> list[Turn]:
    """The turns of a program with tools; each call gets the result that the next one needs."""
    return [
        Turn(READING + read),
        Turn(EDITING + edit, needs=OLD),
        Turn(LOOKING + look),
        Turn(ANSWER, needs=NEW),
    ]


def _launch(place: Place, program: str, *arguments: str) -> list[str]:
    """The program started by `bulkhead launch`, which must set all that it needs."""
    bulkhead = str(Path(sys.executable).with_name("bulkhead"))
    given = ("--model", MODEL, "--url", place.url)
    return [bulkhead, "launch", program, *given, "--", *arguments]


def _opencode(place: Place) -> Sequence[Turn]:
    return conversation(
        call("read", filePath=place.file),
        call("edit", filePath=place.file, oldString=OLD, newString=NEW),
        call("bash", command=f"cat {FILE}", description="Prints the file"),
    )


def _cline(place: Place) -> Sequence[Turn]:
    return conversation(
        call("read_files", files=[{"path": place.file}]),
        call("editor", path=place.file, old_text=OLD, new_text=NEW),
        call("run_commands", commands=[f"cat {FILE}"]),
    )


def _qwen(place: Place) -> Sequence[Turn]:
    return conversation(
        call("read_file", file_path=place.file),
        call("edit", file_path=place.file, old_string=OLD, new_string=NEW),
        call("run_shell_command", command=f"cat {FILE}", description="Prints", is_background=False),
    )


def _aider(place: Place) -> Sequence[Turn]:
    block = f"{FILE}\n<<<<<<< SEARCH\n{OLD}\n=======\n{NEW}\n>>>>>>> REPLACE\n"
    return [Turn(f"{EDITING}{ANSWER}\n\n{block}")]


def _codex(place: Place) -> Sequence[Turn]:
    patch = f"*** Begin Patch\n*** Update File: {FILE}\n@@\n-{OLD}\n+{NEW}\n*** End Patch"
    return conversation(
        call("exec_command", cmd=f"cat {FILE}"),
        call("exec_command", cmd=f"apply_patch <<'EOF'\n{patch}\nEOF\n"),
        call("exec_command", cmd=f"cat {FILE}"),
    )


def _codex_config(place: Place) -> dict[str, str]:
    """What a test wants besides: no calls home."""
    config = "check_for_update_on_startup = false\n[analytics]\nenabled = false\n"
    return {".codex/config.toml": config}


def _claude(place: Place) -> Sequence[Turn]:
    return conversation(
        call("Read", file_path=place.file),
        call("Edit", file_path=place.file, old_string=OLD, new_string=NEW),
        call("Bash", command=f"cat {FILE}", description="Print the file"),
    )


def _pi(place: Place) -> Sequence[Turn]:
    return conversation(
        call("read", path=place.file),
        call("edit", path=place.file, edits=[{"oldText": OLD, "newText": NEW}]),
        call("bash", command=f"cat {FILE}"),
    )


def _pi_config(place: Place) -> dict[str, str]:
    provider = {
        "baseUrl": f"{place.url}/v1",
        "api": "openai-completions",
        "apiKey": KEY,
        "models": [{"id": MODEL}],
    }
    return {".pi/agent/models.json": json.dumps({"providers": {"bulkhead": provider}})}


def _continue(place: Place) -> Sequence[Turn]:
    return conversation(
        call("Read", filepath=place.file),
        call("Edit", file_path=place.file, old_string=OLD, new_string=NEW),
        call("Bash", command=f"cat {FILE}"),
    )


def _continue_config(place: Place) -> dict[str, str]:
    return {
        "config.yaml": f"""\
name: Local
version: 0.0.1
schema: v1
models:
  - name: {MODEL}
    provider: openai
    model: {MODEL}
    apiBase: {place.url}/v1
    apiKey: {KEY}
    roles: [chat]
"""
    }


PROGRAMS = (
    Scenario(
        "codex",
        lambda place: _launch(
            place, "codex",
            "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", TASK,
        ),
        _codex,
        routes=("/v1/responses",),
        files=_codex_config,
    ),
    Scenario(
        "codex-oss",
        lambda place: [
            "codex", "exec", "--oss", "--local-provider", "ollama", "--model", MODEL,
            "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", TASK,
        ],
        _codex,
        routes=("/v1/responses",),
        shared="codex",
        environ=lambda place: {"CODEX_OSS_BASE_URL": f"{place.url}/v1"},
    ),
    Scenario(
        "claude",
        lambda place: _launch(
            place, "claude",
            "--print", "--permission-mode", "acceptEdits",
            "--allowed-tools", "Read,Edit,Bash(cat:*)", "--", TASK,
        ),
        _claude,
        routes=("/v1/messages",),
        environ=lambda place: {"DISABLE_AUTOUPDATER": "1"},
    ),
    Scenario(
        "opencode",
        lambda place: _launch(place, "opencode", "run", TASK),
        _opencode,
        environ=lambda place: {"OPENCODE_DISABLE_AUTOUPDATE": "1"},
    ),
    Scenario(
        "cline",
        lambda place: [
            "sh", "-c",
            f'cline auth -p openai -k {KEY} -m {MODEL} -b "$1/v1" && cline "$2"',
            "sh", place.url, TASK,
        ],
        _cline,
    ),
    Scenario(
        "qwen",
        lambda place: [
            "qwen", "--approval-mode", "yolo", "--auth-type", "openai", "--openai-api-key", KEY,
            "--openai-base-url", f"{place.url}/v1", "--model", MODEL, "--prompt", TASK,
        ],
        _qwen,
    ),
    Scenario(
        "pi",
        lambda place: ["pi", "--provider", "bulkhead", "--model", MODEL, "--print", TASK],
        _pi,
        files=_pi_config,
        environ=lambda place: {"PI_OFFLINE": "1"},
    ),
    Scenario(
        "continue",
        lambda place: [
            "cn", "--print", "--auto", "--config", str(place.home / "config.yaml"), TASK,
        ],
        _continue,
        files=_continue_config,
    ),
    Scenario(
        "aider",
        lambda place: _launch(
            place, "aider",
            "--yes-always", "--no-git", "--no-check-update", "--analytics-disable",
            "--edit-format", "diff", "--message", TASK, FILE,
        ),
        _aider,
        aside="",
    ),
)  # fmt: skip
