"""The steps of one worker's life: each moves one model on and returns what its process needs.

Nothing here knows of requests. Who is told of a worker's end is decided in `pool`.
"""

from __future__ import annotations

from supervisor.scheduler.effects import Effect, RememberExcess, Spawn, Stop, warning
from supervisor.scheduler.ledger import STRANDED_SECONDS
from supervisor.scheduler.lifecycle import Event, State
from supervisor.scheduler.model import DrainCause, Model, ReleaseRule, Worker
from supervisor.scheduler.state import PoolState

FAULT_SECONDS = 1.0
"""How long a worker that has broken the protocol may take to end by itself."""


class Workers:
    """Spawns, drains, stops and releases workers."""

    def __init__(self, state: PoolState) -> None:
        self._state = state

    def spawn(self, model: Model, now: float) -> list[Effect]:
        """COLD: charge, then start. Raises OverBudget where the charge does not fit."""
        model.move(Event.SPAWN)
        model.generation += 1
        model.worker = worker = Worker(model.name, model.generation, now)
        self._state.ledger.charge(worker.key, model.size)
        worker.deadline = now + self._state.limits.load_stall
        return [Spawn(model.name, model.generation)]

    def become_ready(self, model: Model, memory_bytes: int, context: int, now: float) -> None:
        """LOADING: the worker serves, and is charged what it was measured to need."""
        model.move(Event.READY)
        worker = model.current
        worker.memory_bytes, worker.context = memory_bytes, context
        worker.loaded_at, worker.idle_since, worker.deadline = now, now, None
        model.load_seconds = now - worker.load_started
        self.learn_size(model, memory_bytes)
        self._state.ledger.measure(worker.key, model.size)

    def learn_size(self, model: Model, measured: int) -> None:
        """A load took so much: that is what the next one is charged, with room for requests and
        what workers were seen to outgrow. But only as far as the budget leaves both: a model that
        fits alone serves fewer requests rather than none."""
        room, budget = model.spec.headroom_bytes, self._state.ledger.budget
        if budget is not None:
            left = max(0, budget - measured)
            model.excess_bytes = min(model.excess_bytes, left)
            room = min(room, left - model.excess_bytes)
        model.measured_bytes, model.learned_bytes = measured, measured + room

    def learn_excess(self, model: Model, excess: int) -> list[Effect]:
        """Its worker holds `excess` bytes more than it is charged, and nothing of its own explains
        it: the next one is charged them as well, as far as there is a budget."""
        most, budget = model.excess_bytes + excess, self._state.ledger.budget
        if budget is not None:
            most = max(model.excess_bytes, min(most, budget - (model.size - model.excess_bytes)))
        model.excess_bytes = most
        if model.measured_bytes is not None:
            self.learn_size(model, model.measured_bytes)
        return [RememberExcess(model.name, most)]

    # ── the ways to its end ──────────────────────────────────────────────────────────────────────

    def drain(
        self, model: Model, cause: DrainCause, now: float, *, seconds: float | None = None
    ) -> list[Effect]:
        """READY: admit nobody any more, end with the last lease or after `seconds`, None =
        `limits.drain`."""
        model.move(Event.DRAIN)
        allowed = self._state.limits.drain if seconds is None else seconds
        model.current.drain_cause, model.current.deadline = cause, now + allowed
        if model.waiting and model.queued_since is None:
            model.queued_since = now  # whoever had no place yet queues for the next worker
        return self.stop_if_drained(model, now)

    def hurry_drain(self, model: Model, seconds: float, now: float) -> None:
        """DRAINING: the machine is out of memory, and it has at most so much time left."""
        worker = model.current
        if worker.drain_cause is not DrainCause.SHUTDOWN:
            worker.drain_cause = DrainCause.EMERGENCY
        assert worker.deadline is not None
        worker.deadline = min(worker.deadline, now + seconds)

    def stop_if_drained(self, model: Model, now: float) -> list[Effect]:
        """DRAINING: stop it if nobody is in it any more. Nothing in another state."""
        if model.state is not State.DRAINING or model.granted:
            return []
        model.move(Event.DRAINED)
        model.current.after_exit = Event.RELEASED
        return self.stop(model, now)

    def abort_load(self, model: Model, now: float) -> list[Effect]:
        """LOADING: stop a load that is not at fault."""
        model.move(Event.KILL)
        model.current.after_exit = Event.RELEASED
        return self.stop(model, now)

    def fail_load(self, model: Model, reason: str, now: float) -> list[Effect]:
        """LOADING: its files can't be served, and the model is FAILED once the process is gone."""
        model.move(Event.LOAD_FAILED)
        model.current.stop_reason = reason
        model.current.after_exit = Event.RELEASED_FAILED
        return self.stop(model, now)

    def kill(self, model: Model, reason: str, now: float, *, stacks: bool = False) -> list[Effect]:
        """LOADING, READY or DRAINING: the worker is at fault, and its end counts as a crash."""
        model.move(Event.KILL)
        model.current.stop_reason = reason
        return self.stop(model, now, kill=True, stacks=stacks)

    def kill_stalled_load(self, model: Model, now: float) -> list[Effect]:
        """LOADING: the load makes no progress."""
        model.move(Event.LOAD_STALLED)
        seconds = self._state.limits.load_stall
        model.current.stop_reason = f"the load made no progress for {seconds:g} s"
        return self.stop(model, now, kill=True, stacks=True)

    def await_exit(self, model: Model, reason: str, now: float) -> None:
        """LOADING, READY or DRAINING: the process is about to end by itself."""
        model.move(Event.KILL)
        model.current.stop_reason = reason
        model.current.deadline = now + self._grace(model.current)

    def await_moment(self, model: Model, reason: str, now: float) -> None:
        """READY or DRAINING: the worker is at fault. Perhaps because it is dying, and how it ends
        tells more than what it broke on the way: it is killed if it has not ended in a moment."""
        model.move(Event.KILL)
        model.current.stop_reason = reason
        model.current.deadline = now + FAULT_SECONDS

    def stop(
        self, model: Model, now: float, *, kill: bool = False, stacks: bool = False
    ) -> list[Effect]:
        """STOPPING: signal the process, which is killed when it has not ended in time. With
        `stacks` it says before where its threads stand."""
        model.current.deadline = None if kill else now + self._grace(model.current)
        model.current.killed |= kill
        return [Stop(model.name, model.generation, kill, stacks)]

    def _grace(self, worker: Worker) -> float:
        """Seconds that the process may take to end."""
        limits = self._state.limits
        size = max(worker.memory_bytes, self._state.ledger.of(worker.key))
        return limits.stop + limits.stop_per_gigabyte * size / 1e9

    # ── its end ──────────────────────────────────────────────────────────────────────────────────

    def reap(self, model: Model, now: float) -> bool:
        """The process is gone. Whether its memory is back as well; where that has to be seen, the
        charge stays for a while."""
        model.move(Event.EXITED)
        worker, ledger = model.current, self._state.ledger
        if not worker.exit_is_crash:
            model.keep_alive = None
        if self._state.rules.release is ReleaseRule.AT_REAP:
            ledger.release(worker.key)
            return True
        ledger.exited(worker.key, now)
        worker.deadline = now + STRANDED_SECONDS
        return False

    def release(self, model: Model, now: float) -> list[Effect]:
        """RELEASING: nobody has to wait for this incarnation's memory any longer. The model is
        COLD, FAILED, or CRASHED if it keeps dying."""
        worker = model.current
        model.move(worker.after_exit)
        model.worker = None
        if model.state is State.FAILED:
            model.failure = worker.stop_reason
        if model.state is not State.CRASHED:
            return []
        if worker.backoff is None or self._state.shutting_down:
            model.move(Event.BACKOFF_OVER)
            return []
        model.crashed_until = now + worker.backoff
        return [
            warning(
                f"{model.name} keeps dying without a token between: it is not loaded again for "
                f"{worker.backoff:.0f} s"
            )
        ]

    def end_backoff(self, model: Model) -> None:
        """CRASHED: it may be loaded again."""
        model.move(Event.BACKOFF_OVER)
        model.crashed_until = None

    def forget_crashes(self, model: Model) -> None:
        """Its deaths so far count no longer; FAILED or CRASHED: it may be tried again."""
        if model.state is State.FAILED:
            model.move(Event.CHANGED)
            model.failure = ""
        elif model.state is State.CRASHED:
            self.end_backoff(model)
        if model.worker is not None:
            model.worker.backoff = None
        model.breaker.progressed()
        model.forget_excess()
