"""supervisor.config.settings: flags, environment, files and keys; any tree loads or is refused."""

from __future__ import annotations

import string
import tomllib
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config.settings import (
    Config,
    ConfigError,
    MemorySettings,
    ModelSettings,
    Overrides,
    RecoverySettings,
    ServerSettings,
    from_tree,
    load,
    parse_model_flag,
    read_api_keys,
    resolve_config_path,
    resolve_state_dir,
    with_discovered,
)
from tests.helpers.config_files import SECTIONS, TWO, documented, parse, refusal

# Flags and environment variables


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
    ],
)
def test_a_model_flag(text: str, expected: tuple[str, str]) -> None:
    assert parse_model_flag(text) == expected


@pytest.mark.parametrize("text", ["", "coder", "=x", "coder="])
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


def preloaded(config: Config) -> list[str]:
    return [name for name, model in config.models.items() if model.preload]


FILE_PRELOADS_A = TWO.replace('"x"', '"x"\npreload = true')
FILE_SAYS_NO = TWO.replace('"x"', '"x"\npreload = false')


@pytest.mark.parametrize(
    ("text", "variable", "flag", "expected"),
    [
        (TWO, "", (), []),
        (TWO, " one , org/b:8b,", (), ["a", "org/b:8b"]),
        (TWO, "a", ("org/b:8b",), ["org/b:8b"]),
        (FILE_PRELOADS_A, "org/b:8b", (), ["a"]),
        (FILE_PRELOADS_A, "", ("org/b:8b",), ["a", "org/b:8b"]),
        (FILE_SAYS_NO, "a", (), []),
        (FILE_SAYS_NO, "", ("one",), ["a"]),
    ],
)
def test_preloads_come_from_flag_file_or_variable(
    text: str, variable: str, flag: tuple[str, ...], expected: list[str]
) -> None:
    config = parse(text, {"MLX_PRELOAD_MODELS": variable}, Overrides(preload=flag))
    assert preloaded(config) == expected
    assert config.preload == ()


def test_an_unknown_preload_of_the_environment_is_refused() -> None:
    message = refusal(TWO, {"MLX_PRELOAD_MODELS": "fast"})
    assert message == 'MLX_PRELOAD_MODELS: no model or alias is called "fast"'


def test_preloads_wait_for_the_discovery() -> None:
    config = parse("", {"MLX_PRELOAD_MODELS": "org/m,demo,demo"})
    assert config.preload == ("org/m", "demo")
    found = with_discovered(config, {"demo": "demo", "org/m": "org/m", "org/n": "org/n"})
    assert preloaded(found) == ["demo", "org/m"]
    assert found.preload == ()
    with pytest.raises(ConfigError, match=r"^--preload or MLX_PRELOAD_MODELS: .*org/m"):
        with_discovered(config, {"demo": "demo"})


# Files


def load_file(path: Path) -> Config:
    return load(path, environ={}, overrides=Overrides())


def test_without_a_file_the_defaults_hold() -> None:
    assert load(None, environ={}, overrides=Overrides()) == Config()


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text(TWO)
    assert load_file(path) == parse(TWO)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[server]\nport = \n", "line 2"),
        (b"[server]\nport = 1\nport = 2\n", "line 3"),
        (b'[server]\nhost = """\nx', "line 3, the end of the file"),
        (b"[server]\nhost = '\xff'\n", "not UTF-8 (at line 2)"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"9" * 5000, "cannot be read"),
    ],
)
def test_a_file_that_is_no_toml_is_named_with_the_line(
    data: bytes, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "b.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_file(tmp_path / "none.toml")


def test_the_config_is_searched_in_order(tmp_path: Path) -> None:
    flag, variable, state = tmp_path / "f.toml", tmp_path / "v.toml", tmp_path / "state"
    assert resolve_config_path(None, {}, state) is None
    state.mkdir()
    for path in (flag, variable, state / "bulkhead.toml"):
        path.write_text("")
    environ = {"BULKHEAD_CONFIG": "~/v.toml", "HOME": str(tmp_path)}
    assert resolve_config_path(str(flag), environ, state) == flag
    assert resolve_config_path(None, environ, state) == variable
    assert resolve_config_path(None, {"BULKHEAD_CONFIG": ""}, state) == state / "bulkhead.toml"


@pytest.mark.parametrize(("flag", "origin"), [("none.toml", "--config"), (None, "BULKHEAD_CONFIG")])
def test_a_named_config_must_exist(flag: str | None, origin: str, tmp_path: Path) -> None:
    (tmp_path / "bulkhead.toml").write_text("")
    with pytest.raises(ConfigError, match=f"^{origin}: no such file: "):
        resolve_config_path(flag, {"BULKHEAD_CONFIG": str(tmp_path)}, tmp_path)


def test_the_state_dir_is_searched_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"BULKHEAD_HOME": "~/state", "HOME": "/h"}
    monkeypatch.chdir(tmp_path)
    assert resolve_state_dir("mine", environ) == tmp_path / "mine"
    assert resolve_state_dir(None, environ) == Path("/h/state")
    assert resolve_state_dir(None, {"BULKHEAD_HOME": "", "HOME": "/h"}) == Path("/h/.bulkhead")


