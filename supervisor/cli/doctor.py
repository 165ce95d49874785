"""`bulkhead doctor`: looks at what a server would find here, and says what to do.

A check is a function from `Subject` to findings, listed in `CHECKS`. What would keep a server from
starting is found by the code that the start itself runs, and told in its words. A check changes
nothing but for what it undoes at once: a file that it makes, the lock, the port.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import typer

from supervisor import conditions, startup
from supervisor.cli import output
from supervisor.cli.client import fail
from supervisor.config.files import read_api_keys, resolve_config_path, resolve_state_dir
from supervisor.config.flags import Overrides
from supervisor.config.rules import ConfigError
from supervisor.config.schema import Config
from supervisor.config.settings import load
from supervisor.layout import fold, one_line
from supervisor.machine import readers
from supervisor.models import catalog
from supervisor.models.advice import GET_MLX
from supervisor.models.catalog import Catalog
from supervisor.models.discovery import told_of_others
from supervisor.models.estimate.facts import EstimateError
from supervisor.models.estimate.weights import tensors
from supervisor.models.folders import WEIGHTS
from supervisor.models.jsonfiles import read_object
from supervisor.models.sources import SourceError
from supervisor.state.address import Unreadable, find
from supervisor.state.paths import StateError, examine, holder
from supervisor.units import gigabytes
from supervisor.wire.text import as_utf8, reason

Level = Literal["ok", "note", "warning", "error"]
_COLUMNS = 80


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found. Only an error means that something does not work."""

    name: str
    level: Level
    message: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at. `error` is why there is no configuration, "" = there is one."""

    state_root: Path
    config: Config | None
    catalog: Catalog | None
    error: str = ""


Check = Callable[[Subject], Iterable[Finding]]


def look(
    config_file: Path | None, state_dir: str | Path | None, environ: Mapping[str, str]
) -> Subject:
    """What `bulkhead serve` with these would find. Blocks on the disk. Raises
    ConfigError where there is no place for a state directory."""
    root = resolve_state_dir(state_dir, environ)
    try:
        path = resolve_config_path(config_file, environ, root)
        config = load(path, environ=environ, overrides=Overrides())
        return Subject(root, *catalog.build(config, environ))
    except ConfigError as error:
        return Subject(root, None, None, str(error))


# ── checks ───────────────────────────────────────────────────────────────────────────────────────


def configuration(subject: Subject) -> Iterator[Finding]:
    if subject.error:
        yield Finding("configuration", "error", subject.error, "correct it, or name another file")
    else:
        yield Finding("configuration", "ok", "it can be used")


def state_directory(subject: Subject) -> Iterator[Finding]:
    """It can be written, or made, and no other server has it."""
    root, name = subject.state_root, "state directory"
    try:
        examine(root)
        pid = holder(root)
    except StateError as error:
        yield _refused(name, str(error))
        return
    except OSError as error:
        yield _refused(name, startup.cannot_use(error, root))
        return
    if (wrong := _unwritable(root / "crashes")) is not None:
        yield wrong
    elif pid is not None:
        yield Finding(name, "ok", f"a server (pid {pid}) runs with {root}")
    else:
        made = "can be written" if os.path.exists(root) else "is made by the first `bulkhead serve`"
        yield Finding(name, "ok", f"{root} {made}")


def _unwritable(folder: Path) -> Finding | None:
    """What is wrong with a folder that is there."""
    if not os.path.lexists(folder):
        return None
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        advice = "make it a folder that you may write, free some space, or use another --state-dir"
        message = f"{folder} cannot be written: {reason(error)}"
        return Finding("state directory", "error", message, advice)


def python(_: Subject) -> Iterator[Finding]:
    """It is one for which there is MLX, and has it."""
    yield _condition("Python", conditions.check_python, f"{sys.executable} can run models")


def installation(_: Subject) -> Iterator[Finding]:
    """It is what was installed."""
    yield _condition("installation", conditions.own_files, "it is what was installed")


def open_files(_: Subject) -> Iterator[Finding]:
    """As many as are needed may be open."""
    try:
        allowed = conditions.raise_file_limit()
    except StateError as error:
        yield _refused("open files", str(error))
        return
    if (scarce := startup.few_files(allowed)) is not None:
        yield dataclasses.replace(_refused("open files", scarce), level="warning")
    else:
        yield Finding("open files", "ok", f"{allowed} may be open")


def port(subject: Subject) -> Iterator[Finding]:
    """The address is free, or it is this state directory's own server that listens there."""
    if subject.config is None:
        return
    server = subject.config.server
    where = f"{server.host}:{server.port}"
    if server.port and server.port == _port_of_running(subject.state_root):
        yield Finding("port", "ok", f"the server that runs listens on {where}")
        return

    def listen() -> None:
        conditions.listen(server.host, server.port).close()

    yield _condition("port", listen, f"{where} is free" if server.port else "any free one is taken")


def _port_of_running(root: Path) -> int | None:
    """The port of the server that runs with this state directory, None = there is none."""
    try:
        address = find(root) if holder(root) is not None else None
        return None if address is None else urlsplit(address.url).port
    except (OSError, ValueError, Unreadable):  # which the check of the state directory tells
        return None


def _condition(name: str, check: Callable[[], object], fine: str) -> Finding:
    try:
        check()
    except StateError as error:
        return _refused(name, str(error))
    return Finding(name, "ok", fine)


def _refused(name: str, told: str) -> Finding:
    """What a start would say, which ends with a sentence that advises."""
    message, _, advice = told.rstrip(".").rpartition(". ")
    if not message:
        return Finding(name, "error", *_split(told))
    return Finding(name, "error", message, advice[:1].lower() + advice[1:])


