"""supervisor.config.flags: flags and variables go where the file's keys are."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from supervisor.config.flags import Overrides, parse_model_flag
from supervisor.config.rules import ConfigError
from supervisor.config.schema import MemorySettings, ModelSettings, ServerSettings
from supervisor.config.settings import from_tree
from tests.helpers.config_files import TWO, parse, refusal


def test_flags_go_before_the_file() -> None:
    flags = Overrides(host="::1", port=0)
    config = parse('[server]\nhost = "localhost"\nport = 1\nhold_seconds = 5', overrides=flags)
    assert config.server == ServerSettings(host="::1", port=0, hold_seconds=5)


def test_a_model_flag_replaces_the_source_and_keeps_the_rest() -> None:
    flags = Overrides(models=(("a", "new"), ("c", "demo")))
    config = parse(TWO, overrides=flags)
    assert config.models == {
        "a": ModelSettings(source="new", aliases=("one",)),
        "org/b:8b": ModelSettings(source="y"),
        "c": ModelSettings(source="demo"),
    }
    assert parse("[models.a]\nmax_queue = 3", overrides=flags).models["a"].max_queue == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": 99999}, "server.port (--port): expected an integer from 0 to 65535, got 99999"),
        ({"host": ""}, 'server.host (--host): expected a string that is not empty, got ""'),
        ({"host": "0.0.0.0"}, 'server.host: "0.0.0.0" can be reached from other machines'),
        ({"ram_budget": "96"}, 'memory.budget (--ram-budget): expected "auto"'),
        ({"models": (("a", "x"), ("a", "y"))}, '--model: "a" is given twice'),
        ({"models": (("one", "x"),)}, 'models.a.aliases[0]: "one" already stands for models.one'),
        ({"models": (("a\udc80", "x"),)}, 'models."a\\udc80" (--model): a model\'s name'),
        ({"models": (("b", "/a/caf\udce9"),)}, "--model: '/a/caf\\udce9' is not UTF-8"),
        ({"models": (("b", ""),)}, "models.b.source (--model): expected a string"),
        ({"preload": ("onee",)}, '--preload: no model or alias is called "onee" (did you mean'),
    ],
)
def test_a_bad_flag_is_named(flags: dict[str, Any], message: str) -> None:
    assert refusal(TWO, **flags).startswith(message)


def test_a_flag_meets_a_section_of_the_wrong_type() -> None:
    assert refusal("server = 3", port=1) == "server: expected a table, got 3"
    assert refusal("models = 3", models=(("a", "x"),)) == "models: expected a table, got 3"
    assert refusal("[models]\na = 3", models=(("a", "x"),)) == "models.a: expected a table, got 3"


def test_the_files_tables_are_left_alone() -> None:
    tree = tomllib.loads(TWO)
    overrides = Overrides(port=1, models=(("a", "new"),))
    from_tree(tree, environ={}, overrides=overrides)
    assert tree == tomllib.loads(TWO)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("coder=mlx-community/x", ("coder", "mlx-community/x")),
        ("org/m:8b=/path=with=equals", ("org/m:8b", "/path=with=equals")),
        ("mlx-community/x", ("mlx-community/x", "mlx-community/x")),
        ("demo", ("demo", "demo")),
        ("/models/x", ("x", "/models/x")),
        ("/models/x/", ("x", "/models/x/")),
        ("./x", ("x", "./x")),
        ("../a=b", ("a=b", "../a=b")),
        ("~/models/x-4bit", ("x-4bit", "~/models/x-4bit")),
        ("/h/hub/models--o--n/snapshots/0f3a", ("o/n", "/h/hub/models--o--n/snapshots/0f3a")),
    ],
)
def test_a_model_flag(text: str, expected: tuple[str, str]) -> None:
    assert parse_model_flag(text) == expected


@pytest.mark.parametrize(
    "text", ["", "coder", "=x", "coder=", "/", "..", "../", "~", "./", "coder/", "="]
)
def test_a_bad_model_flag(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--model: expected NAME=SOURCE"):
        parse_model_flag(text)


VARIABLES = {
    "MLX_MAX_CACHED_MODELS": "memory.max_loaded",
    "MLX_CACHE_CLEANUP_INTERVAL_SEC": "memory.cleanup_interval",
}


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_bad_variable_is_named(variable: str) -> None:
    label = f"{VARIABLES[variable]} ({variable})"
    for wrong in ("-1", "two", "1e9"):
        assert refusal("", {variable: wrong}).startswith(f"{label}: expected a")


def test_variables_are_honoured_when_the_file_is_silent() -> None:
    two = dict.fromkeys(VARIABLES, "2")
    assert parse("", two).memory == MemorySettings(max_loaded=2, cleanup_interval=2)
    assert parse("", dict.fromkeys(VARIABLES, "")).memory == MemorySettings()
    text = "[memory]\nmax_loaded = 0\ncleanup_interval = 0"
    written = parse(text, dict.fromkeys(VARIABLES, "7")).memory
    assert (written.max_loaded, written.cleanup_interval) == (0, 0)


def test_a_variable_may_hold_a_fraction_where_the_key_may() -> None:
    memory = parse("", {"MLX_CACHE_CLEANUP_INTERVAL_SEC": "2.5"}).memory
    assert memory.cleanup_interval == 2.5
