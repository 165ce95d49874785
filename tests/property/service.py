"""Who must be served after a step, and who may be taken to make room.

* nobody waits past the time that is documented: who is first in the queue of models is served as
  soon as what is free, idle, or busy for too long suffices;
* so is the oldest request that can't go on without memory, from the youngest's if need be;
* no ready worker is taken for nobody, within its residency, or while less would do.
"""

from __future__ import annotations

from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.pressure import Level
from tests.property.books import EPSILON, LEAVING, Books, Process
from tests.property.recoveries import check

# ── loads ─────────────────────────────────────────────────────────────────────────────────────────


def check_service(books: Books) -> None:
    """Whoever can be served is served; above all the model that has waited longest."""
    entries = books.pool.models
    exclusive = books.rules.load_gate == "exclusive"
    loads = any(entry.state is State.LOADING for entry in entries.values())
    closed = exclusive and (loads or books.gate_since is not None)
    for name, entry in entries.items():
        books.deaths.compare(name, entry.state, closed=closed, limit=books.models[name].limit)
    if books.shutdowns:
        return
    for name, entry in entries.items():
        if entry.state is not State.READY:
            continue
        probes = books.deaths.records[name].trips > 0
        limit = 1 if probes else books.models[name].limit
        check(not probes or len(entry.granted) <= 1, f"several probe {name} at once")
        waits = books.open_of(name, "waiting")
        full = limit and books.taken(name) >= limit
        # Suspects have the worker to themselves, and the others wait for them.
        tries = bool(books.deaths.suspects(name)) or books.deaths.probation(name)
        tries = tries or bool(books.open_of(name, "returning"))
        check(not waits or full or closed or tries, f"{name} is ready and {waits} wait")
        ttl = books.models[name].ttl
        process = books.processes[name]
        timed = ttl is not None and books.doing in ("tick", f"expire {name}")
        if timed and not books.models[name].pinned and not entry.in_use:
            assert ttl is not None
            check(books.now < process.idle_since + ttl, f"{name} outlives its ttl")
    _check_in_vain(books)
    _check_oldest_need(books)
    _check_ahead_of_need(books)
    if books.level >= Level.HIGH:
        return
    queue = [
        (model.queued_since, name)
        for name, model in books.models.items()
        if model.queued_since is not None and entries[name].state in (State.COLD, *LEAVING)
    ]
    if queue:
        since, name = min(queue)
        if entries[name].state is State.COLD:
            _check_first(books, name, since, closed)
    borrows = any(p.loan.lent or p.loan.least for p in books.borrowing())
    if len(queue) > 1 and not borrows:
        first, second, *_ = sorted(queue)
        _check_second(books, first, second, closed)


def _check_first(books: Books, name: str, since: float, closed: bool) -> None:
    """`name` is first in the queue of models: has everything been done for it?"""
    model = books.models[name]
    # A preload that was there before keeps its turn.
    if any(m.preload_until is not None for m in books.models.values()):
        return
    needs = books.needs()
    if needs and needs[0].loan.since <= since:
        return  # what is free is kept for older ones
    free, places, coming, places_coming = books.room()
    if model.size <= free and places >= 1:
        check(closed, f"{name} fits and is not loaded")
        return
    coming += sum(
        p.loan.waits_for(books.now) for p in books.borrowing() if p.draining_since is None
    )
    if model.size <= coming and places_coming >= 1:
        return
    ready = [p for p in books.borrowing() if p.draining_since is None]
    idle_loans = sum(p.loan.callable(books.now) for p in ready)
    check(
        model.size > coming + idle_loans or places_coming < 1,
        f"{name} waits while {idle_loans} of loans are idle",
    )
    ready = books.takeable()
    idle = [p for p in ready if books.is_idle(p)]
    late = [
        p
        for p in ready
        if p in idle or since + books.patience(model, books.models[p.model]) <= books.now
    ]
    for who, what in ((idle, "idle models are kept"), (late, "busy ones are kept for ever")):
        held = sum(p.charge - p.loan.waits_for(books.now) for p in who)
        held += sum(p.loan.callable(books.now) for p in ready if p not in who)
        enough = model.size <= coming + held
        check(
            not enough or places_coming + len(who) < 1,
            f"{name} waits since {since} while {what}: {[p.model for p in who]}",
        )


