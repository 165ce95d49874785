"""Grammars as llguidance compiles them, and one output's place in one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeVar
from weakref import ref

import llguidance

from supervisor.errors import UnsupportedValue
from worker.grammar.vocabulary import Mask, Vocabulary

log = logging.getLogger("bulkhead.worker")

T = TypeVar("T")

_STACK = 64 << 20
"""Bytes of stack (address space, not memory) in which llguidance compiles: it recurses."""
_STATES = 50_000
"""States that a grammar's lexer may remember, about 0.6 KB each. They add up over all outputs."""
_FAR = 50
"""Tokens. If llguidance fails again sooner after a restart, the grammar itself is to blame."""
_STARTING = threading.Lock()
DEAD_END = "no token of the model's continues it"
"""Why an answer is not whole, if nothing else is to blame."""
UNFORCED = '%llguidance {"no_forcing": true}\n'
"""Where one text alone can follow, llguidance would demand the tokenizer's own tokens for it,
special ones among them, which it then refuses: "<|im_start|>" in a constant was a dead end."""


class Limits(NamedTuple):
    """Of what llguidance's parser may hold: items of a row, and of all that one step adds, about
    20,000 a millisecond."""

    row: int
    step: int


OURS = Limits(1_000_000, 10_000_000)
"""Of rules that are made here, from schemas that were bounded before."""
CLIENTS = Limits(1_000, 50_000)
"""Of a client's own rules, of which nobody can tell in how many ways they read a text. A request
whose grammar comes to have too many fails; with twice the row a step was seen to take 0.2 s."""


def limits(parser: Limits = OURS) -> llguidance.LLParserLimits:
    # What can't be enforced has to be refused before the first token. So the limits on rows, which
    # are met later, are out of reach: a grammar of at most 65,525 symbols (llguidance counts in 16
    # bits) has no longer rows, and `choices` refuses those that would take time. The lexer's fuel
    # bounds what a step takes, 0.5 s; merged patterns alone were seen to use it up. verbose_errors
    # would put the output into error messages. Large lexemes computed in advance let a small
    # pattern take seconds.
    return llguidance.LLParserLimits(
        max_items_in_row=parser.row,
        step_max_items=parser.step,
        step_lexer_fuel=1_000_000,
        max_lexer_states=_STATES,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


class Users:
    """Who follows a grammar, or will. They are not kept alive. For any thread."""

    def __init__(self) -> None:
        self._alive: set[ref[object]] = set()
        self.none_left: Callable[[], object] = lambda: None
        """Called when the last one has gone, from wherever that is noticed."""

    def __len__(self) -> int:
        return len(self._alive)

    def add(self, user: object) -> None:
        self._alive.add(ref(user, self._gone))

    def _gone(self, user: ref[object]) -> None:
        self._alive.discard(user)
        if not self._alive:
            self.none_left()


class CompiledGrammar:
    """A grammar that outputs follow, each with a copy of its matcher. `error` is llguidance's own
    reason against it, "" = none."""

    def __init__(self, vocabulary: Vocabulary, rules: str, bounds: Limits = OURS) -> None:
        """`rules` are in llguidance's Lark. Takes up to 0.5 s."""
        self.vocabulary = vocabulary
        self.users = Users()
        self._limits = limits(bounds)
        self._grammar = llguidance.LLMatcher.grammar_from_lark(UNFORCED + rules)
        self._matcher = self._compile()
        self.is_empty = False
        """Whether nothing at all follows the grammar."""
        if not self._matcher.is_error():
            self.is_empty = not vocabulary.next_mask(self._matcher).any()
        self.error: str = self._matcher.get_error()

    def matcher(self) -> llguidance.LLMatcher:
        """A matcher at the beginning. It shares what its lexer has learned with the others."""
        return self._matcher.deep_copy()

    def fresh_matcher(self) -> llguidance.LLMatcher:
        """A matcher whose lexer has learned nothing, as from now on all others."""
        self._matcher = self._compile()
        return self._matcher.deep_copy()

    def _compile(self) -> llguidance.LLMatcher:
        return with_deep_stack(lambda: self.vocabulary.matcher(self._grammar, self._limits))


class GrammarMatcher:
    """One output's place in a grammar.

    `alive`: the tokens so far begin something that the grammar allows. `failure`: why llguidance
    gave up on the output, "" = it has not.
    """

    def __init__(self, compiled: CompiledGrammar) -> None:
        self._compiled = compiled
        compiled.users.add(self)
        self.matcher = compiled.matcher()
        self.failure = ""
        self.alive = True
        self._tokens: list[int] = []
        self._restarted_at = -_FAR

    @property
    def accepting(self) -> bool:
        """Whether the tokens so far are something whole."""
        return self.alive and self.matcher.is_accepting()

    @property
    def over(self) -> bool:
        """Whether nothing can follow: they are something whole that nothing continues."""
        return self.accepting and self.matcher.is_stopped()

    def reset(self) -> None:
        """Begin again."""
        if self._tokens:
            self.matcher.reset()
            self._tokens.clear()
            self._restarted_at = -_FAR
        self.alive = not self.failure

    def push(self, token: int) -> None:
        """The next token. With one that the grammar does not allow here `alive` ends."""
        if not self.alive:
            return
        known = 0 <= token < self._compiled.vocabulary.size
        self.alive = known and self.matcher.try_consume_tokens([token]) == 1
        self._tokens.append(token)
        if known and not self.alive:
            # A lexer that is full takes no token, and tells it only where a mask is computed.
            self._compiled.vocabulary.next_mask(self.matcher)
        if self.matcher.is_error():
            self.alive = self._restart()

    def repair_mask(self, mask: Mask) -> None:
        """Correct the matcher's mask in place, if the matcher failed while it was computed."""
        if self.matcher.is_error():
            self.alive = self._restart()
            mask[:] = self._compiled.vocabulary.next_mask(self.matcher) if self.alive else 0
            if self.alive and self.matcher.is_error():
                self._fail()
                mask[:] = 0

    def _restart(self) -> bool:
        """Go on with a lexer that has learned nothing. What it had learned may be of other outputs,
        or of what came long before."""
        if len(self._tokens) < self._restarted_at + _FAR:
            return self._fail()
        why = self._why()
        self._restarted_at = len(self._tokens)
        self.matcher = self._compiled.fresh_matcher()
        went = self.matcher.try_consume_tokens(self._tokens)
        if self.matcher.is_error():
            return self._fail(why)
        return went == len(self._tokens)

    def _fail(self, why: str = "") -> bool:
        self.failure = why or self._why()
        self.alive = False
        log.warning("structured output: llguidance gave up on an answer (%s)", self.failure)
        return False

    def _why(self) -> str:
        # Only the kind: the full message may hold what the model wrote.
        return str(self.matcher.stop_reason())


def incomplete_answer(failure: str, why: str, param: str) -> UnsupportedValue:
    """The model ended its output, but it is not what it had to be. A matcher's `failure`, if there
    is one, comes before `why`."""
    if failure:
        why = f"the grammar became too complex ({failure})"
    return UnsupportedValue(
        f"No valid answer came of this grammar: {why}. Simplify it, or try again.",
        param=param,
    )


def with_deep_stack(make: Callable[[], T]) -> T:
    """Call `make` on a thread whose stack is deep."""
    made: list[T] = []
    # Of the whole process, for a moment.
    with _STARTING:
        before = threading.stack_size(_STACK)
        try:
            thread = threading.Thread(
                target=lambda: made.append(make()), name="grammar", daemon=True
            )
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return made[0]
