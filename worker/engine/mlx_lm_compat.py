"""All that the worker takes from mlx-lm, and all that it changes in it.

With `mlx_lm_generator` and `mlx_lm_tokenizers`: no other module of the worker imports mlx-lm or
uses its private names; a test walks their syntax trees. `check` is called before a model is loaded
and looks for all that `mlx_lm_expected` lists. Whatever is missing raises `Unloadable`.
`docs/upgrading-mlx-lm.md` says what each check guards, and what none can.

mlx-lm and MLX are not imported with this module, but by `import_mlx_lm`: who needs tokenizers alone
takes them from `mlx_lm_tokenizers`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import gc
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from types import FunctionType, MethodType
from typing import Any

from worker.engine.mlx_lm_expected import (
    CALLERS,
    CALLS,
    FIELDS,
    NAMES,
    OVERRIDDEN,
    WRAPPER,
)
from worker.engine.thread import Unloadable
from worker.output.tools.parser_limits import short_python
from worker.prompt.tokenizer import SPACE, ModelTokenizer, Spelling

log = logging.getLogger("bulkhead.worker")

TESTED = "0.32"
"""The minor version of mlx-lm that pyproject.toml asks for and the tests run with."""


def import_mlx_lm() -> str:
    """Import mlx-lm, which takes more than a second, without its side effect on this process.

    Returns what made it fail, "" if nothing did. The log then has the traceback, and whoever loads
    a model has to refuse it: a worker that ended here would only be started again.

    mlx_lm.utils lowers RLIMIT_NOFILE to (2048, 4096), for good where we aren't root, and fails to
    import where the hard limit is below that.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    original = resource.setrlimit

    def keep(kind: int, limits: tuple[int, int]) -> None:
        if kind != resource.RLIMIT_NOFILE:
            original(kind, limits)

    resource.setrlimit = keep
    try:
        failure = import_failure(_import_all)
    finally:
        resource.setrlimit = original
    if (now := resource.getrlimit(resource.RLIMIT_NOFILE)) != limits:
        # Not refused: a worker needs few files.
        log.warning("mlx-lm changed the limit on open files from %s to %s", limits, now)
    return failure


def _import_all() -> None:
    leave_out_the_index()
    import mlx_lm.generate
    import mlx_lm.models.cache
    import mlx_lm.tokenizer_utils
    import mlx_lm.utils  # noqa: F401


def import_failure(imports: Callable[[], None]) -> str:
    """What makes `imports` fail, of which the log then has the traceback; "" if nothing does."""
    collects = gc.isenabled()
    # All of it stays for good. To walk through it again and again takes a tenth of the import.
    gc.disable()
    try:
        imports()
    except Exception as raised:
        # mlx-lm, transformers and what they import are programs of others: they raise anything.
        log.warning("mlx-lm can't be imported", exc_info=True)
        error: BaseException = raised
        # transformers puts an error of its own around what failed.
        while error.__cause__ is not None:
            error = error.__cause__
        return f"{type(error).__name__}: {error}"
    finally:
        if collects:
            gc.enable()
    return ""


def leave_out_the_index() -> None:
    """Have `transformers.models` be a package like any other, a third of the import's time.

    To be lazy it reads the sources of all models, 3,000 files, for an index of their names that
    `transformers` itself has just made of the same files. Names are looked up in that one, and
    modules (`transformers.models.auto`) are found once they are imported, as in any package.
    """
    if "transformers.models" in sys.modules:
        return
    # As mlx-lm does before it imports it: else it complains that there is no PyTorch.
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    spec = importlib.util.find_spec("transformers.models")
    if spec is not None:
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        setattr(module, "__getattr__", _found_in_transformers)  # noqa: B010


def _found_in_transformers(name: str) -> Any:
    """What `transformers.models` lacks and `transformers` calls so. Raises AttributeError."""
    if name.startswith("__"):  # of those each module has its own or none
        raise AttributeError(f"module 'transformers.models' has no attribute {name!r}")
    return getattr(sys.modules["transformers"], name)


# ── checks ───────────────────────────────────────────────────────────────────────────────────────


def check() -> None:
    """Raises Unloadable if mlx-lm lacks a name, a parameter or a field that is used here."""
    for module, names in NAMES.items():
        for name in names:
            find(module, name)
    if not hasattr(sys.modules.get("transformers.models"), "AutoTokenizer"):
        raise unfit("transformers.models does not find the names of transformers")
    check_calls(CALLS)
    _check_overridden()
    for caller, name in CALLERS.items():
        code = getattr(find("mlx_lm.generate", caller), "__code__", None)
        if code is None or name not in code.co_names:
            raise unfit(f"mlx_lm.generate.{caller} does not use {name}")
    for kind, fields in FIELDS.items():
        if missing := sorted(set(fields) - _fields(find("mlx_lm.generate", kind))):
            raise unfit(f"a {kind} has no {', '.join(missing)}")
    if _template_module() is None:
        # Not refused: only templates that print the time differ, when they are rendered again.
        log.warning(
            "transformers reads the clock in another way: a continued request's date may differ"
        )


def unfit(what: str) -> Unloadable:
    """The refusal, which names the version that is installed."""
    try:
        installed = importlib.metadata.version("mlx-lm")
    except importlib.metadata.PackageNotFoundError:
        installed = "(no version is installed)"
    return Unloadable(
        f"mlx-lm {installed} can't be used by this version of Bulkhead, "
        f"which was tested with {TESTED}: {what}. Install mlx-lm {TESTED}, or a newer Bulkhead."
    )


def check_calls(calls: Mapping[tuple[str, str], tuple[int, tuple[str, ...]]]) -> None:
    """Raises Unloadable if one of mlx-lm's functions can't be called so. In the form of `CALLS`."""
    for (module, name), (positional, keywords) in calls.items():
        signature = inspect.signature(find(module, name))
        try:
            bound = signature.bind(*[None] * positional, **dict.fromkeys(keywords))
        except TypeError as error:
            gone = ", ".join(each for each in keywords if each not in signature.parameters)
            told = f"{error} (it has no {gone})" if gone else error
            raise unfit(f"{module}.{name} is called in another way: {told}") from None
        # What `**kwargs` takes may be passed on to nobody.
        if missing := sorted(set(keywords) - bound.arguments.keys()):
            raise unfit(f"{module}.{name} has no parameter {', '.join(missing)}")


def _check_overridden() -> None:
    for name, parameters in OVERRIDDEN.items():
        kind, method = name.split(".")
        replaced = getattr(find("mlx_lm.generate", kind), method)
        if (now := tuple(inspect.signature(replaced).parameters)) != parameters:
            raise unfit(f"mlx_lm.generate.{name} has the parameters ({', '.join(now)})")


def _fields(kind: Any) -> set[str]:
    """The names of a dataclass's or a named tuple's fields; of anything else, none."""
    if dataclasses.is_dataclass(kind):
        return {field.name for field in dataclasses.fields(kind)}
    return set(getattr(kind, "_fields", ()))


def find(module: str, name: str) -> Any:
    """What an imported module calls so, also `Class.method`. Raises Unloadable."""
    found: Any = sys.modules.get(module)
    if found is None:
        raise unfit(f"there is no module {module}")
    for part in name.split("."):
        if not hasattr(found, part):
            raise unfit(f"{module}.{name} is missing")
        found = getattr(found, part)
    return found


def demand(thing: object, attributes: frozenset[str], kind: str) -> None:
    if missing := sorted(attributes - vars(thing).keys()):
        raise unfit(f"a {kind} has no {', '.join(missing)}")


# ── models and tokenizers ────────────────────────────────────────────────────────────────────────


def load_lazily(folder: str) -> tuple[Any, ModelTokenizer, dict[str, Any]]:
    """(model, tokenizer, config) as mlx-lm loads them, the weights not read yet. Raises
    anything."""
    model, wrapper, config = find("mlx_lm.utils", "load")(folder, lazy=True, return_config=True)
    _bound_windows(model)
    return model, model_tokenizer(wrapper), config


def _bound_windows(model: Any) -> None:
    """Have llama's layers keep what their windows show, in whichever model they are.

    mlx-lm's smollm3 is made of them, but lacks llama's `make_cache`: its windows would be masks
    over everything, and a prompt's time would grow with its square.
    """
    llama = sys.modules.get("mlx_lm.models.llama")
    if llama is None or hasattr(model, "make_cache"):
        return
    if isinstance(getattr(model, "model", None), llama.LlamaModel):
        model.make_cache = MethodType(llama.Model.make_cache, model)


def make_prompt_cache(model: Any) -> Any:
    """An empty KV cache, one entry a layer."""
    return find("mlx_lm.models.cache", "make_prompt_cache")(model)


def lazy_caches(model: Any) -> Any:
    """Caches as `make_prompt_cache` makes them, through which one token has gone, so that their
    arrays have shapes. Computes nothing."""
    array: Any = importlib.import_module("mlx.core").array
    caches = make_prompt_cache(model)
    model(array([[0]]), cache=caches)
    return caches


def model_tokenizer(wrapper: Any) -> ModelTokenizer:
    """The worker's view of mlx-lm's TokenizerWrapper. Raises Unloadable."""
    demand(wrapper, WRAPPER, "TokenizerWrapper")
    utils: Any = importlib.import_module("mlx_lm.tokenizer_utils")
    if wrapper.tool_parser is not None:
        _bind_literals(wrapper.tool_parser)
    # It turns "<n>" into line breaks, behind llguidance's back.
    rewrites_text = isinstance(wrapper._tokenizer, utils.NewlineTokenizer)
    spelling = "other" if rewrites_text else _spelling(wrapper._tokenizer)
    return ModelTokenizer(
        wrapper,
        inner=wrapper._tokenizer,
        python_template=wrapper._chat_template,
        spelling=spelling,
        byte_letters=dict(utils._byte_decoder()) if spelling == "bytes" else {},
        rewrites_text=rewrites_text,
        clock_at=clock_at,
        encode=_encoder(wrapper),
    )


def _encoder(wrapper: Any) -> Callable[..., list[int]]:
    """The wrapper's `encode`, less what only offsets need, which nobody here asks for: a fifth to a
    half of a long prompt's time."""
    inner = wrapper._tokenizer
    backend: Any = getattr(inner, "backend_tokenizer", None)

    def by_theirs(text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [int(id) for id in wrapper.encode(text, add_special_tokens=add_special_tokens)]

    def encode(text: str, *, add_special_tokens: bool = True) -> list[int]:
        if (
            backend.truncation is not None
            or backend.padding is not None
            or backend.encode_special_tokens != inner.split_special_tokens
        ):  # as its file has it: transformers sets it as it wants it, once
            return by_theirs(text, add_special_tokens=add_special_tokens)
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    usual = _encodes_as_usual(inner) and hasattr(backend, "encode_batch_fast")
    return encode if usual else by_theirs


def _encodes_as_usual(inner: Any) -> bool:
    """Whether it has transformers' own way from a text to its fast tokenizer: some classes change
    the text before."""
    utils: Any = importlib.import_module("mlx_lm.tokenizer_utils")
    usual = getattr(utils, "PreTrainedTokenizerFast", None)
    return all(
        hasattr(usual, name)
        and getattr(type(inner), name, None) is getattr(usual, name)
        and name not in vars(inner)
        for name in ("encode", "_encode_plus")
    )


def _spelling(inner: Any) -> Spelling:
    """Told by what transformers decodes with. mlx-lm looks at tokenizer.json, which transformers
    does not always take as it is, and knows fewer kinds."""
    decoder = getattr(getattr(inner, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return "other"
    state = json.loads(decoder.__getstate__())
    parts = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}:
        return "bytes"
    if not kinds & {"Metaspace", "Replace"}:
        return "other"
    return "pieces" if all(map(_is_of_pieces, parts)) else "other"


def _is_of_pieces(part: dict[str, Any]) -> bool:
    match part:
        case {"type": "Metaspace", "replacement": replacement}:
            return bool(replacement == SPACE)
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
            return bool(pattern == SPACE and content == " ")
        case {"type": "Strip", "content": content, "start": start, "stop": stop}:
            # What begins a text, which no answer does.
            return bool(content == " " and start <= 1 and not stop)
    return part["type"] in ("ByteFallback", "Fuse")


class _ShortLiterals:
    """The module `ast`, for literals that are short."""

    def __getattr__(self, name: str) -> Any:
        return getattr(ast, name)

    def literal_eval(self, value: Any) -> Any:
        if isinstance(value, str) and not short_python(value):
            raise ValueError
        return ast.literal_eval(value)


def _bind_literals(parser: Any) -> None:
    """Let the parsers of `mlx_lm.tool_parsers` that are imported, `parser`'s module among them, try
    only short texts as Python literals. To them an error means that a value is no literal, but a
    string."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_lm.tool_parsers.") and getattr(module, "ast", None) is ast:
            module.ast = _ShortLiterals()  # type: ignore[attr-defined]
    # Parsers share functions, each of which has the names of the module that it was written in.
    for each in vars(sys.modules[parser.__module__]).values():
        reads = isinstance(each, FunctionType) and "literal_eval" in each.__code__.co_names
        if reads and not isinstance(each.__globals__.get("ast"), _ShortLiterals):
            raise unfit(f"{each.__module__} reads Python literals in another way")


_NOW: ContextVar[float | None] = ContextVar("now", default=None)
"""The time that templates are told, of each thread for itself."""


@contextlib.contextmanager
def clock_at(now: float) -> Iterator[None]:
    """Make chat templates print the time `now` (seconds since 1970), so that a request renders the
    same prompt again later. In the calling thread alone.

    transformers gives templates a `strftime_now` that reads the clock, and no way to pass another:
    callables among the arguments arrive as text.
    """
    module = _template_module()
    if module is not None and not isinstance(module.datetime, _RequestTime):
        module.datetime = _RequestTime(module.datetime)
    before = _NOW.set(now)
    try:
        yield
    finally:
        _NOW.reset(before)


def _template_module() -> Any:
    """The module of transformers that reads the clock through its global `datetime`; None = none
    does."""
    try:
        module: Any = importlib.import_module("transformers.utils.chat_template_utils")
    except ModuleNotFoundError:
        return None
    return module if hasattr(module, "datetime") else None


@dataclass(frozen=True, slots=True)
class _RequestTime:
    """Stands in for the `datetime` class, whose `now` it changes where `clock_at` says so."""

    theirs: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.theirs, name)

    def now(self, *zone: Any) -> datetime:
        seconds = _NOW.get()
        told = self.theirs.now(*zone) if seconds is None else datetime.fromtimestamp(seconds, *zone)
        assert isinstance(told, datetime)
        return told