def _check_second(
    books: Books, first: tuple[float, str], second: tuple[float, str], closed: bool
) -> None:
    """Room that comes for the first is not the second's, who gets its own; and who fits beside
    may overtake one that can't be served yet and still has patience."""
    (since, name), (_, other) = first, second
    preloads = any(m.preload_until is not None for m in books.models.values())
    both_cold = all(books.pool.models[n].state is State.COLD for n in (name, other))
    if closed or preloads or not both_cold:
        return
    size = books.models[other].size
    free, places, coming, places_coming = books.room()
    if books.models[name].size <= coming and places_coming >= 1:
        coming, places_coming = coming - books.models[name].size, places_coming - 1
        if size <= coming and places_coming >= 1:
            return
        idle = [p for p in books.takeable() if not books.pool.models[p.model].in_use]
        enough = size <= coming + sum(p.charge for p in idle)
        check(
            not enough or places_coming + len(idle) < 1,
            f"{other} waits behind {name} while idle models are kept",
        )
        return
    patience = 1.0 if books.rules.max_wait is None else books.rules.max_wait
    if books.now < since + patience:
        fits = size <= free and places >= 1
        check(not fits, f"{other} fits and waits behind {name}")


# ── loans ─────────────────────────────────────────────────────────────────────────────────────────


def _check_in_vain(books: Books) -> None:
    """Nobody waits for ever for what can never be."""
    for process in books.borrowing():
        loan = process.loan
        reached = process.charge + loan.least <= books.most_for(process.model)
        if process.draining_since is not None or not loan.least or reached:
            process.in_vain_since = None
        elif process.in_vain_since is None:
            process.in_vain_since = books.now
        elif books.level < Level.HIGH:
            check(not books.waits_in_vain(process), f"{process.model} waits for ever")


def _check_oldest_need(books: Books) -> None:
    """Nothing is left untried for the request that can't go on and is the oldest."""
    needs = books.needs()
    if books.level is not Level.NORMAL or not needs or books.budget is None or books.shutdowns:
        return
    process, loan = needs[0], needs[0].loan
    older = [m.queued_since for m in books.models.values() if m.queued_since is not None]
    preloads = [m.preload_until for m in books.models.values() if m.preload_until is not None]
    if preloads or any(since <= loan.since for since in older):
        return
    free = books.budget - books.pool.state.ledger.charged
    states = {name: entry.state for name, entry in books.pool.models.items()}
    leaving = [
        books.pool.state.ledger.of(books.pool.models[name].current.key)
        for name, state in states.items()
        if state in LEAVING
    ]
    name = process.model
    check(loan.least > free, f"{loan.least} of {free} are free and {name} is not lent them")
    if loan.least <= free + books.awaited() + sum(leaving):
        return
    idle_loans = books.idle_loans(name)
    check(
        loan.least > free + books.awaited() + idle_loans,
        f"{name} needs {loan.least} while {idle_loans} of loans are idle",
    )
    others = [p for p in books.borrowing() if p is not process]
    idle = [p for p in books.takeable() if books.is_idle(p)]
    bases = sum(p.charge - p.loan.lent for p in idle if p is not process)
    moving = [p for p in others if not p.loan.least and not p.loan.silent(books.now)]
    if loan.least <= free + books.awaited() + bases + sum(
        p.loan.lent - p.loan.waits_for(books.now) for p in moving
    ):
        # It can be had: nobody idle is left, and nobody younger may be parked.
        check(idle_loans == 0, f"{name} waits and {idle_loans} of loans are idle")
        check(not [p for p in idle if p is not process], f"{name} waits beside idle models")
        for other in others:
            parkable = other.loan.said_parkable and not other.loan.asked
            younger = other.loan.said_youngest > loan.since
            waits = any(each.loan.asked for each in books.borrowing())
            check(
                not (parkable and younger) or waits,
                f"{name} waits and younger {other.model} is not parked",
            )


