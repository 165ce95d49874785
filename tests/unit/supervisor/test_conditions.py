"""supervisor.conditions: what keeps a server from starting, by the start and by the doctor."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
from pathlib import Path

import psutil
import pytest

from supervisor import conditions
from supervisor.bootstrap import PACKAGES
from supervisor.startup import few_files
from supervisor.state.paths import StateError


def only(monkeypatch: pytest.MonkeyPatch, hard: int) -> None:
    def refuse(_what: int, limits: tuple[int, int]) -> None:
        if limits[0] > hard or limits[1] > hard:
            raise ValueError("not allowed to exceed maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _what: (min(20, hard), hard))
    monkeypatch.setattr(resource, "setrlimit", refuse)


def test_too_few_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 40)
    with pytest.raises(StateError, match="only 40 open files are allowed, and Bulkhead needs 64"):
        conditions.raise_file_limit()
    for allowed, scarce in ((256, "enough for some 85 streams"), (4096, None)):
        only(monkeypatch, allowed)
        assert conditions.raise_file_limit() == allowed
        told = few_files(allowed)
        assert told is None if scarce is None else told is not None and scarce in told


def test_a_python_without_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions.check_python()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StateError, match="lacks mlx and mlx_lm"):
        conditions.check_python()


def test_who_has_the_port_is_named_and_one_that_is_free_is_had() -> None:
    with conditions.listen("localhost", 0) as first:
        port = first.getsockname()[1]
        me = f"{psutil.Process().name()} (pid {os.getpid()})"
        told = f"address already in use by {me}. Stop what"
        with pytest.raises(StateError, match=re.escape(told)):
            conditions.listen("127.0.0.1", port)
    with pytest.raises(StateError, match="cannot listen on no such host:1: "):
        conditions.listen("no such host", 1)


def test_files_that_are_not_what_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert conditions.own_files().damaged == ()
    monkeypatch.setattr(conditions, "installed", lambda: tmp_path)
    for name in PACKAGES:
        (tmp_path / name).mkdir()
    (tmp_path / "worker" / "main.py").write_text("from worker.gone import x\nimport worker.lost\n")
    with pytest.raises(StateError, match="Bulkhead is damaged: ") as told:
        conditions.own_files()
    assert f"{tmp_path}/worker/gone.py is missing, or is not the file" in str(told.value)
    assert "(1 more like it)" in str(told.value)
    (tmp_path / "worker" / "folder.py").mkdir()
    with pytest.raises(StateError, match=r"folder.py cannot be read \(is a directory\)"):
        conditions.own_files()
