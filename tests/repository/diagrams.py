"""The diagrams and tables of docs/architecture.md, drawn from the code.

`python -m tests.repository.diagrams` writes them anew, between the comments that name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from supervisor.scheduler.lifecycle import TRANSITIONS
from tests.repository.rooms import ROOMS, ROOT, WINGS, floors, sees

PAGE = ROOT / "docs" / "architecture.md"


def states() -> str:
    """The life of a model's worker, from `supervisor/scheduler/lifecycle.py`."""
    moves: dict[tuple[str, str], list[str]] = {}
    for (state, event), after in TRANSITIONS.items():
        moves.setdefault((state.value, after.value), []).append(event.value)
    lines = [f"    {a} --> {b}: {', '.join(events)}" for (a, b), events in moves.items()]
    return mermaid("stateDiagram-v2", ["    [*] --> cold", *lines])


def rooms() -> str:
    """Every room and the rooms it sees, but for those that it sees through another one as well."""
    lines = []
    for wing in WINGS:
        inside = [room for room in ROOMS if room.startswith(wing)]
        names = [f"        {room}[{room.partition('.')[2]}]" for room in inside]
        lines += [f"    subgraph {wing}", *names, "    end"]
    for room in ROOMS:
        lines += [f"    {room} --> {other}" for other in sorted(directly_seen(room))]
    return mermaid("flowchart TD", lines)


def directly_seen(room: str) -> set[str]:
    """What a room sees, without what the rooms that it sees do see."""
    return sees(room) - set().union(*(all_below(other) for other in sees(room)))


def all_below(room: str) -> set[str]:
    return sees(room).union(*(all_below(other) for other in sees(room)))


def rule() -> str:
    """The same, complete, from the top floor down."""
    rows = [
        f"| {number} | `{room}` | {' '.join(f'`{seen}`' for seen in ROOMS[room].sees)} "
        f"| {' '.join(ROOMS[room].libraries)} |"
        for number, floor in reversed(list(enumerate(floors(), 1)))
        for room in floor
    ]
    return "\n".join(["| floor | room | imports | libraries |", "|---|---|---|---|", *rows])


def mermaid(kind: str, lines: list[str]) -> str:
    return "\n".join(["```mermaid", kind, *lines, "```"])


DRAWN: Mapping[str, Callable[[], str]] = {"states": states, "rooms": rooms, "rule": rule}


def drawn_anew(page: str) -> str:
    """The page with each diagram as the code has it now. Raises ValueError where one is missing."""
    for name, draw in DRAWN.items():
        begin, end = f"<!-- {name}: generated -->\n", f"<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"the page has no place for {name}")
        page = f"{before}{begin}{draw()}\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(drawn_anew(PAGE.read_text()))