def _check_ahead_of_need(books: Books) -> None:
    """Where nobody waits for memory, what is free is lent to who will need it soon."""
    waited_for = any(
        model.queued_since is not None or model.preload_until is not None
        for model in books.models.values()
    )
    if books.level >= Level.HIGH or waited_for or books.needs() or books.budget is None:
        return
    free = books.budget - books.pool.state.ledger.charged
    for process in books.borrowing():
        soon = process.loan.most
        check(not soon or free <= 0, f"{free} are free and {process.model} waits for {soon}")


# ── who is taken ──────────────────────────────────────────────────────────────────────────────────


def check_drain(books: Books, name: str, process: Process) -> None:
    """A READY worker was taken: by whom, and was it allowed?"""
    if process.at_fault or books.shutdowns or books.doing in ("unload", f"unload at ready {name}"):
        return
    broken = [p.model for p in books.processes.values() if p.breaks_budget]
    if books.pool.state.ledger.free < 0 and (name in broken or (broken and books.is_idle(process))):
        return  # loans came back short that were to make up for a load
    if books.waits_in_vain(process) and books.level < Level.HIGH:
        if books.models[name].pinned:
            books.models[name].preload_until = books.now + books.limits.preload
        return
    if process.outgrown:
        check(process.is_over, f"{name} is restarted and holds what it may")
        return
    busy = bool(books.open_of(name, "granted"))
    if books.doing == "pressure":
        if books.level is Level.CRITICAL and not books.eased:
            _check_pressed(books, name)
            return
        safe = books.safe_until(process) <= books.now or books.level >= Level.HIGH
        if books.level >= Level.WARN and not busy and safe:
            check(not books.models[name].pinned, f"pinned {name} goes by pressure")
            return
    check(not books.models[name].pinned, f"pinned {name} is evicted by {books.doing}")
    ttl = books.models[name].ttl
    idle_for = books.now - process.idle_since
    if not busy and ttl is not None and idle_for + EPSILON >= ttl:
        return
    if books.doing.startswith("ready") and not busy:
        return  # another was larger than estimated
    check(books.safe_until(process) <= books.now + EPSILON, f"{name} goes within its residency")
    waiters = [
        model
        for other, model in books.models.items()
        if other != name and model.queued_since is not None
    ]
    # Or its queue has begun with this very step.
    fresh = any(
        other != name and model.queued_since is None and books.open_of(other, "waiting")
        for other, model in books.models.items()
    )
    needy = [each for each in books.needs() if each.model != name]
    check(waiters or fresh or needy, f"{name} is evicted for nobody by {books.doing}")
    if not busy and books.budget is not None and not books.rules.max_loaded and not fresh:
        free = books.budget - books.charged() + process.loan.said_idle
        idle = books.idle_loans(name) + books.awaited()
        sizes = [model.size for model in waiters] + [each.loan.least for each in needy]
        dead = books.dead or any(p.phase == "stopped" for p in books.processes.values())
        enough = sizes and all(size <= free + idle - process.charge for size in sizes)
        check(not enough or dead, f"{name} goes while {idle} of loans are idle")
    if busy:
        since = [m.queued_since for m in waiters if m.queued_since is not None]
        patient = [
            at + books.patience(m, books.models[name]) for m, at in zip(waiters, since, strict=True)
        ]
        check(
            (patient and min(patient) <= books.now + EPSILON) or books.rules.max_wait == 0,
            f"busy {name} is drained before anybody waited long enough",
        )


def _check_pressed(books: Books, name: str) -> None:
    """An emergency unloads nobody again for whose unloading nothing was better."""
    model, residency = books.models[name], books.rules.min_residency
    spared = 60.0 if residency is None else residency
    again = model.pressed_at is not None and books.now < model.pressed_at + spared
    check(not again, f"{name} is unloaded in vain again")
    if books.new_batch:
        books.pressed, books.new_batch = [], False
        books.pressed_at, books.late_readings = books.now, 0
    books.pressed.append(name)
    model.pressed_at = books.now
