"""How much of which prompt is processed next: prefill in slices of time.

While others decode, a slice of prefill is what each of their next tokens waits for, so it is
bounded in time. How many tokens that is, is learned from the slices before (`Speeds`). Whose turn
it is (`choose`): the oldest prompt's and that with the least left to do, one after the other. So a
short prompt behind a long one starts within two slices, a long one goes on however many short ones
come, and equal ones finish one after another instead of all at the end.

Pure decisions: the caller measures time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from worker.engine import groups

PREFILL_BATCH = 8
"""Prompts prefilled together, mlx-lm's own figure."""
PREFILL_STEP = 512
"""Prompt tokens of one sequence in one slice at most: larger ones gain little."""
ALONE_SECONDS = 0.2
"""A slice's longest time where nobody decodes: it is what a cancel waits for, and the supervisor
when it wants memory back."""
ALONE_TOKENS = 128
"""But so many tokens in any case: a slice of fewer loses much of a large model's speed."""
SLICE_SECONDS = 0.1
"""A slice's longest time while others decode, or two of their steps where these take longer."""
LONGEST_FIRST = 0.1
"""Of the first decode step that is timed no more counts."""
LEAST_SECONDS = 0.02
"""Below, what a slice costs besides its tokens would show."""
STEPS_A_SLICE = 25
"""Of the neighbours' decode steps, a slice's time where that is less: the step that comes with each
slice then takes a 25th of a prompt's speed, and shorter slices would cost it more. Not where more
prompts wait than sequences decode: in so short a slice they would go one by one, a few tokens each,
and each of them waits for all."""
LEAST_TOKENS = 8
"""In a slice: fewer take hardly less time."""
FIRST_TOKENS = 64
"""In a slice beside others before any speed is known."""
_UNIT = 8
_TAIL = 8
"""A rest of less than an eighth of a slice goes with it."""
_SPREAD, _SHORT = 4, 64
"""Prompts that share a slice are padded to the longest: others of more than a quarter of it join,
and whoever has less than `_SHORT` tokens counts as that many."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that waits for its next slice."""

    key: Any
    """Hashable."""
    left: int
    """Tokens to be processed before its first token; 0 = it only has to start."""
    done: int = 0
    """Tokens in its cache."""
    begun: bool = False
    """Whether it is in a batch, which it does not leave before its end."""
    scored: bool = False
    """Whether its tokens are scored: each goes through the vocabulary's weights as well."""


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens that a slice may have, if it is of one prompt and if it is of several."""

    one: int
    several: int


@dataclass(frozen=True, slots=True)
class Slice:
    """What is processed next: the keys of prompts, and how many tokens of each."""

    parts: dict[Any, int]
    of_oldest: bool
    """Whether it is the oldest prompt's."""

    @property
    def padded(self) -> int:
        """Tokens that go through the model."""
        return len(self.parts) * max(self.parts.values())


def choose(
    prompts: Sequence[Prompt], fits: Callable[[Prompt], Room], *, after_oldest: bool
) -> Slice:
    """The next slice. `prompts` are all that may go on, oldest first, at least one. `fits` says
    how many tokens a slice that begins with that prompt may have.
    `after_oldest`: the last slice was the oldest's."""
    nearest = min(prompts, key=lambda prompt: prompt.left)  # of equal ones the oldest
    head = nearest if after_oldest else prompts[0]
    return Slice(_parts(head, prompts, fits(head)), head is prompts[0])


