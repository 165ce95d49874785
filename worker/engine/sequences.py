"""The sequences of one model, prompts and those that decode, in as many batches as suit them.

mlx-lm's own owner of batches holds one of each kind, pads every row to the longest of all, and
decides by itself what a step does. Here the caller does: which prompts go on by how many tokens,
when everybody decodes, who leaves with what is needed to go on later.

A uid names a sequence from `insert` or `resume` until it ends, is removed or is parked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import mlx.core as mx

from worker.engine import groups
from worker.engine.kv_cost import rounded
from worker.engine.mlx_lm_generator import Batches, NextToken, Pending, room, take_out

CLEAR_EVERY = 512
"""Decode steps after which freed buffers are given back, mlx-lm's own figure."""


class Decoded(NamedTuple):
    """One sequence's next token. With a `finish`, "stop" or "length", it has left."""

    uid: int
    token: int
    logprobs: Any
    finish: str | None
    row: Any


class _Prompt:
    """A sequence in its prefill. In no batch until its first tokens are processed."""

    def __init__(self, pending: Pending) -> None:
        self.pending = pending
        self.batch: Any = None

    @property
    def done(self) -> int:
        return len(self.pending.known)


class Sequences:
    """Owns the sequences of one model. All calls on one thread. What mlx-lm or MLX raise leaves an
    undefined state behind."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._grows = batches.grows
        self._uids = count()
        self._prompts: dict[int, _Prompt] = {}
        self._decoding: list[Any] = []
        """Batches, none of them empty."""
        self._steps_done = 0
        self._changed = False
        """Whether a batch has been added, or lost rows, since `_regroup`."""

    # ── who is there ─────────────────────────────────────────────────────────────────────────────

    def insert(
        self,
        tokens: Sequence[int],
        row: Any,
        most: int,
        *,
        stops: Any = None,
        cache: Any = None,
        known: Sequence[int] = (),
    ) -> int:
        """A prompt of `tokens`, at least one, behind those `known` in `cache` (which is taken over:
        nobody else may use it); at most `most` ≥ 1 tokens follow. `stops` are the batches' `stops`
        where nothing is said. Computes nothing."""
        assert tokens
        assert most > 0
        stops = self._batches.stops if stops is None else stops
        return self.resume(Pending(-1, list(tokens), row, most, stops, cache, list(known)))

    def resume(self, parked: Pending) -> int:
        """Go on with a sequence that was parked, under a new uid: as a prompt, of which the tokens
        in its cache are done. Computes nothing; its next `prefill` copies the cache into a batch,
        layer by layer."""
        parked.uid = next(self._uids)
        self._prompts[parked.uid] = _Prompt(parked)
        return parked.uid

    def left(self, uid: int) -> int:
        """Tokens that a prompt still has to process before it decodes: 0 = it may `start`."""
        return len(self._prompts[uid].pending.rest) - 1

    def done(self, uid: int) -> int:
        """Tokens that are in its cache."""
        if uid in self._prompts:
            return self._prompts[uid].done
        batch, at = self._find(uid)
        return len(batch.tokens[at])

    def begun(self, uid: int) -> bool:
        """Whether a prompt is in a batch."""
        return self._prompts[uid].batch is not None

    def lengths(self) -> dict[int, int]:
        """Tokens in the cache of every sequence, by uid."""
        found = {uid: prompt.done for uid, prompt in self._prompts.items()}
        for batch in self._decoding:
            found.update(zip(batch.uids, map(len, batch.tokens), strict=True))
        return found

    def batches(self) -> list[tuple[list[int], list[int], int]]:
        """Of the batches that decode: the uids, the tokens in each one's cache, and how many tokens
        their arrays have room for before they grow."""
        found = []
        for batch in self._decoding:
            lengths = [len(tokens) for tokens in batch.tokens]
            own = room(batch.prompt_cache)
            found.append((batch.uids, lengths, own or rounded(max(lengths) + 1)))
        return found

    def settle(self) -> None:
        """Compute what batches have become by rows that have come or gone, which the next step
        would do. Blocks."""
        for batch in self._decoding:
            batch.settle()

    @property
    def decodes(self) -> int:
        """How many sequences decode."""
        return sum(len(batch.uids) for batch in self._decoding)

    @property
    def nbytes(self) -> int:
        """Of all caches, those in batches and those that wait with theirs."""
        held = [each.prompt_cache for each in (*self._begun(), *self._decoding)]
        held += [each.pending.cache or [] for each in self._prompts.values()]
        return sum(layer.nbytes for cache in held for layer in cache)

    # ── prefill ──────────────────────────────────────────────────────────────────────────────────

    def prefill(self, part: Mapping[int, int]) -> None:
        """Process the next tokens of some prompts, by uid how many: of each at least 1, no more
        than are `left` and than the batches' `step`. Prompts that share a part go through in one
        batch: they have not begun, or are all of one. Blocks until it is computed."""
        prompts = [self._prompts[uid] for uid in part]
        first = prompts[0]
        if first.batch is None:
            batch = self._batches.prompts([prompt.pending for prompt in prompts])
            for prompt in prompts:
                prompt.batch = batch
        assert all(p.batch is first.batch for p in prompts)
        assert len(first.batch.uids) == len(prompts)
        tokens = []
        for prompt, size in zip(prompts, part.values(), strict=True):
            rest = prompt.pending.rest
            assert 0 < size < len(rest)
            assert size <= self._batches.step
            tokens.append(rest[:size])
            del rest[:size]
        # The batch adds them to the pending's `known`, which are its rows' tokens.
        first.batch.prompt(tokens)

    def start(self, uids: Sequence[int]) -> dict[int, NextToken]:
        """Have prompts of which nothing is `left` decode; by uid, their first token, which `decode`
        returns again. Blocks until these are computed.

        Their caches are handed over without a copy where they come from one batch, all of it, and
        no other batch decodes rows of about their length. They must not be longer than that of
        each other (`groups.together`)."""
        found: dict[int, NextToken] = {}
        started = [self._start(batch, rows) for batch, rows in self._by_batch(uids)]
        for batch in started:
            found.update(batch.next_tokens(batch.uids))
        for batch in started:
            self._place(batch)
        return found

    def _by_batch(self, uids: Sequence[int]) -> list[tuple[Any, list[int]]]:
        """(batch of prompts, the uids in it that start)."""
        without = [uid for uid in uids if self._prompts[uid].batch is None]
        for rows in groups.together([self._size(self._prompts[uid].done) for uid in without]):
            chosen = [self._prompts[without[i]] for i in rows]
            batch = self._batches.prompts([prompt.pending for prompt in chosen])
            for prompt in chosen:
                prompt.batch = batch
        found: dict[int, tuple[Any, list[int]]] = {}
        for uid in uids:
            batch = self._prompts[uid].batch
            found.setdefault(id(batch), (batch, []))[1].append(uid)
        return list(found.values())

    def _start(self, batch: Any, uids: list[int]) -> Any:
        whole = batch.split([batch.uids.index(uid) for uid in uids])
        last = [self._prompts.pop(uid).pending.rest[-1] for uid in whole.uids]
        return self._batches.decoding(whole, last)

    def _begun(self) -> Iterator[Any]:
        """The batches of prompts."""
        batches = {id(each.batch): each.batch for each in self._prompts.values() if each.batch}
        return iter(batches.values())

    # ── decode ───────────────────────────────────────────────────────────────────────────────────

    def decode(self) -> list[Decoded]:
        """One step of every sequence that decodes: their next tokens. Blocks until these are
        computed, while the tokens behind them are under way."""
        self._regroup()
        made: list[Decoded] = []
        for batch in list(self._decoding):
            rows, before = batch.samplers, len(batch.uids)
            made += [
                Decoded(each.uid, each.token, each.logprobs, each.finish_reason, row)
                for each, row in zip(batch.next(), rows, strict=True)
            ]
            if len(batch.uids) < before:
                self._lost(batch)
        self._steps_done += 1
        if self._steps_done % CLEAR_EVERY == 0:
            mx.clear_cache()
        return made

    def _size(self, length: int) -> int:
        """What groups know a row by; where caches do not grow with them, all are equal."""
        return length if self._grows else 0

    def _span(self, batch: Any) -> groups.Span:
        return groups.span([self._size(len(tokens)) for tokens in batch.tokens])

    def _place(self, batch: Any) -> None:
        """Put a batch among those that decode."""
        at = groups.join(self._span(batch), [self._span(each) for each in self._decoding])
        if at is None:
            self._decoding.append(batch)
        else:
            self._decoding[at].extend(batch)
        self._changed = True

    def _regroup(self) -> None:
        """Part rows that have come to differ too much, and join batches that no longer do."""
        if not self._grows or not self._due():
            return
        self._changed = False
        for batch in list(self._decoding):
            if leaving := groups.part([len(tokens) for tokens in batch.tokens]):
                self._place(batch.split(leaving))
        while pair := groups.merge([self._span(each) for each in self._decoding]):
            first, second = pair
            self._decoding[first].extend(self._decoding.pop(second))
        self._changed = False

    def _due(self) -> bool:
        """Whether sizes have changed: they do so once in `groups.UNIT` tokens."""
        return self._changed or any(
            max(map(len, batch.tokens)) % groups.UNIT == 1 for batch in self._decoding
        )

    # ── leaving ──────────────────────────────────────────────────────────────────────────────────

    def next_token(self, uid: int) -> NextToken:
        """What the next `decode` will return of a sequence. Blocks until it is computed."""
        batch, _ = self._find(uid)
        found: dict[int, NextToken] = batch.next_tokens([uid])
        return found[uid]

    def park(self, uid: int, *, keep: bool = True) -> Pending:
        """Take a sequence out, with a cache of its own, for `resume`; unless `keep`, without one.
        Of a prompt the rest is kept. Of one that decodes, the token that it has next becomes the
        rest, and no `decode` will return it: the caller has told it, and one that ends there
        (`next_token`) is not parked. Blocks; raises what its row raises when it is told of that
        token, and then nothing has changed."""
        if (prompt := self._prompts.get(uid)) is not None:
            pending = prompt.pending
            if prompt.batch is None:
                del self._prompts[uid]
            else:
                pending.cache = self._take_prompt(uid, keep=keep and prompt.done > 0)
            # The batch goes on with the list that it has.
            pending.known = list(pending.known)
        else:
            batch, at = self._find(uid)
            state = self.next_token(uid)
            assert state.left > 0
            state.row.restart(state.token)
            known = list(batch.tokens[at])
            cache = take_out(batch, at, keep=keep)
            self._lost(batch)
            pending = Pending(uid, [state.token], state.row, state.left, state.stops, cache, known)
        if not keep:
            pending.drop()
        return pending

    def remove(self, uids: Sequence[int]) -> None:
        """Forget sequences and what they hold. What is left of the batches of those that decode is
        computed by `settle`, or the next step."""
        for uid in uids:
            if uid not in self._prompts:
                batch, at = self._find(uid)
                batch.filter([i for i in range(len(batch.uids)) if i != at])
                self._lost(batch)
            elif self._prompts[uid].batch is None:
                del self._prompts[uid]
            else:
                self._take_prompt(uid, keep=False)

    def _take_prompt(self, uid: int, *, keep: bool) -> Any:
        """Take a prompt out of its batch; its cache, if `keep`."""
        batch = self._prompts.pop(uid).batch
        return take_out(batch, batch.uids.index(uid), keep=keep)

    def _lost(self, batch: Any) -> None:
        """A batch that decodes has lost rows."""
        self._changed = True
        if not batch.uids:
            self._decoding = [each for each in self._decoding if each is not batch]

    def _find(self, uid: int) -> tuple[Any, int]:
        """(batch, index) of a sequence that decodes."""
        for batch in self._decoding:
            if uid in batch.uids:
                return batch, batch.uids.index(uid)
        raise KeyError(uid)
