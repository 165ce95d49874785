"""The report of a supervisor that ended without a shutdown, written by the next one."""

from __future__ import annotations

import logging
from datetime import datetime

from supervisor.crashes import store
from supervisor.crashes.diagnosis import MEANINGS, Cause
from supervisor.state.last_run import Run
from supervisor.state.paths import StateDir
from supervisor.wire.crash import CrashReport

log = logging.getLogger("bulkhead.supervisor")

RESTARTED = (
    "The machine was restarted under it: a power failure, a crash of the system, or a shutdown "
    "that did not wait. Nothing is wrong with Bulkhead."
)


def report_run(run: Run, state: StateDir, boot: str) -> None:
    """Log that `run` ended without a shutdown, and keep a report. `boot` is this boot of the
    machine. Blocks on a disk that is synced; a report that can't be written costs a log line."""
    report = compose(run, state, boot)
    log.warning(
        "the last run ended without a shutdown: pid %d, started %s, was last seen %s. %s",
        run.pid,
        _iso(run.started),
        report.time,
        report.advice,
    )
    try:
        store.Store(state.crashes).write(report)
    except OSError as error:
        log.error("the crash report %s is lost: %s", report.id, error.strerror)


def compose(run: Run, state: StateDir, boot: str) -> CrashReport:
    """What is known of it: its files have the rest."""
    meaning = MEANINGS[Cause.NO_SHUTDOWN]
    restarted = bool(run.boot and boot and run.boot != boot)
    return CrashReport(
        id=store.new_id(run.seen),
        time=_iso(run.seen),
        process="supervisor",
        model=None,
        generation=None,
        how="unknown",
        cause=Cause.NO_SHUTDOWN,
        summary=meaning.summary,
        advice=RESTARTED if restarted else meaning.advice,
        pid=run.pid,
        phase="serving",
        signal=None,
        exit_code=None,
        permanent=meaning.permanent,
        memory=meaning.memory,
        blame=meaning.blame,
        put_down=None,
        line=None,
        exception=None,
        uptime_seconds=round(max(0.0, run.seen - run.started), 3),
        in_flight=0,
        requests=[],
        recovery=[],
        models=[],
        machine=[],
        footprint=[],
        oom_record=None,
        ips=None,
        stderr_file=str(state.logs / "supervisor.log"),
        stderr="",
        stacks="",
        versions={"bulkhead": run.version},
    )


def _iso(epoch: float) -> str:
    return datetime.fromtimestamp(epoch).astimezone().isoformat("T", "milliseconds")
