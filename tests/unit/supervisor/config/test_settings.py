"""supervisor.config.settings: the schema, its rules, and what is refused."""

from __future__ import annotations

import json
from types import MappingProxyType

import msgspec
import pytest

from supervisor.config import settings as config_module
from supervisor.config.settings import (
    NOT_YET,
    Config,
    ConfigError,
    ModelSettings,
    parse_size,
    validate_names,
    with_discovered,
)
from tests.helpers.config_files import SCHEMA, SECTIONS, SUPPORTED, TWO, documented, parse, refusal


@pytest.fixture
def everything_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The day on which NOT_YET is empty."""
    monkeypatch.setattr(config_module, "NOT_YET", MappingProxyType({}))


# The schema


def test_the_fields_are_the_documented_keys() -> None:
    fields = {f"{name}.{key}" for name, cls in SECTIONS.items() for key in cls.__struct_fields__}
    assert fields == documented().keys()


@pytest.mark.parametrize("key", documented())
def test_the_default_is_the_documented_one(key: str) -> None:
    # The schema's model is an example: these two differ from the defaults, and source has none.
    expected = documented() | {"models.*.aliases": [], "models.*.preload": False}
    section, name = key.rsplit(".", 1)
    value = getattr(
        ModelSettings(source="x") if section == "models.*" else SECTIONS[section](), name
    )
    if key != "models.*.source":
        assert (list(value) if isinstance(value, tuple) else value) == expected[key]


@pytest.mark.usefixtures("everything_supported")
def test_the_documented_file_loads_as_the_defaults() -> None:
    config = parse(SCHEMA)
    coder = ModelSettings(
        source="mlx-community/Qwen2.5-Coder-32B-Instruct-4bit",
        aliases=("default", "coding"),
        preload=True,
    )
    assert config == Config(models={"coder": coder})


def test_every_key_is_supported_or_refused() -> None:
    assert SUPPORTED.isdisjoint(NOT_YET)
    assert SUPPORTED | NOT_YET.keys() == documented().keys()


def test_settings_survive_the_way_to_another_process() -> None:
    config = parse('[server]\nport = 0\n[models.a]\nsource = "x"\naliases = ["b"]\nenv = {K = "v"}')
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().server.port = 1  # type: ignore[misc]


# What is refused because nothing reads it yet


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


# Single values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[memory]\nwarn = "high"', 'memory.warn: expected a number between 0 and 1, got "high"'),
        ("[memory]\nwarn = 1.5", "memory.warn: expected a number between 0 and 1, got 1.5"),
        ("[memory]\nwarn = nan", "memory.warn: expected a number between 0 and 1, got nan"),
        ("[memory]\nwarn = true", "memory.warn: expected a number between 0 and 1, got true"),
        ("[server]\nport = 65536", "server.port: expected an integer from 0 to 65535, got 65536"),
        ("[server]\nport = -1", "server.port: expected an integer from 0 to 65535, got -1"),
        ("[server]\nport = true", "server.port: expected an integer from 0 to 65535, got true"),
        ("[server]\nport = 80.0", "server.port: expected an integer from 0 to 65535, got 80.0"),
        ("[server]\nport = 1979-05-27", "integer from 0 to 65535, got a date"),
        ("[server]\nport = 07:32:00", "integer from 0 to 65535, got a time"),
        ("[server]\nport = [1]", "integer from 0 to 65535, got an array"),
        ("[server]\nport = {a = 1}", "integer from 0 to 65535, got a table"),
        (f"[server]\nport = 0x{'f' * 9999}", "integer from 0 to 65535, got an integer"),
        ("[server]\nhost = 1979-05-27T07:32:00Z", "a string that is not empty, got a date-time"),
        ('[server]\nhost = ""', 'server.host: expected a string that is not empty, got ""'),
        ("[server]\napi_keys_file = 1", "server.api_keys_file: expected a string, got 1"),
        ("[server]\nmetrics = 0", "server.metrics: expected a boolean, got 0"),
        ("[server]\nhold_seconds = -1", "server.hold_seconds: expected a number of seconds, 0"),
        ("[server]\nhold_seconds = inf", "server.hold_seconds: expected a number of seconds, 0"),
        ("[memory]\nload_stall_seconds = 0", "expected a number of seconds above 0, got 0"),
        ("[memory]\nmax_wait = -1", 'memory.max_wait: expected "auto" or a number of seconds'),
        ('[memory]\nmax_wait = "x"', 'memory.max_wait: expected "auto" or a number of seconds'),
        ("[memory]\nmax_wait = nan", 'memory.max_wait: expected "auto" or a number of seconds'),
        ('[memory]\npolicy = "fifo"', 'expected one of "gdsf", "use_count", "lru", got "fifo"'),
        ("[memory]\nkeep = 1e3", "memory.keep: expected an integer from 0"),
        ("[memory]\nkeep = 99999999999", "memory.keep: expected an integer from 0 to 1000000000"),
        ('[memory]\nbudget = "120%"', 'memory.budget: expected "auto", a size'),
        ('[memory]\nbudget = "0%"', 'memory.budget: expected "auto", a size'),
        ('[server]\nmax_body = "0MB"', 'server.max_body: expected a size such as "64MB"'),
        ('[server]\nmax_body = "auto"', 'server.max_body: expected a size such as "64MB"'),
        ("[server]\nmax_body = 64000", 'expected a size such as "64MB" or "2GiB", got 64000'),
        ('[server]\nallowed_hosts = "*"', 'server.allowed_hosts: expected an array, got "*"'),
        ('[server]\nallowed_hosts = ["a", 2]', "server.allowed_hosts[1]: expected a string"),
        ("server = 3", "server: expected a table, got 3"),
        ("models = 3", "models: expected a table, got 3"),
        ('[models]\na = "x"', 'models.a: expected a table, got "x"'),
        ("[models.a]", "models.a.source: missing; expected a string: a model folder"),
        ('[models.a]\nsource = ""', "models.a.source: expected a string: a model folder"),
        ('[models."org/m:8b"]', 'models."org/m:8b".source: missing'),
        ('[models.""]\nsource = "x"', 'models."": a model\'s name is not empty'),
        ('[models."a\\u0007"]\nsource = "x"', 'models."a\\u0007": a model\'s name is not empty'),
        ('[models.a]\nsource = "x"\naliases = [""]', "models.a.aliases[0]: expected a name"),
        ('[models.a]\nsource = "x"\nmemory = "0GB"', 'models.a.memory: expected "auto" or a size'),
        ('[models.a]\nsource = "x"\nenv = 3', "models.a.env: expected a table, got 3"),
        ('[models.a]\nsource = "x"\nenv = {"A=B" = ""}', 'models.a.env."A=B": not a name'),
        ('[models.a]\nsource = "x"\nenv = {A = "\\u0000"}', "models.a.env.A: expected a string"),
    ],
)
def test_a_value_out_of_the_rules_tells_path_and_expectation(text: str, message: str) -> None:
    actual = refusal(text)
    # A shortened expectation must still be the message's start or its end.
    assert actual.startswith(message) or actual.endswith(message)
    assert actual.startswith(("server", "memory", "models"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 1", 'server.prot: unknown key (did you mean "port"?)'),
        ("[server]\nzzz = 1", "server.zzz: unknown key"),
        ("[sever]\nport = 1", 'sever: unknown key (did you mean "server"?)'),
        ("port = 1", 'port: unknown key (did you mean "server.port"?)'),
        ('"a.b" = 1', '"a.b": unknown key'),
        (
            '[models.a]\nsource = "x"\nalias = []',
            'models.a.alias: unknown key (did you mean "aliases"?)',
        ),
        (
            '[models.qwen2.5]\nsource = "x"',
            "models.qwen2.5: unknown key (a model name with a dot in it needs quotes)",
        ),
    ],
)
def test_an_unknown_key_is_an_error(text: str, message: str) -> None:
    assert refusal(text) == message


def test_the_first_problem_of_the_file_is_told() -> None:
    assert refusal("[memory]\nkeep = -1\n[server]\nport = -1").startswith("memory.keep")
    assert refusal("[server]\nport = -1\n[memory]\nkeep = -1").startswith("server.port")


def test_a_secret_of_the_environment_is_not_told() -> None:
    message = refusal('[models.a]\nsource = "x"\nenv = {TOKEN = 1234567}')
    assert message == "models.a.env.TOKEN: expected a string, got an integer"


def test_a_long_value_is_cut() -> None:
    assert len(refusal(f'[memory]\npolicy = "{"x" * 5000}"')) < 200


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MB", 64_000_000),
        ("1KB", 1000),
        ("96GB", 96 * 10**9),
        ("2TB", 2 * 10**12),
        ("1KiB", 1024),
        ("1MiB", 2**20),
        ("2 GiB", 2 * 2**30),
        ("1TiB", 2**40),
        ("1.5GB", 1_500_000_000),
        ("0.001KiB", 1),
        ("64mb", 64_000_000),
        ("0MB", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "64", "MB", "-1MB", "1,5GB", "1e3MB", "64M", "64MBs", " 64MB", "64MB\n", "auto"),
        *("٣MB", "1\u212aB", "9223373TB", "1.2345GB", "nanMB"),
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size"):
        parse_size(text)


@pytest.mark.usefixtures("everything_supported")
def test_sizes_are_available_in_bytes() -> None:
    text = '[server]\nmax_body = "1MiB"\n[models.a]\nsource = "x"\nmemory = "2GB"\n'
    config = parse(text + 'kv_budget = "3GB"\nprompt_cache = "0MB"\n[models.b]\nsource = "x"')
    a, b = config.models["a"], config.models["b"]
    assert config.server.max_body_bytes == 2**20
    assert (a.memory_bytes, a.kv_budget_bytes, a.prompt_cache_bytes) == (2 * 10**9, 3 * 10**9, 0)
    assert (b.memory_bytes, b.kv_budget_bytes, b.prompt_cache_bytes) == (None, None, None)


@pytest.mark.parametrize(
    ("budget", "size"), [("auto", None), ("96GB", 96 * 10**9), ("75%", 96), ("12.5%", 16)]
)
@pytest.mark.usefixtures("everything_supported")
def test_a_budget_may_be_a_share_of_the_ram(budget: str, size: int | None) -> None:
    memory = parse(f'[memory]\nbudget = "{budget}"').memory
    assert memory.budget_bytes(physical=128) == size


# Between keys


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


@pytest.mark.usefixtures("everything_supported")
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


def test_names_lead_to_their_models() -> None:
    assert parse(TWO).names() == {"a": "a", "one": "a", "org/b:8b": "org/b:8b"}


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
    validate_names(config, ["demo"])
    assert with_discovered(config, {"demo": "demo"}).models == {
        "demo": ModelSettings(source="demo")
    }
    with pytest.raises(ConfigError, match=r"^server\.default_model: "):
        with_discovered(config, {"other": "x"})
    with pytest.raises(ConfigError, match=r"^server\.default_model: "):
        validate_names(config, [])


def test_configured_models_leave_nothing_to_discover() -> None:
    config = parse(TWO)
    assert with_discovered(config, {"demo": "demo"}) == config
