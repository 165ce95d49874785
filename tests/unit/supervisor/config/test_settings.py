"""supervisor.config.settings: what is refused in a whole configuration."""

from __future__ import annotations

import json
import string
from datetime import date, datetime, time
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config import settings as config_module
from supervisor.config.flags import Overrides
from supervisor.config.rules import ConfigError
from supervisor.config.schema import (
    NOT_YET,
    Config,
    MemorySettings,
    ModelSettings,
    RecoverySettings,
    ServerSettings,
)
from supervisor.config.settings import from_tree, with_discovered
from tests.helpers.config_files import SECTIONS, SUPPORTED, TWO, documented, parse, refusal


def with_value(key: str, value: object) -> str:
    """A file that sets `key` alone."""
    section, name = key.replace("*", "coder").rsplit(".", 1)
    source = '\nsource = "x"' if section == "models.coder" else ""
    return f"[{section}]{source}\n{name} = {json.dumps(value)}"


@pytest.mark.parametrize("key", NOT_YET)
def test_a_key_that_nothing_reads_is_refused_even_with_its_default(key: str) -> None:
    if documented()[key] not in NOT_YET[key]:
        message = refusal(with_value(key, documented()[key]))
        assert message == f"{key.replace('*', 'coder')}: not supported yet"


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in NOT_YET.items() for v in vs])
def test_a_value_that_describes_this_version_is_accepted(key: str, value: object) -> None:
    parse(with_value(key, value))


@pytest.mark.parametrize("key", sorted(SUPPORTED - {"models.*.source"}))
def test_a_supported_key_is_accepted(key: str) -> None:
    parse(with_value(key, documented()[key]))


def test_deleting_its_line_is_all_that_a_key_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {key: values for key, values in NOT_YET.items() if key != "server.metrics"}
    monkeypatch.setattr(config_module, "NOT_YET", MappingProxyType(table))
    assert parse("[server]\nmetrics = true").server.metrics


def test_a_wrong_value_is_told_before_the_missing_support() -> None:
    text = "[recovery]\nstall_seconds = 5\nmax_restarts = true"
    assert refusal(text).startswith("recovery.max_restarts: expected")


def test_the_first_problem_of_the_file_is_told() -> None:
    assert refusal("[memory]\nkeep = -1\n[server]\nport = -1").startswith("memory.keep")
    assert refusal("[server]\nport = -1\n[memory]\nkeep = -1").startswith("server.port")


# ── between keys ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("warn = 0.96", "memory.warn: 0.96 is above memory.high (0.95)"),
        ("high = 0.99", "memory.high: 0.99 is above memory.critical (0.98)"),
        ("warn = 0.5\nhigh = 0.4", "memory.warn: 0.5 is above memory.high (0.4)"),
    ],
)
def test_the_pressure_levels_rise(text: str, message: str) -> None:
    assert refusal(f"[memory]\n{text}") == message


def test_pressure_levels_may_be_equal() -> None:
    assert parse("[memory]\nwarn = 0.9\nhigh = 0.9\ncritical = 0.9").memory.high == 0.9


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost", "::1", "127.9.9.9"])
def test_a_loopback_host_needs_no_keys(host: str) -> None:
    assert parse(f'[server]\nhost = "{host}"').server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "mac.local", "127.0.0.1.evil"])
def test_any_other_host_needs_keys(host: str) -> None:
    message = refusal(f'[server]\nhost = "{host}"')
    assert message.startswith("server.host: ")
    assert "server.api_keys_file" in message
    text = f'[server]\nhost = "{host}"\napi_keys_file = "keys"'
    assert parse(text).server.host == host


# ── names ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("other", "told"),
    [("b", "no model or alias is called"), ("a", "this model itself"), ("z", "this model itself")],
)
def test_a_fallback_is_another_model(other: str, told: str) -> None:
    text = f'[models.a]\nsource = "demo"\naliases = ["z"]\nfallback = "{other}"'
    message = refusal(text)
    assert message.startswith("models.a.fallback: ")
    assert told in message
    right = text.replace(f'fallback = "{other}"', 'fallback = "c"')
    assert parse(f'{right}\n[models.c]\nsource = "demo"').models["a"].fallback == "c"


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ('["one"]', 'models."org/b:8b".aliases[0]: "one" already stands for models.a'),
        ('["two", "a"]', 'models."org/b:8b".aliases[1]: "a" already stands for models.a'),
        ('["z", "z"]', '.aliases[1]: "z" already stands for models."org/b:8b"'),
    ],
)
def test_a_name_stands_for_one_model(aliases: str, message: str) -> None:
    assert refusal(f"{TWO}aliases = {aliases}").endswith(message)


@pytest.mark.parametrize("name", ["a", "one", "org/b:8b"])
def test_the_default_model_is_a_name_or_an_alias(name: str) -> None:
    text = f'[server]\ndefault_model = "{name}"\n{TWO}'
    assert parse(text).server.default_model == name


def test_an_unknown_default_model_is_refused() -> None:
    message = refusal(f'[server]\ndefault_model = "onne"\n{TWO}')
    assert message.startswith('server.default_model: no model or alias is called "onne"')
    assert message.endswith('(did you mean "one"?)')


def test_the_default_model_of_discovered_ones_is_checked_when_they_are_known() -> None:
    config = parse('[server]\ndefault_model = "demo"')
    assert with_discovered(config, {"demo": "demo"}).models == {
        "demo": ModelSettings(source="demo")
    }
    with pytest.raises(ConfigError, match=r"^server\.default_model: "):
        with_discovered(config, {"other": "x"})
    with pytest.raises(ConfigError, match=r"^server\.default_model: "):
        with_discovered(config, {})


def test_configured_models_leave_nothing_to_discover() -> None:
    config = parse(TWO)
    assert with_discovered(config, {"demo": "demo"}) == config


def preloaded(config: Config) -> list[str]:
    return [name for name, model in config.models.items() if model.preload]


FILE_PRELOADS_A = TWO.replace('"x"', '"x"\npreload = true')
FILE_SAYS_NO = TWO.replace('"x"', '"x"\npreload = false')


# ── preloads ─────────────────────────────────────────────────────────────────────────────────────


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
VARIABLES = {
    "MLX_MAX_CACHED_MODELS": "memory.max_loaded",
    "MLX_CACHE_CLEANUP_INTERVAL_SEC": "memory.cleanup_interval",
}
ENVIRON = st.dictionaries(
    st.sampled_from([*VARIABLES, "MLX_PRELOAD_MODELS"]), st.text("0123456789.-a,", max_size=4)
)


# ── any tree ─────────────────────────────────────────────────────────────────────────────────────


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
