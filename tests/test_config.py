"""supervisor.config: the schema, its rules, where settings come from, and what is refused."""

import json
import string
import tomllib
from datetime import date, datetime, time
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import config as config_module
from supervisor.config import (
    NOT_YET,
    Config,
    ConfigError,
    Memory,
    Model,
    Overrides,
    Recovery,
    Server,
    from_tree,
    load,
    parse_model_flag,
    parse_size,
    read_api_keys,
    resolve_config_path,
    resolve_state_dir,
    validate_names,
    with_discovered,
)

# The documented schema, every key with its default.
SCHEMA = """
[server]
host = "127.0.0.1"
port = 11435
api_keys_file = ""
allowed_hosts = ["localhost", "127.0.0.1", "::1"]
allowed_origins = []
default_model = ""
hold_seconds = 240
max_requests = 0
max_body = "64MB"
metrics = true

[memory]
budget = "auto"
warn = 0.85
high = 0.95
critical = 0.98
keep = 1
max_loaded = 0
cleanup_interval = 600
policy = "gdsf"
min_residency = "auto"
max_wait = "auto"
drain_seconds = 120
load_stall_seconds = 120
load_gate = "shared"
load_gate_timeout = 120
spare = true

[recovery]
mode = "resume"
max_recoveries = 2
stall_seconds = 60
max_restarts = 3
restart_window = 60
backoff_max = 300

[models.coder]
source = "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit"
aliases = ["default", "coding"]
preload = true
pin = false
ttl = 0
memory = "auto"
max_concurrency = 0
max_queue = 1024
context = 0
kv_budget = "auto"
prompt_cache = "auto"
fallback = ""
python = ""
env = {}
trust_remote_code = false
draft = ""
adapter = ""
"""

SUPPORTED = {
    *(f"server.{key}" for key in ("host", "port", "api_keys_file", "allowed_hosts")),
    *(f"server.{key}" for key in ("allowed_origins", "default_model", "hold_seconds", "max_body")),
    "server.max_requests",
    *(f"memory.{key}" for key in Memory.__struct_fields__ if key != "spare"),
    *(f"recovery.{key}" for key in Recovery.__struct_fields__),
    *(f"models.*.{key}" for key in ("source", "aliases", "preload", "max_concurrency")),
    *(f"models.*.{key}" for key in ("max_queue", "context", "env", "pin", "ttl", "memory")),
}
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "server": Server,
    "memory": Memory,
    "recovery": Recovery,
    "models.*": Model,
}


def documented() -> dict[str, object]:
    tree = tomllib.loads(SCHEMA)
    tables = {**tree, "models.*": tree["models"]["coder"]}
    return {f"{name}.{key}": value for name in SECTIONS for key, value in tables[name].items()}


def parse(
    text: str, environ: dict[str, str] | None = None, overrides: Overrides | None = None
) -> Config:
    tree = tomllib.loads(text)
    return from_tree(tree, environ=environ or {}, overrides=overrides or Overrides())


def refusal(text: str, environ: dict[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ, Overrides(**flags))
    return str(caught.value)


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
    value = getattr(Model(source="x") if section == "models.*" else SECTIONS[section](), name)
    if key != "models.*.source":
        assert (list(value) if isinstance(value, tuple) else value) == expected[key]


@pytest.mark.usefixtures("everything_supported")
def test_the_documented_file_loads_as_the_defaults() -> None:
    config = parse(SCHEMA)
    coder = Model(
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
    table = {key: values for key, values in NOT_YET.items() if key != "memory.spare"}
    monkeypatch.setattr(config_module, "NOT_YET", MappingProxyType(table))
    assert parse("[memory]\nspare = true").memory.spare


def test_a_wrong_value_is_told_before_the_missing_support() -> None:
    text = "[recovery]\nstall_seconds = 5\nmax_restarts = true"
    assert refusal(text).startswith("recovery.max_restarts: expected")


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


TWO = '[models.a]\nsource = "x"\naliases = ["one"]\n[models."org/b:8b"]\nsource = "y"\n'


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
    assert with_discovered(config, {"demo": "demo"}).models == {"demo": Model(source="demo")}
    with pytest.raises(ConfigError, match=r"^server\.default_model: "):
        with_discovered(config, {"other": "x"})
    with pytest.raises(ConfigError, match=r"^server\.default_model: "):
        validate_names(config, [])


def test_configured_models_leave_nothing_to_discover() -> None:
    config = parse(TWO)
    assert with_discovered(config, {"demo": "demo"}) == config


# Flags and environment variables


def test_flags_go_before_the_file() -> None:
    flags = Overrides(host="::1", port=0)
    config = parse('[server]\nhost = "localhost"\nport = 1\nhold_seconds = 5', overrides=flags)
    assert config.server == Server(host="::1", port=0, hold_seconds=5)


def test_a_model_flag_replaces_the_source_and_keeps_the_rest() -> None:
    flags = Overrides(models=(("a", "new"), ("c", "demo")))
    config = parse(TWO, overrides=flags)
    assert config.models == {
        "a": Model(source="new", aliases=("one",)),
        "org/b:8b": Model(source="y"),
        "c": Model(source="demo"),
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
    assert parse("", two).memory == Memory(max_loaded=2, cleanup_interval=2)
    assert parse("", dict.fromkeys(VARIABLES, "")).memory == Memory()
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
    st.one_of(VALUES, tables(Model).map(lambda table: {"source": "x"} | table)),
    max_size=2,
)
TREES = st.fixed_dictionaries(
    {},
    optional={
        "server": st.one_of(tables(Server), VALUES),
        "memory": st.one_of(tables(Memory), VALUES),
        "recovery": st.one_of(tables(Recovery), VALUES),
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
