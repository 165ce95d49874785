"""What README.md, CHANGELOG.md, docs/ and deploy/ say is what the program does.

`python -m tests.repository.test_docs` writes the help texts in docs/cli.md and the outputs in
README.md anew.
"""

import contextlib
import datetime
import functools
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.openai import embeddings
from gateway.openai.chat import CHAT_BODY, ChatRequest
from gateway.openai.completions import COMPLETION_BODY, CompletionRequest
from gateway.openai.parameters import HARMLESS
from supervisor import errors
from supervisor.config.flags import Overrides
from supervisor.config.rules import ConfigError
from supervisor.config.schema import (
    NOT_YET,
    MemorySettings,
    ModelSettings,
    RecoverySettings,
    ServerSettings,
)
from supervisor.config.settings import from_tree
from supervisor.crashes.diagnosis import MEANINGS, Cause
from supervisor.models.catalog import DEMO, DEMO_DIR
from supervisor.scheduler.lifecycle import State
from supervisor.wire.crash import CrashBrief, CrashReport
from tests.repository.test_places import defined

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
CHANGELOG = ROOT / "CHANGELOG.md"
CLI = DOCS / "cli.md"
CLIENTS = DOCS / "clients.md"
"""Has the configuration of others; tests/repository/test_clients.py holds it."""
PAGES = sorted([README, CHANGELOG, *DOCS.rglob("*.md"), *(ROOT / "deploy").glob("*.md")])
BULKHEAD = Path(sys.executable).with_name("bulkhead")

SECTIONS: dict[str, type[msgspec.Struct]] = {
    "server": ServerSettings,
    "memory": MemorySettings,
    "recovery": RecoverySettings,
    "models.*": ModelSettings,
}
FLAG = re.compile(r'"(--[a-z-]+)"')
SPOKEN = (
    "supervisor/wire/control_frames.py",
    "supervisor/wire/frames.py",
    "supervisor/scheduler/effects.py",
    "supervisor/scheduler/death.py",
    "supervisor/scheduler/pool.py",
    "supervisor/scheduler/planner.py",
)
"""Whose names a walk may use in any step."""
DEADLINE = 30.0


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ── Markdown ─────────────────────────────────────────────────────────────────────────────────────


