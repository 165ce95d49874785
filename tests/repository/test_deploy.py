"""The service files in deploy/: every key, and that what they run starts, serves and stops."""

import configparser
import os
import plistlib
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from supervisor.conditions import FILES
from supervisor.config.schema import MemorySettings
from supervisor.scheduler.model import Limits
from supervisor.wire.stream import BACKLOG

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PLIST = DEPLOY / "dev.bulkhead.server.plist"
UNIT = DEPLOY / "bulkhead.service"
README = DEPLOY / "README.md"
BULKHEAD = Path(sys.executable).with_name("bulkhead")

LARGEST_MODEL_GB = 128
GATEWAY_STOP = 10
STOP_SECONDS = (
    MemorySettings().drain_seconds
    + Limits().stop
    + Limits().stop_per_gigabyte * LARGEST_MODEL_GB
    + GATEWAY_STOP
)
"""The longest stop that the service managers must allow."""

START_DEADLINE = 20.0
STOP_DEADLINE = 20.0


def plist(home: Path | str = "@HOME@") -> dict[str, Any]:
    text = PLIST.read_text().replace("@BULKHEAD@", str(BULKHEAD)).replace("@HOME@", str(home))
    loaded = plistlib.loads(text.encode())
    assert isinstance(loaded, dict)
    return loaded


def unit_text() -> str:
    return UNIT.read_text().replace("@BULKHEAD@", str(BULKHEAD))


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit_text())
    return parser


# ── launchd ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Label", "dev.bulkhead.server"),
        ("ProcessType", "Interactive"),
        ("KeepAlive", True),
        ("RunAtLoad", True),
        ("ThrottleInterval", 10),
        ("SoftResourceLimits", {"NumberOfFiles": 8192}),
        ("Umask", 0o077),
        ("EnvironmentVariables", {"HOME": "@HOME@"}),
    ],
)
def test_plist_key(key: str, value: object) -> None:
    found = plist()[key]
    assert found == value
    assert type(found) is type(value)  # <integer>1</integer> is no <true/>


def test_plist_has_no_other_keys() -> None:
    """Above all no AbandonProcessGroup, and no HardResourceLimits below what we ask for."""
    assert set(plist()) == {
        "Label",
        "ProgramArguments",
        "EnvironmentVariables",
        "WorkingDirectory",
        "RunAtLoad",
        "KeepAlive",
        "ThrottleInterval",
        "ProcessType",
        "ExitTimeOut",
        "SoftResourceLimits",
        "Umask",
        "StandardOutPath",
        "StandardErrorPath",
    }


def test_plist_allows_the_longest_stop() -> None:
    assert isinstance(plist()["ExitTimeOut"], int)
    assert plist()["ExitTimeOut"] >= STOP_SECONDS


def test_plist_paths_are_absolute_and_need_no_folder_that_may_be_missing() -> None:
    home = "/Users/somebody"
    job = plist(home)
    assert os.path.isabs(job["ProgramArguments"][0])
    assert job["WorkingDirectory"] == home
    for key in ("StandardOutPath", "StandardErrorPath"):
        assert Path(job[key]).parent == Path(home, "Library/Logs")
    assert not any("~" in value or "$" in value for value in _strings(job))


def test_plist_becomes_a_daemon_by_adding_a_user_name() -> None:
    """What `plutil -insert UserName` does; HOME is there already."""
    job = {**plist("/Users/somebody"), "UserName": "somebody"}
    assert plistlib.loads(plistlib.dumps(job)) == job
    assert "plutil -insert UserName" in README.read_text()


# ── systemd ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("Service", "Type", "exec"),
        ("Service", "Restart", "always"),
        ("Service", "KillMode", "mixed"),
        ("Service", "OOMPolicy", "continue"),
        ("Service", "LimitNOFILE", str(FILES)),
        ("Service", "UMask", "0077"),
        ("Service", "NoNewPrivileges", "yes"),
        ("Service", "WorkingDirectory", "%h"),
        ("Install", "WantedBy", "default.target"),
    ],
)
def test_unit_key(section: str, key: str, value: str) -> None:
    assert unit()[section][key] == value


def test_unit_allows_the_longest_stop() -> None:
    assert int(unit()["Service"]["TimeoutStopSec"]) >= STOP_SECONDS


