"""supervisor.config.rules: single values, and what is said of a wrong one."""

from __future__ import annotations

import pytest

from supervisor.config.rules import parse_size
from tests.helpers.config_files import refusal


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