def fences(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def section(text: str, heading: str) -> str:
    """From a heading to the next one of its level or above."""
    level = heading.split(" ")[0]
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def tables(text: str) -> list[list[list[str]]]:
    """Every table as rows of cells, its heading first."""
    found: list[list[list[str]]] = [[]]
    for line in prose(text).splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not all(set(cell) <= {"-", ":"} for cell in cells):
                found[-1].append(cells)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def anchors(text: str) -> set[str]:
    """The fragments that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        if fragment:
            assert fragment in anchors(file.read_text()), target


@pytest.mark.parametrize("page", [page for page in PAGES if page != CLIENTS], ids=_name)
def test_toml_blocks_load(page: Path) -> None:
    for block in fences(page.read_text(), "toml"):
        assert from_tree(tomllib.loads(block), environ={}, overrides=Overrides()).models


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_json_blocks_are_json(page: Path) -> None:
    for block in fences(page.read_text(), "json"):
        json.loads(block)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    targets |= set(re.findall(r"^LONG := (.*)", makefile, re.MULTILINE)[0].split())
    benchmarks = re.findall(r"^BENCHMARKS := (.*)", makefile, re.MULTILINE)[0].split()
    targets |= {f"bench-{name}" for name in benchmarks}
    text = page.read_text()
    used = set(re.findall(r"`make ([a-z-]+)`", text))
    for block in fences(text, "sh"):
        used |= set(re.findall(r"^make ([a-z-]+)", block, re.MULTILINE))
    assert used <= targets


def missing_tests(text: str) -> list[str]:
    """Tests that a text names and that are not where it says: in the file behind "in", else in one
    of those that the sentence names, else in any."""
    every = sorted((ROOT / "tests").rglob("test_*.py"))
    missing = []
    for sentence in re.split(r"[.:] |\n", text):
        files = re.findall(r"`(tests/[\w/]+\.py)`", sentence)
        behind_in = {
            name: [file]
            for names, file in re.findall(
                r"((?:`test_\w+`(?:,? and |, )?)+) in `(tests/[\w/]+\.py)`", sentence
            )
            for name in re.findall(r"`(test_\w+)`", names)
        }
        for name in re.findall(r"`(test_\w+)`", sentence):
            homes = [ROOT / file for file in behind_in.get(name, files)] or every
            if not any(f"def {name}(" in home.read_text() for home in homes):
                missing.append(f"{name} in {' or '.join(behind_in.get(name, files)) or 'tests'}")
    return missing


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_tests_that_are_named_exist(page: Path) -> None:
    assert missing_tests(page.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "`test_links` holds it",
        "`test_links` and `test_versions_agree` in `tests/repository/test_docs.py`, and all of "
        "`tests/repository/test_layers.py`",
        "`tests/repository/test_docs.py` has the test. `test_it_is_one_table` is another",
        "held by `test_links` (`tests/repository/test_docs.py`)",
    ],
)
def test_a_test_is_found_where_it_is_said_to_be(text: str) -> None:
    assert missing_tests(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "`test_nothing_at_all` holds it",
        "`test_links` and `test_it_is_one_table` in `tests/repository/test_docs.py`",
        "`test_links` in `tests/repository/test_layers.py`, and all of "
        "`tests/repository/test_docs.py`",
        "held by `test_links` (`tests/repository/test_layers.py`)",
    ],
)
def test_a_test_that_is_elsewhere_is_noticed(text: str) -> None:
    assert len(missing_tests(text)) == 1


def test_every_decision_is_listed() -> None:
    index = (DOCS / "decisions" / "README.md").read_text()
    listed = re.findall(r"^\| \[.+\]\((.+)\) \|", index, re.MULTILINE)
    pages = [path for path in (DOCS / "decisions").glob("*.md") if path.name != "README.md"]
    assert sorted(listed) == sorted(path.name for path in pages)
    for path in pages:
        headings = re.findall(r"^## (.+)", path.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Measured", "Would make us revisit it"]


def test_every_benchmark_and_long_form_is_described() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    benchmarks = re.findall(r"^BENCHMARKS := (.*)", makefile, re.MULTILINE)[0].split()
    for name in benchmarks:
        assert f"## {name}\n" in text
        assert f"`python -m tests.bench.{name}`" in text
    for name in re.findall(r"^LONG := (.*)", makefile, re.MULTILINE)[0].split():
        assert f"`make {name}`" in text


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_flags_exist(page: Path) -> None:
    known = set(re.findall(r"--[a-z-]+", shown("serve", "--help")))
    for block in fences(page.read_text(), "sh"):
        for line in block.splitlines():
            if found := re.search(r'bulkhead serve (.*)|make serve ARGS="(.*)"', line):
                assert set(re.findall(r"--[a-z-]+", found[0])) <= known, line
            elif found := re.search(r'^make ([a-z]+) ARGS="(.*)"', line):
                sources = [
                    ROOT / f"tests/property/{found[1]}.py",
                    *(ROOT / f"tests/{found[1]}").glob("*.py"),
                ]
                taken = {
                    flag
                    for path in sources
                    if path.exists()
                    for flag in FLAG.findall(path.read_text())
                }
                assert set(re.findall(r"--[a-z-]+", found[2])) <= taken, line


# ── versions ─────────────────────────────────────────────────────────────────────────────────────


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"^## \[(.+?)\]", CHANGELOG.read_text(), re.MULTILINE)[0] == version
    assert re.findall(r"This is version (\S+);", README.read_text()) == [version]
    assert json.loads(fences(section((DOCS / "api.md").read_text(), "## Health"), "json")[0])[
        "version"
    ] == (version)


# ── docs/cli.md ──────────────────────────────────────────────────────────────────────────────────


@functools.cache
def shown(*arguments: str) -> str:
    """What `bulkhead` prints on a terminal of 100 columns without colours."""
    environ = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", **_plain_environ()}
    done = subprocess.run(
        [BULKHEAD, *arguments], env=environ, capture_output=True, text=True, check=True, timeout=30
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines()) + "\n"


def words(text: str) -> list[str]:
    """Only the words: how boxes are drawn, and whether a flag's type and the default None are
    shown, differs between versions of Typer."""
    plain = " ".join(re.sub(r"[─-╿{}]|<bool>|<str>", " ", text).split())
    return plain.replace("[default: None]", "").split()


NAMES = [
    "serve",
    "status",
    "ps",
    "models",
    "load",
    "unload",
    "pin",
    "unpin",
    "crashes",
    "doctor",
    "selftest",
    "launch",
]
COMMANDS = {"## `bulkhead --help`": ["--help"]} | {
    f"## `bulkhead {name} --help`": [name, "--help"] for name in NAMES
}


@pytest.mark.parametrize("heading", COMMANDS)
def test_help_is_what_the_program_prints(heading: str) -> None:
    (block,) = fences(section(CLI.read_text(), heading), "text")
    assert words(block) == words(shown(*COMMANDS[heading]))


def test_every_command_in_the_help_is_documented() -> None:
    listed = re.findall(r"^│ ([a-z]+) ", shown("--help").partition("Commands")[2], re.MULTILINE)
    assert sorted(listed) == sorted(NAMES)


# ── docs/configuration.md ────────────────────────────────────────────────────────────────────────


def _wanted(rule: str, key: str) -> str:
    """What the program itself says that a key takes."""
    never = datetime.date(2026, 1, 1)
    table, _, star = rule.partition(".")
    tree: dict[str, Any] = {table: {key: never}}
    if star:
        tree = {"models": {"m": {"source": "demo", key: never}}}
    with pytest.raises(ConfigError) as caught:
        from_tree(tree, environ={}, overrides=Overrides())
    found = re.search(r": expected (.+), got ", str(caught.value))
    assert found is not None
    return found[1]


def _supported(rule: str, key: str) -> str:
    accepted = NOT_YET.get(f"{rule}.{key}")
    if accepted is None:
        return "yes"
    return "only " + ", ".join(f"`{json.dumps(value)}`" for value in accepted) if accepted else "no"


@pytest.mark.parametrize("rule", SECTIONS)
def test_configuration_keys(rule: str) -> None:
    text = (DOCS / "configuration.md").read_text()
    heading = f"## `[{rule.replace('*', 'NAME')}]`"
    ((head, *rows),) = tables(section(text, heading))
    assert head == ["key", "value", "default", "supported", "meaning"]
    documented = {row[0]: row[1:4] for row in rows}
    expected: dict[str, list[str]] = {}
    for field in msgspec.structs.fields(SECTIONS[rule]):
        default = "required" if field.required else f"`{_toml(field.default)}`"
        value = _wanted(rule, field.name)
        shape = documented.get(f"`{field.name}`", [""])[0]
        if value in ("an array", "a table"):  # the message does not say of what
            value = shape if shape.startswith(f"{value} of ") else value
        expected[f"`{field.name}`"] = [value, default, _supported(rule, field.name)]
    assert documented == expected


def _toml(default: object) -> str:
    return "{}" if default is msgspec.NODEFAULT else json.dumps(default)


# ── docs/errors.md ───────────────────────────────────────────────────────────────────────────────


def _leaves(cls: type[errors.BulkheadError]) -> Iterator[type[errors.BulkheadError]]:
    children = [child for child in cls.__subclasses__() if child.__module__ == errors.__name__]
    for child in children:
        yield from _leaves(child)
    if not children:
        yield cls


def test_the_error_tree_is_the_docstring_s() -> None:
    found = re.search(r"^BulkheadError\n(?:[├│└].*\n)+", errors.__doc__ or "", re.MULTILINE)
    assert found is not None
    text = (DOCS / "errors.md").read_text()
    assert fences(section(text, "## The tree"), "text") == [found[0]]


def test_the_error_tree_is_the_classes() -> None:
    (tree,) = fences(section((DOCS / "errors.md").read_text(), "## The tree"), "text")
    drawn = re.findall(r"── (\w+) +(\d{3}) (\w+)$", tree, re.MULTILINE)
    assert drawn == [
        (cls.__name__, str(cls.status), cls.code) for cls in _leaves(errors.BulkheadError)
    ]


def test_every_error_code() -> None:
    text = (DOCS / "errors.md").read_text()
    ((head, *rows),) = tables(section(text, "## Every code"))
    assert head[:4] == ["code", "status", "type", "headers"]
    documented = {row[0]: row[1:4] for row in rows}
    assert len(documented) == len(rows)
    expected = {}
    for cls in _leaves(errors.BulkheadError):
        headers = cls("").headers()
        if "Retry-After" in headers:
            headers["Retry-After"] = ""  # its value is the moment's
        told = ", ".join(
            f"`{name}: {value}`".replace(": `", "`") for name, value in headers.items()
        )
        expected[f"`{cls.code}`"] = [str(cls.status), cls.type, told or "–"]
    assert documented == expected
    assert all(len(row) == len(head) and row[4] and row[5] for row in rows)


# ── docs/operations.md ───────────────────────────────────────────────────────────────────────────


def test_the_causes_of_crashes() -> None:
    text = section((DOCS / "operations.md").read_text(), "### Crash reports")
    ((head, *rows),) = tables(text)
    assert head == ["cause", "told by", "what happened", "what to do"]
    expected = [(f"`{cause}`", MEANINGS[cause].summary, MEANINGS[cause].advice) for cause in Cause]
    assert [(row[0], row[2], row[3]) for row in rows] == expected


def test_the_members_of_a_crash_report() -> None:
    text = section((DOCS / "api.md").read_text(), "## Crash reports")
    brief = json.loads(fences(text, "json")[0])
    assert tuple(brief) == CrashBrief.__struct_fields__
    ((_, *rows),) = tables(text)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert told == set(CrashReport.__struct_fields__) - set(brief)


# ── docs/architecture.md ─────────────────────────────────────────────────────────────────────────


def test_every_state_says_what_it_means_for_requests() -> None:
    text = (DOCS / "architecture.md").read_text()
    (requests,) = tables(section(text, "## Worker states"))
    assert [s for row in requests[1:] for s in row[0].split(", ")] == [*State]


@pytest.mark.parametrize("heading", ["## One request", "## One death", "## Where to change what"])
def test_a_walk_names_what_its_modules_define(heading: str) -> None:
    """A name belongs to the modules that are named in its step, or is a frame or an effect."""
    text = section((DOCS / "architecture.md").read_text(), heading)
    steps = re.findall(r"^(?:\d+\.|\|) (.+)$", text, re.MULTILINE)
    assert len(steps) in range(12, 16)
    spoken = set().union(*(defined(ROOT / each) for each in SPOKEN))
    for step in steps:
        code = re.findall(r"`([^`]+)`", step)
        known = spoken.union(*(defined(ROOT / each) for each in code if each.endswith(".py")))
        names = [name.rpartition(".")[2] for name in code if "/" not in name]
        assert [name for name in names if name not in known] == [], step


# ── docs/api.md ──────────────────────────────────────────────────────────────────────────────────


def _of(chat: bool, completions: bool) -> str:
    return "both" if chat and completions else "chat" if chat else "completions"


def test_supported_parameters() -> None:
    text = section((DOCS / "api.md").read_text(), "## Parameters")
    supported, neutral = tables(text)
    chat = ChatRequest.__struct_fields__
    completion = CompletionRequest.__struct_fields__
    assert {row[0]: row[1] for row in supported[1:]} == {
        f"`{name}`": _of(name in chat, name in completion) for name in {*chat, *completion}
    }
    chat_neutral, text_neutral = CHAT_BODY.neutral, COMPLETION_BODY.neutral
    values: dict[str, tuple[object, ...]] = {**chat_neutral, **text_neutral}
    assert {row[0]: row[1:] for row in neutral[1:]} == {
        f"`{name}`": [
            _of(name in chat_neutral, name in text_neutral),
            # 0 and 0.0 are one value to a client.
            ", ".join(dict.fromkeys(f"`{json.dumps(_whole(v))}`" for v in accepted)),
        ]
        for name, accepted in values.items()
    }


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def test_embedding_parameters() -> None:
    text = section((DOCS / "api.md").read_text(), "## Embeddings")
    ((_, *rows),) = tables(text)
    fields = embeddings.EmbeddingRequest.__struct_fields__
    assert sorted(row[0] for row in rows) == sorted(f"`{name}`" for name in fields)
    assert f"{embeddings.INPUTS_MAX:,} strings" in text
    for name in embeddings.EMBEDDING_BODY.harmless:
        assert f"`{name}` is accepted" in text


def test_harmless_parameters() -> None:
    text = section((DOCS / "api.md").read_text(), "## Parameters")
    (line,) = [line for line in text.splitlines() if line.startswith("`user`")]
    names = re.findall(r"`(\w+)`", line)
    assert sorted(names) == sorted(HARMLESS)


# ── README.md's examples ─────────────────────────────────────────────────────────────────────────

README_URL = "http://127.0.0.1:11435"
OUTPUT = re.compile(
    r"^```(?P<kind>sh|python)\n(?P<command>(?:(?!^```).*\n)+)^```\n\n"
    r"(?P<mark><!-- DEMO-OUTPUT.*-->\n```\w+\n)(?P<output>(?:(?!^```).*\n)*)^```$",
    re.MULTILINE,
)
"""An example and, below a marker, what it prints."""


def examples(page: str) -> list[re.Match[str]]:
    """The examples in README.md that have an output, in the page's order."""
    return list(OUTPUT.finditer(page))


def test_readme_has_its_examples() -> None:
    assert [example["kind"] for example in examples(README.read_text())] == ["sh", "python"]


@pytest.mark.skipif(not DEMO_DIR.is_dir(), reason="the demo model is not there yet")
def test_readme_examples_print_what_it_says(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        for example in examples(README.read_text()):
            printed = run_example(example, url)
            assert _timeless(printed) == _timeless(example["output"])


def _timeless(output: str) -> str:
    return re.sub(r'("id": )"chatcmpl-\w+"|("created": )\d+', r"\1\2…", output)


def run_example(example: re.Match[str], url: str) -> str:
    """What an example prints, run against the server at `url`, as it should stand in the README."""
    command = example["command"].replace(README_URL, url)
    if example["kind"] == "sh":
        argv = ["bash", "-o", "pipefail", "-c", command]
    else:
        argv = [sys.executable, "-c", command]
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        argv, env={**_plain_environ(), "PATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n") + "\n"


def _plain_environ() -> Mapping[str, str]:
    """No proxy, no colours, no settings of Bulkhead's; this tree, whatever else is installed."""
    kept = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG")}
    return {**kept, "PATH": os.defpath, "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def serving(state: Path, source: str = DEMO) -> Iterator[str]:
    """A server with the demo model on a free port, and no spare worker to take its CPU."""
    state.mkdir(exist_ok=True)
    (state / "bulkhead.toml").write_text("[memory]\nspare = false\n")
    command = [str(BULKHEAD), "serve", "--model", f"{DEMO}={source}", "--port", "0"]
    with subprocess.Popen(
        [*command, "--state-dir", str(state)],
        env=_plain_environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            readable, _, _ = select.select([server.stdout], [], [], DEADLINE)
            line = server.stdout.readline() if readable else ""
            yield line.strip().removeprefix("Bulkhead ready on ")
            server.send_signal(signal.SIGTERM)
            assert server.wait(DEADLINE) == 0
        finally:
            server.kill()


def rewrite(source: str = DEMO) -> None:
    """Bring docs/cli.md and the outputs in README.md up to date."""
    cli = CLI.read_text()
    for heading, arguments in COMMANDS.items():
        before, found, rest = cli.partition(f"{heading}\n\n```text\n")
        assert found, heading
        cli = before + found + shown(*arguments) + rest[re.search(r"^```$", rest, re.M).start() :]  # type: ignore[union-attr]
    CLI.write_text(cli)
    with tempfile.TemporaryDirectory() as state, serving(Path(state), source) as url:
        page = README.read_text()
        for example in reversed(examples(page)):
            start, end = example.span("output")
            page = page[:start] + run_example(example, url) + page[end:]
        README.write_text(page)


if __name__ == "__main__":
    rewrite(*sys.argv[1:])