def test_unit_waits_between_restarts_without_ever_giving_up() -> None:
    """systemd's own limit is 5 starts in 10 seconds."""
    assert int(unit()["Service"]["RestartSec"]) >= 3


def test_unit_asks_for_nothing_that_a_user_manager_cannot_do() -> None:
    privileged = {"User", "Group", "PrivateTmp", "ProtectHome", "ProtectSystem", "DynamicUser"}
    assert not privileged & set(unit()["Service"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    file = tmp_path / UNIT.name
    file.write_text(unit_text())
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(file)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=20,
    )
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, []), done.stderr


# ── both ─────────────────────────────────────────────────────────────────────────────────────────


def test_no_secrets() -> None:
    secret = re.compile(r"api.?key|token|secret|password|passwd|credential|bearer", re.IGNORECASE)
    assert not secret.search(PLIST.read_text())
    assert not secret.search(UNIT.read_text())


def test_every_placeholder_is_explained_and_filled_in() -> None:
    guide = README.read_text()
    used = set(re.findall(r"@[A-Z]+@", PLIST.read_text() + UNIT.read_text()))
    assert used == {"@BULKHEAD@", "@HOME@"}
    for placeholder in used:
        assert f"| `{placeholder}` |" in guide
        assert f"s|{placeholder}|" in guide


def test_readme_says_what_the_files_say() -> None:
    """The last table repeats values; they must not part ways."""
    guide, job, service = README.read_text(), plist(), unit()["Service"]
    assert f"`ExitTimeOut` {job['ExitTimeOut']}" in guide
    assert f"`ThrottleInterval` {job['ThrottleInterval']}" in guide
    assert f"NumberOfFiles {job['SoftResourceLimits']['NumberOfFiles']}" in guide
    for key in ("Restart", "RestartSec", "TimeoutStopSec", "KillMode", "OOMPolicy", "UMask"):
        assert f"`{key}={service[key]}`" in guide
    assert f"`memory.drain_seconds` ({MemorySettings().drain_seconds:g})" in guide
    assert f"kern.ipc.somaxconn={BACKLOG}" in guide
    for embedded in re.findall(r"```xml\n(.*?)```", guide, re.DOTALL):
        assert plistlib.loads(embedded.encode())["ProgramArguments"][2].endswith(f"={BACKLOG}")


def test_the_plist_s_command_serves_and_stops(tmp_path: Path) -> None:
    (tmp_path / "Library/Logs").mkdir(parents=True)
    job = plist(tmp_path)
    _serve_and_stop(
        job["ProgramArguments"],
        environ=job["EnvironmentVariables"],
        cwd=job["WorkingDirectory"],
        umask=job["Umask"],
    )
    _assert_private(tmp_path / ".bulkhead")


def test_the_unit_s_command_serves_and_stops(tmp_path: Path) -> None:
    service = unit()["Service"]
    _serve_and_stop(
        shlex.split(service["ExecStart"]),
        environ={"HOME": str(tmp_path)},
        cwd=service["WorkingDirectory"].replace("%h", str(tmp_path)),
        umask=int(service["UMask"], 8),
    )
    _assert_private(tmp_path / ".bulkhead")


def _serve_and_stop(
    command: list[str], *, environ: Mapping[str, str], cwd: str, umask: int
) -> None:
    """Run `command` as a service manager does, on a free port, until it is ready; then SIGTERM."""
    with subprocess.Popen(
        [*command, "--port", "0"],
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **environ},
        cwd=cwd,
        umask=umask,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            readable, _, _ = select.select([server.stdout], [], [], START_DEADLINE)
            line = server.stdout.readline() if readable else "(nothing)"
            assert re.fullmatch(r"Bulkhead ready on http://127\.0\.0\.1:[1-9][0-9]*\n", line), line
            server.send_signal(signal.SIGTERM)
            _, stderr = server.communicate(timeout=STOP_DEADLINE)
        finally:
            server.kill()
    assert (server.returncode, stderr) == (0, "")


def _assert_private(state: Path) -> None:
    """The state dir is the default one, below HOME, and nobody else can read what is in it."""
    files = [state, *state.rglob("*")]
    assert len(files) > 3
    assert [file for file in files if file.lstat().st_mode & 0o077] == []


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []
