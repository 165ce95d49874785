"""Structured output: which tokens may come next, so that the answer is valid under a schema.

`Grammars.compile` turns a request into a `Grammar` (the engine's `Constraint`), which follows the
output token by token; `fill` computes the masks of many at once, outside the GIL. A grammar's state
derives from the tokens pushed and from nothing else: pushing them again yields it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

from supervisor.errors import BulkheadError, InvalidValue, UnsupportedValue
from supervisor.wire.frames import Chat, Generate
from worker.grammar_schema import compilable, parsed
from worker.lead import Lead, Marks, Stage
from worker.tools import Forced
from worker.tools.harmony import harmony_rules

log = logging.getLogger("bulkhead.worker")

MAX_CALLS = 16
"""Tool calls in one forced answer: a model that can't stop calling would never end."""
_CACHED = 32
"""Compiled grammars kept. Nearly all clients use a few schemas over and over."""
_STACK = 64 << 20
"""Bytes of stack (address space, not memory) in which llguidance compiles: it recurses."""
_THREADS = 4
_BLANKS = 2
"""Tokens of white space between the end of thinking and the answer."""
_UNFORCED = '%llguidance {"no_forcing": true}\n'
"""Where one text alone can follow, llguidance would demand the tokenizer's own tokens for it, special
ones among them, which it then refuses: "<|im_start|>" in a constant was a dead end."""
_WHY = 300
"""Characters of llguidance's own words in an error message."""


def _limits() -> llguidance.LLParserLimits:
    # verbose_errors would put the output into error messages. Large lexemes computed in advance
    # let a small pattern take seconds.
    return llguidance.LLParserLimits(
        max_items_in_row=1000,
        max_lexer_states=50_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


class Vocabulary:
    """What one model's grammars share. `words` int32 words hold a mask."""

    def __init__(self, wrapper: Any, size: int) -> None:
        """`size` is the width of the logits.

        Takes 1.4 s for 150,000 tokens, outside the GIL. Raises UnsupportedValue.
        """
        self._compiled = _tokenizer(wrapper, size)
        self.eos = sorted(int(token) for token in wrapper.eos_token_ids if 0 <= token < size)
        self.size = size
        self.words = (size + 31) // 32
        self.executor = llguidance.LLExecutor(num_threads=_THREADS)
        tokens = range(min(len(wrapper), size))
        self.ending = self.mask(self.eos)
        self.text = self.mask(tokens) & ~self.ending
        self.blanks = frozenset(
            token
            for token in tokens
            if not (text := self._compiled.decode_bytes([token])).strip(b" \n\r\t")
            and 0 < len(text) <= 4
            and not self._compiled.is_special_token(token)
        )
        self.blank = self.mask(self.blanks)

    def mask(self, tokens: Sequence[int] | frozenset[int]) -> NDArray[np.int32]:
        """A packed mask that allows `tokens`: int32 [words], least significant bit first."""
        bits = np.zeros(self.words * 32, np.uint8)
        bits[list(tokens)] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def matcher(self, grammar: str) -> llguidance.LLMatcher:
        """A matcher, perhaps in an error state."""
        return llguidance.LLMatcher(self._compiled, grammar, log_level=0, limits=_limits())

    def fill(
        self, matchers: Sequence[tuple[llguidance.LLMatcher, int]], masks: NDArray[np.int32]
    ) -> None:
        """Write each matcher's mask to its row of `masks`, int32 [rows, words of llguidance]."""
        if len(matchers) == 1:
            matcher, row = matchers[0]
            llguidance.numpy.fill_next_token_bitmask(matcher, masks, row)
        elif matchers:
            llguidance.numpy.fill_next_token_bitmask_par(self.executor, list(matchers), masks)

    @property
    def width(self) -> int:
        """Words of a mask as llguidance writes it: its vocabulary may be larger than the logits."""
        return (self._compiled.vocab_size + 31) // 32


def _tokenizer(wrapper: Any, size: int) -> llguidance.LLTokenizer:
    tokenizer = getattr(wrapper, "_tokenizer", wrapper)
    why = "it is not of the fast kind (tokenizer.json)"
    # mlx-lm's NewlineTokenizer turns "<n>" into line breaks, behind llguidance's back.
    if hasattr(tokenizer, "backend_tokenizer") and not hasattr(tokenizer, "_postprocess_text"):
        try:
            return llguidance.hf.from_tokenizer(
                tokenizer, n_vocab=max(size, len(wrapper)), eos_token=sorted(wrapper.eos_token_ids)
            )
        except BaseException as error:
            # A panic in Rust is no Exception: a token of 1,000 characters causes one.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            why = type(error).__name__
    raise UnsupportedValue(
        f"Structured output is not available: the model's tokenizer can't be used for it ({why}).",
        param="response_format",
    )


class Grammar:
    """The constraint of one output. `broken` tells why llguidance gave up on it, "" = it has not."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        matcher: llguidance.LLMatcher,
        lead: Lead | None = None,
        *,
        call: int = -1,
        param: str = "response_format",
        discard: Callable[[], None] = lambda: None,
    ) -> None:
        """`lead` follows what comes before the answer, None = nothing does. A token `call` begins a
        call that the grammar does not describe. `param` is what asked for the grammar. `discard`
        is called if `matcher` breaks."""
        self.vocabulary = vocabulary
        self.broken = ""
        self._matcher = matcher
        self._lead = lead
        self._call = call
        self._param = param
        self._discard = discard
        self._alive = True
        self._over = False
        self._free = False
        """Whether the output is a call in the model's own words."""
        self._begun = False
        self._blanks = 0

    @property
    def complete(self) -> bool:
        """Whether the output so far is a whole answer."""
        return self._stage == "answer" and self._bound and self._matcher.is_accepting()

    @property
    def over(self) -> bool:
        """Whether nothing but the end of sequence may follow."""
        return self._over

    @property
    def _stage(self) -> Stage:
        return "answer" if self._lead is None else self._lead.stage

    @property
    def _bound(self) -> bool:
        return self._alive and not self._free

    def fault(self, *, called: bool) -> BulkheadError | None:
        """Why the output is no whole answer, though the model ended it; None = it is one. `called`:
        the transcript found calls in it."""
        if self.complete or (called and self._free):
            return None
        why = "no token of the model's continues it"
        if self.broken:
            why = f"the grammar became too complex ({self.broken})"
        elif self._free:
            why = "the model began a tool call that is none"
        elif self._stage != "answer":
            why = "the model ended before it"
        return UnsupportedValue(
            f"No valid answer came of this grammar: {why}. Simplify the schema, or try again.",
            param=self._param,
        )

    def push(self, token: int) -> None:
        """The output's next token. One that was not allowed, or after the end, ends the answer."""
        if self._over:
            return
        if token in self.vocabulary.eos:
            self._over = True
            return
        lead, stage = self._lead, self._stage
        if lead is None or stage == "answer":
            self._answer(token)
            return
        now = lead.push(token)
        if now == "call":
            self._free = True
        elif now == "answer":
            if stage == "thinking":
                # It may have followed the marker of the beginning in vain.
                self._matcher.reset()
                self._alive = True
                self._blanks = _BLANKS
            if lead.owned:
                self._answer(token)
        elif stage == "undecided":
            # Until the marker is complete the output may be the beginning of either.
            self._consume(token)

    def _answer(self, token: int) -> None:
        if self._free:
            return
        if self._blanks and token in self.vocabulary.blanks:
            self._blanks -= 1
            return
        self._blanks = 0
        if token == self._call and not self._begun:
            self._free = True
            return
        self._begun = True
        self._consume(token)
        self._over = not self._alive

    def _consume(self, token: int) -> None:
        if not self._alive:
            return
        self._alive = (
            0 <= token < self.vocabulary.size and self._matcher.try_consume_tokens([token]) == 1
        )
        if self._matcher.is_error():
            self._break()

    def _break(self) -> None:
        if not self.broken:
            # Only the kind: the full message may hold what the model wrote.
            self.broken = str(self._matcher.stop_reason())
            log.warning("structured output: llguidance gave up on an answer (%s)", self.broken)
            self._discard()
        self._alive = False
        self._over = self._stage == "answer"

    # ── masks, see `fill` ────────────────────────────────────────────────────────────────────────

    def matching(self) -> llguidance.LLMatcher | None:
        """The matcher whose mask counts now, if any does."""
        if self._over or not self._bound or self._stage == "thinking":
            return None
        return self._matcher

    def finish(self, mask: NDArray[np.int32]) -> None:
        """Turn the matcher's mask, int32 [words], in place into that of the whole output."""
        vocabulary, stage = self.vocabulary, self._stage
        if not self._over and (self._free or stage == "thinking"):
            mask[:] = vocabulary.text
            if self._free:
                mask |= vocabulary.ending
            return
        if self.matching() is None:
            mask[:] = 0
        elif self._matcher.is_error():
            mask[:] = 0
            self._break()
        # Of several end tokens llguidance may know fewer.
        mask &= ~vocabulary.ending
        if not self._over:
            if self._blanks:
                mask |= vocabulary.blank
            may_call = self._call >= 0 and self._alive and not self._begun
            others = [self._call] if may_call else []
            if stage == "undecided" and self._lead is not None:
                others.append(self._lead.next)
            if others:
                mask |= vocabulary.mask(others)
        if self._over or self.complete or not mask.any():
            mask |= vocabulary.ending


def fill(constraints: Sequence[Grammar], words: int) -> NDArray[np.int32]:
    """The masks of one model's constraints: int32 [constraints, words], least significant bit first.

    A bit says that the token may come next; those beyond the vocabulary are 0. At least one token
    of every row is allowed. All are computed at the same time, without the GIL.
    """
    if not constraints:
        return np.zeros((0, words), np.int32)
    vocabulary = constraints[0].vocabulary
    masks = np.zeros((len(constraints), max(words, vocabulary.width)), np.int32)
    written = masks[:, : vocabulary.width]
    if not written.flags.c_contiguous:
        written = np.ascontiguousarray(written)
    matchers = [
        (matcher, row)
        for row, constraint in enumerate(constraints)
        if (matcher := constraint.matching()) is not None
    ]
    vocabulary.fill(matchers, written)
    result = np.zeros((len(constraints), words), np.int32)
    for row, constraint in enumerate(constraints):
        known = min(vocabulary.words, words)
        mask = written[row, : vocabulary.words].copy()
        if vocabulary.size % 32:
            mask[-1] &= np.int32((1 << vocabulary.size % 32) - 1)
        constraint.finish(mask)
        result[row, :known] = mask[:known]
    return result


class Grammars:
    """Compiles the grammars of one model. One thread at a time."""

    def __init__(self, wrapper: Any, vocab_size: int) -> None:
        """`wrapper` is mlx-lm's TokenizerWrapper, `vocab_size` the width of the logits."""
        self._wrapper = wrapper
        self._size = vocab_size
        self._vocabulary: Vocabulary | None = None
        self._marks = Marks(wrapper)
        self._cache: OrderedDict[bytes, llguidance.LLMatcher] = OrderedDict()

    def compile(self, request: Generate, prompt: Sequence[int] = ()) -> Grammar | None:
        """The constraint of a request's output, None if it has none.

        `prompt` are the prompt's tokens. The model's first call takes seconds, a schema's first up
        to 0.5 s, others under a millisecond. Raises InvalidValue or UnsupportedValue.
        """
        calling, form = request.calling, self._marks.form
        forced = calling is not None and calling.choice == "required"
        rules, param = "", "tools"
        if request.structure is not None and not forced:
            if calling is not None and form is None:
                raise UnsupportedValue(
                    "`response_format` can't be combined with `tools` for this model: its tool calls "
                    "can't be told from an answer. Leave one of them out, or set `tool_choice`.",
                    param="response_format",
                )
            param = "response_format"
            schema = compilable(parsed(request.structure.schema, param), param)
            rules = f"start: json\njson: %json {schema}\n"
        elif not forced:
            return None
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._wrapper, self._size)
        if rules:
            matcher, key = self._matcher(self._vocabulary, rules, param)
        if forced or (calling is not None and form == "hermes"):
            # The schema was compiled alone, too: what is wrong with it is not the tools' fault.
            calls = self._calls(request, "hermes" if rules else self._marks.forced)
            rules = rules.replace("start: json", "start: json | calls") or "start: calls\n"
            matcher, key = self._matcher(self._vocabulary, rules + calls, "tools")
        lead = self._marks.lead(request, prompt) if isinstance(request.prompt, Chat) else None
        return Grammar(
            self._vocabulary,
            matcher.deep_copy(),
            lead,
            call=self._marks.call
            if calling is not None and form == "marked" and not forced
            else -1,
            param=param,
            discard=lambda: self._drop(key),
        )

    def _drop(self, key: bytes) -> None:
        """Forget a grammar that broke: what its lexer has learned may be what broke it."""
        self._cache.pop(key, None)

    def _matcher(
        self, vocabulary: Vocabulary, rules: str, param: str
    ) -> tuple[llguidance.LLMatcher, bytes]:
        """A matcher to copy, and its place in the cache. `rules` are in llguidance's Lark."""
        key = hashlib.sha256(rules.encode()).digest()
        found = self._cache.get(key)
        if found is None:
            grammar = llguidance.LLMatcher.grammar_from_lark(_UNFORCED + rules)
            found = _deep(lambda: vocabulary.matcher(grammar))
            first = np.zeros((1, vocabulary.width), np.int32)
            if not found.is_error():
                vocabulary.fill([(found, 0)], first)
            if found.is_error():
                raise InvalidValue(
                    f"This schema can't be enforced: {_brief(found.get_error())}.", param=param
                )
            if not first.any():
                raise InvalidValue("No JSON value is valid under this schema.", param=param)
            self._cache[key] = found
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        return found, key

    def _calls(self, request: Generate, form: Forced) -> str:
        """The rules of `calls`, in a form that the model's parser reads."""
        assert request.calling is not None
        tools = list(_callable(request))
        if not tools:
            raise InvalidValue("There is no tool that may be called.", param="tools")
        heads = [
            json.dumps(f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ')
            for name, _ in tools
        ]
        call = " | ".join(f'{head} args{i} "}}"' for i, head in enumerate(heads))
        more = MAX_CALLS - 1 if request.calling.parallel else 0
        if form == "harmony":
            rules, call = harmony_rules([name for name, _ in tools], self._marker)
        elif form == "hermes":
            opening, closing = self._marker("<tool_call>"), self._marker("</tool_call>")
            rules = [
                f'calls: call ("\\n" call){{0,{more}}}' if more else "calls: call",
                f'call: {opening} "\\n" object "\\n" {closing}',
            ]
        else:
            rules = [
                f'calls: "[" object (", " object){{0,{more}}} "]"'
                if more
                else 'calls: "[" object "]"'
            ]
        rules.append(f"object: {call}")
        rules += [f"args{i}: %json {schema}" for i, (_, schema) in enumerate(tools)]
        return "\n".join(rules) + "\n"

    def _marker(self, text: str) -> str:
        token = self._wrapper.get_vocab().get(text)
        return json.dumps(text) if token is None else f"<[{token}]>"


def _callable(request: Generate) -> Iterator[tuple[str, str]]:
    """Name and arguments' schema of each tool that must be called."""
    tools = request.prompt.tools if isinstance(request.prompt, Chat) else []
    names = set(request.calling.names) if request.calling else set()
    for tool in tools:
        function = tool.get("function")
        if not isinstance(function, dict) or function.get("name") not in names:
            continue
        names.remove(function["name"])
        parameters = function.get("parameters")
        if parameters is None:
            # OpenAI's rule: a function without them takes none.
            parameters = {"properties": {}, "additionalProperties": False}
        elif parameters is True:
            parameters = {}
        if not isinstance(parameters, dict) or not _object(parameters.get("type", "object")):
            raise InvalidValue("A function's parameters must be an object's schema.", param="tools")
        # Only strict tools promise their schema; of others all is enforced that can be.
        yield (
            str(function["name"]),
            compilable(
                {**parameters, "type": "object"},
                "tools",
                lenient=function.get("strict") is not True,
            ),
        )


def _object(types: object) -> bool:
    return types == "object" or (isinstance(types, list) and "object" in types)


def _brief(why: str) -> str:
    """llguidance's own words, on one line."""
    if "oneOf constraints" in why:
        return (
            "it can't be shown that the alternatives of a `oneOf` exclude each other; use `anyOf`"
        )
    if "NoExtension" in why:
        return "no JSON value is valid under it"
    line = " ".join(why.replace("<non-verbose/>", "").split())
    return line if len(line) <= _WHY else line[:_WHY] + "…"


def _deep(make: Callable[[], llguidance.LLMatcher]) -> llguidance.LLMatcher:
    """Call `make` on a thread whose stack is deep."""
    made: list[llguidance.LLMatcher] = []
    before = threading.stack_size(_STACK)
    try:
        thread = threading.Thread(target=lambda: made.append(make()), name="grammar", daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return made[0]