def _parts(head: Prompt, prompts: Sequence[Prompt], most: Room) -> dict[Any, int]:
    room = min(PREFILL_STEP * (1 if head.scored else PREFILL_BATCH), most.several)
    size = _of_one(head.left, min(most.one, PREFILL_STEP))
    parts = {head.key: size}
    if size < head.left or head.begun:
        return parts
    lengths, longest = [_length(head)], size
    for other in prompts:
        if len(parts) == PREFILL_BATCH:
            break
        if other is head or other.begun or other.scored != head.scored:
            continue
        if bool(other.left) != bool(size):
            continue  # to caches with a window, one token beside none would be a decode step
        width = max(longest, other.left)
        alike = max(_SHORT, min(longest, other.left)) * _SPREAD >= max(_SHORT, width)
        fits = width <= PREFILL_STEP and width * (len(parts) + 1) <= room
        if alike and fits and groups.fit([groups.span([*lengths, _length(other)])], groups.JOIN):
            parts[other.key], longest = other.left, width
            lengths.append(_length(other))
    return parts


def _length(prompt: Prompt) -> int:
    return prompt.done + prompt.left + 1


def _of_one(left: int, most: int) -> int:
    """Tokens of a prompt in its next slice of about `most`."""
    whole = left <= PREFILL_STEP and left * _TAIL <= most * (_TAIL + 1)
    return left if whole else min(left, most)


class Speeds:
    """How fast this worker processes prompts, by how far they are: attention takes longer the more
    tokens there are to look at. Unknown places are guessed from known ones, rather too slow."""

    def __init__(self) -> None:
        self._known: dict[tuple[bool, int], float] = {}
        """Tokens a second, by (scored, place)."""

    def learn(self, tokens: int, position: int, seconds: float, *, scored: bool) -> None:
        """So many tokens, padding included, behind `position` others have taken so long."""
        if seconds <= 0 or tokens < LEAST_TOKENS:
            return
        place, speed = (scored, _place(position)), tokens / seconds
        before = self._known.get(place, speed)
        # What is slower counts at once: neighbours wait for it.
        weight = 0.5 if speed < before else 0.2
        self._known[place] = before + weight * (speed - before)

    def tokens(self, seconds: float, position: int, *, scored: bool) -> int:
        """How many may be processed in so long a time."""
        place = _place(position)
        known = {at: speed for (kind, at), speed in self._known.items() if kind == scored}
        above = [at for at in known if at >= place]
        below = [at for at in known if at < place]
        if not known:
            return FIRST_TOKENS
        if above:
            speed = known[min(above)]
        else:
            nearest = max(below)
            speed = known[nearest] / 2 ** min(place - nearest, 3)
        return max(LEAST_TOKENS, int(speed * seconds) // _UNIT * _UNIT)


def _place(position: int) -> int:
    """Places double: 0 is up to 1,023 tokens, 1 up to 2,047."""
    return (position // 1024).bit_length()


class Pace:
    """How long a slice may take for those who decode.

    Prompts share a slice so that none waits long for its first token, and everybody who decodes
    waits for that slice: it takes the time that is their share among all who wait. Else a few
    prompts would hold up a crowd each time."""

    def __init__(self) -> None:
        self.step = 0.0
        """Seconds of one of their steps; 0 = not known."""

    def learn(self, seconds: float) -> None:
        """A decode step, with none of prefill before it, took so long. One that took far longer
        than those before, as on a machine that stood still, counts as twice as long."""
        known = self.step or LONGEST_FIRST / 2
        seconds = min(seconds, 2 * known)
        self.step = seconds if not self.step else known + 0.2 * (seconds - known)

    def of_one(self, prompts: int, decoding: int) -> float:
        """Seconds of a slice of one prompt where so many prompts wait beside so many who decode."""
        if not decoding:
            return ALONE_SECONDS
        if not self.step or prompts > decoding:
            return self._most
        return min(self._most, max(LEAST_SECONDS, STEPS_A_SLICE * self.step))

    def of_several(self, prompts: int, decoding: int) -> float:
        """Seconds of a slice that prompts share."""
        if not decoding:
            return ALONE_SECONDS
        if not self.step:
            return self._most
        share = prompts / (prompts + decoding)
        return max(LEAST_SECONDS, self.step, share * self._most)

    @property
    def _most(self) -> float:
        return max(SLICE_SECONDS, 2 * self.step)
