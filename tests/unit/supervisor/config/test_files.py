"""supervisor.config.files: where the files are, and what they may hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.config.files import (
    MAX_BYTES,
    read_api_keys,
    resolve_config_path,
    resolve_state_dir,
)
from supervisor.config.flags import Overrides
from supervisor.config.rules import ConfigError
from supervisor.config.schema import Config
from supervisor.config.settings import load
from tests.helpers.config_files import TWO, parse


def test_without_a_file_the_defaults_hold() -> None:
    assert load(None, environ={}, overrides=Overrides()) == Config()


def load_file(path: Path) -> Config:
    return load(path, environ={}, overrides=Overrides())


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


@pytest.mark.parametrize("name", ["/dev/zero", "large.toml"])
def test_a_file_without_an_end_is_not_read_to_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if not path.exists():
        path.write_bytes(b"# " + b"x" * MAX_BYTES)
    with pytest.raises(ConfigError, match=f"^{path}: cannot be read: it has more than 1 MB$"):
        load_file(path)


def test_a_file_may_be_as_large_as_that(tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_bytes(b"#" * (MAX_BYTES - 1) + b"\n")
    load_file(path)
    keys = write_keys(tmp_path / "keys", b"key\n" + b"#" * MAX_BYTES)
    with pytest.raises(ConfigError, match="more than 1 MB"):
        read_api_keys(keys)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
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


# ── API keys ─────────────────────────────────────────────────────────────────────────────────────


def test_api_keys(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfsk-one\r\n\n  # a comment\n\tsk-two  # Anna's laptop \n"
    data += b"sk-one # again\nsk#3 #\n"
    path = write_keys(tmp_path / "keys", data)
    named = {"sk-one": "line-1", "sk-two": "Anna's laptop", "sk#3": "line-6"}
    assert read_api_keys(path) == named
    assert read_api_keys(str(path)) == named


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


def test_a_pipe_in_the_key_files_place_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "keys"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(ConfigError, match="keys: that is not a file"):
        read_api_keys(pipe)