def memory(subject: Subject) -> Iterator[Finding]:
    """How much there is, who limits it, and whether the configured budget is within that."""
    machine = readers.for_platform().machine()
    limit, usable = machine.limit, machine.usable
    if usable is None:
        yield Finding("memory", "note", "how much RAM there is cannot be read")
        return
    told = f"{gigabytes(machine.physical or usable)} RAM"
    if limit is not None:
        told += f", of which {limit.file} allows {gigabytes(limit.limit)}"
    budget = subject.config.memory.budget_bytes(usable) if subject.config is not None else None
    if budget is not None and budget > usable:
        advice = "lower it" if limit is None else "lower it, or raise that limit"
        told += f"; memory.budget is {gigabytes(budget)}"
        yield Finding("memory", "warning", told, f"{advice}: the system would kill what exceeds it")
    else:
        yield Finding("memory", "ok", told)


def api_keys(subject: Subject) -> Iterator[Finding]:
    file = subject.config.server.api_keys_file if subject.config is not None else ""
    if not file:
        return
    try:
        count = len(read_api_keys(file))
        yield Finding("API keys", "ok", f"{file} has {count}")
    except ConfigError as error:
        message, _, advice = str(error).partition("; ")
        yield Finding("API keys", "error", message, advice or f"run `chmod 600 {file}`")


def models(subject: Subject) -> Iterator[Finding]:
    """Every model that is configured or discovered can be loaded, as far as its files tell."""
    served = subject.catalog
    if served is None:
        return
    for name in served.models:
        try:
            place = served.find(name)
        except SourceError as error:
            yield Finding(f"model {name}", "error", *_split(str(error)))
            continue
        if place.doubt:
            level: Level = "warning" if place.is_whole else "error"
            yield Finding(f"model {name}", level, *_split(place.doubt))
        elif broken := _broken_weights(place.folder):
            yield Finding(f"model {name}", "error", broken, "get the file again")
        elif (kind := _unknown_type(place.folder)) is not None:
            yield Finding(f"model {name}", "error", kind, "upgrade mlx-lm, and restart Bulkhead")
        elif place.note and not served.tells_of(name):
            yield Finding(f"model {name}", "warning", *_split(place.note))
        else:
            yield Finding(f"model {name}", "ok", f"{place.folder}")


def _broken_weights(folder: Path) -> str:
    """What the headers of the weights say; "" where they are fine."""
    try:
        for path in sorted(folder.glob(WEIGHTS)):
            for _ in tensors(path):
                pass
    except EstimateError as error:
        return str(error)
    return ""


def _unknown_type(folder: Path) -> str | None:
    """That the installed mlx-lm has no architecture of this model's type. Nothing is imported."""
    spec = importlib.util.find_spec("mlx_lm")
    kind = read_object(folder / "config.json").get("model_type")
    if spec is None or spec.origin is None or not isinstance(kind, str):
        return None
    package = Path(spec.origin).parent
    # Other names of an architecture are in a table of the loader.
    known = (package / "models" / f"{kind}.py").is_file() or f'"{kind}"' in (
        package / "utils.py"
    ).read_text("utf-8")
    return None if known else f"mlx-lm {version('mlx-lm')} does not know the model type {kind!r}"


def passed_over(subject: Subject) -> Iterator[Finding]:
    """What the Hugging Face cache has besides."""
    passed = subject.catalog.passed_over if subject.catalog is not None else ()
    for each in passed:
        if each.is_mlx:
            message, advice = _split(each.reason)
            yield Finding(f"passed over {each.source}", "warning", message, advice)
    if others := [each.source for each in passed if not each.is_mlx]:
        yield Finding("Hugging Face cache", "note", told_of_others(others))


CHECKS: tuple[Check, ...] = (
    configuration,
    state_directory,
    python,
    installation,
    open_files,
    port,
    memory,
    api_keys,
    models,
    passed_over,
)


def _split(text: str) -> tuple[str, str]:
    """What is wrong, and what to do."""
    if GET_MLX in text:
        return text.partition(GET_MLX)[0].rstrip(" :,or"), GET_MLX
    message, _, advice = text.rpartition("; ")
    return (message, advice) if message else (text, "")


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def doctor(
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Configuration file (TOML).")
    ] = None,
    state_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="The state directory [~/.bulkhead].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    try:
        subject = look(config_file, state_dir, os.environ)
    except ConfigError as error:
        fail(str(error), 2)
    findings = diagnose(subject, CHECKS)
    if as_json:
        output.write(json.dumps([dataclasses.asdict(each) for each in findings], indent=2) + "\n")
    else:
        output.write("".join(f"{line}\n" for each in findings for line in lines(each)))
    if any(each.level == "error" for each in findings):
        sys.exit(1)


def diagnose(subject: Subject, checks: Sequence[Check]) -> list[Finding]:
    """What the checks find, in their order. One that fails is a finding as well."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check(subject)
        except Exception as error:  # noqa: BLE001
            # The others are worth having all the more.
            what = f"this check failed: {type(error).__name__}: {error}"
            found.append(Finding(check.__name__, "error", what, "please report it"))
    return [Finding(as_utf8(f.name), f.level, as_utf8(f.message), as_utf8(f.advice)) for f in found]


def lines(finding: Finding) -> list[str]:
    """The finding for people, at 80 columns."""
    indent = " " * 9
    text = one_line(f"{finding.name}: {finding.message}")
    told = fold(text, _COLUMNS, f"{finding.level:<8} ", indent)
    if finding.advice:
        told += fold(one_line(finding.advice), _COLUMNS, f"{indent}→ ", f"{indent}  ")
    return told