def write_keys(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_api_keys(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfsk-one\r\n\n  # a comment\n\tsk-two  \nsk-one\n"
    path = write_keys(tmp_path / "keys", data)
    assert read_api_keys(path) == {"sk-one", "sk-two"}
    assert read_api_keys(str(path)) == {"sk-one", "sk-two"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_api_keys_that_others_can_reach_are_refused(mode: int, tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys", b"sk-secret\n", mode)
    with pytest.raises(ConfigError, match=r"^server\.api_keys_file: .*chmod 600") as caught:
        read_api_keys(path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "holds no key"),
        (b"\n# nothing\n", "holds no key"),
        (b"sk-ok\nsk-secret comment\n", "line 2"),
        ("sk-secrét\n".encode(), "line 1"),
        (b"sk-secret\xff\n", "line 1"),
    ],
)
def test_bad_api_keys_are_refused_and_never_told(data: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        read_api_keys(write_keys(tmp_path / "keys", data))
    assert "sk-" not in str(caught.value)


def test_api_keys_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"^server\.api_keys_file: .*cannot be read"):
            read_api_keys(path)


# Any tree


SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers().map(lambda n: n * 10**400),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["auto", "64MB", "75%", "lru", "off", "shared", "demo", "::1", "a"]),
    st.just(datetime(1979, 5, 27)),
    st.just(date(1979, 5, 27)),
    st.just(time(7, 32)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)


def tables(cls: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, object]]:
    """Tables of mostly known keys, with their documented values or with anything."""
    section = next(name for name, known in SECTIONS.items() if known is cls)
    known = [
        st.tuples(st.just(key), st.one_of(st.just(documented()[f"{section}.{key}"]), VALUES))
        for key in cls.__struct_fields__
    ]
    unknown = st.tuples(st.text(max_size=3), VALUES)
    return st.lists(st.one_of(*known, *known, unknown), max_size=3).map(dict)


MODELS = st.dictionaries(
    st.one_of(st.sampled_from(["a", "b"]), st.text(string.printable, max_size=3)),
    st.one_of(VALUES, tables(ModelSettings).map(lambda table: {"source": "x"} | table)),
    max_size=2,
)
TREES = st.fixed_dictionaries(
    {},
    optional={
        "server": st.one_of(tables(ServerSettings), VALUES),
        "memory": st.one_of(tables(MemorySettings), VALUES),
        "recovery": st.one_of(tables(RecoverySettings), VALUES),
        "models": st.one_of(MODELS, VALUES),
        "x": VALUES,
    },
)
FLAGS = st.builds(
    Overrides,
    host=st.none() | st.text(max_size=4),
    port=st.none() | st.integers(),
    ram_budget=st.none() | st.text(max_size=4),
    models=st.lists(st.tuples(st.text(max_size=2), st.text(max_size=2)), max_size=2).map(tuple),
    preload=st.lists(st.text(max_size=2), max_size=2).map(tuple),
)
ENVIRON = st.dictionaries(
    st.sampled_from([*VARIABLES, "MLX_PRELOAD_MODELS"]), st.text("0123456789.-a,", max_size=4)
)


@given(tree=TREES, environ=ENVIRON, overrides=st.one_of(st.just(Overrides()), FLAGS))
def test_any_tree_loads_or_is_refused(
    tree: dict[str, object], environ: dict[str, str], overrides: Overrides
) -> None:
    try:
        config = from_tree(tree, environ=environ, overrides=overrides)
    except ConfigError as error:
        message = str(error)
        assert message.isprintable()
        assert ": " in message
        with pytest.raises(ConfigError) as again:
            from_tree(tree, environ=environ, overrides=overrides)
        assert str(again.value) == message
    else:
        # What loads obeys every rule of the schema, as msgspec itself sees it.
        assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config
