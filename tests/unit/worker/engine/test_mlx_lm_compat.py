"""worker.engine.mlx_lm_compat: one place for mlx-lm, which is refused where it is not as
expected."""

from __future__ import annotations

import ast
import collections
import dataclasses
import importlib
import importlib.metadata
import inspect
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.helpers.children import ROOT
from tests.helpers.dialects import GLM, wrapper
from tests.helpers.mlx_lm_versions import VERSION, refused
from tests.helpers.serving import DEADLINE
from tests.helpers.tiny_llama import make_model
from worker.demo import MODEL_DIR
from worker.engine import mlx_lm_compat as compat
from worker.engine import mlx_lm_expected as expected
from worker.engine.loading import load

PROMPT = list(b"The quick brown fox")
NAMES = [(module, name) for module, names in expected.NAMES.items() for name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("m") / "m", "llama", vocabulary=300, seed=2)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return compat.load_lazily(str(folder))[0]


@pytest.fixture
def generate() -> Any:
    return importlib.import_module("mlx_lm.generate")


# ── the version ──────────────────────────────────────────────────────────────────────────────────


def test_the_version_that_is_asked_for_is_the_one_that_is_tested() -> None:
    low = ".".join(VERSION.split(".")[:2])
    major, minor = low.split(".")
    assert low == compat.TESTED
    project = (ROOT / "pyproject.toml").read_text()
    assert f'"mlx-lm>={low},<{major}.{int(minor) + 1}"' in project
    assert f"mlx-lm {low}" in (ROOT / "docs/upgrading-mlx-lm.md").read_text()


# ── what is missing ──────────────────────────────────────────────────────────────────────────────


def test_the_installed_mlx_lm_is_as_expected(generate: Any) -> None:
    compat.check()


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_name_that_is_gone_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, module: str, name: str
) -> None:
    owner: Any = importlib.import_module(module)
    *parts, last = name.split(".")
    for part in parts:
        owner = getattr(owner, part)
    monkeypatch.delattr(owner, last)
    assert f"{module}.{name} is missing" in refused(compat.check)
    assert f"{module}.{name} is missing" in refused(lambda: load(folder, 0, lambda *_: None))


@pytest.mark.parametrize("module", expected.NAMES)
def test_a_module_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.delitem(sys.modules, module)
    assert module in refused(compat.check)


@pytest.mark.parametrize("caller", expected.CALLERS)
def test_a_seam_that_is_passed_by_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, caller: str
) -> None:
    kind, name = caller.split(".")

    def other(*arguments: Any, **options: Any) -> None: ...

    vars(other)["__signature__"] = inspect.signature(getattr(getattr(generate, kind), name))
    monkeypatch.setattr(getattr(generate, kind), name, other)
    assert f"{caller} does not use {expected.CALLERS[caller]}" in refused(compat.check)


def without(function: Callable[..., Any], parameter: str) -> Callable[..., Any]:
    """`function`, whose signature has another name in the place of `parameter`."""

    def other(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)

    signature = inspect.signature(function)
    vars(other)["__signature__"] = signature.replace(
        parameters=[
            each.replace(name="renamed") if each.name == parameter else each
            for each in signature.parameters.values()
        ]
    )
    return other


def _replace(
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    name: str,
    change: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    """Change the function `name`, of a class its constructor."""
    owner: Any = importlib.import_module(module)
    *parts, last = name.split(".")
    for part in parts:
        owner = getattr(owner, part)
    if isinstance(getattr(owner, last), type):
        owner, last = getattr(owner, last), "__init__"
    monkeypatch.setattr(owner, last, change(getattr(owner, last)))


@pytest.mark.parametrize(
    ("module", "name", "parameter"),
    [(*called, each) for called, (_, keywords) in expected.CALLS.items() for each in keywords],
)
def test_a_parameter_that_is_gone_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, module: str, name: str, parameter: str
) -> None:
    _replace(monkeypatch, module, name, lambda function: without(function, parameter))
    told = refused(compat.check)
    assert f"{module}.{name} is called in another way" in told
    assert parameter in told


def test_a_parameter_that_only_a_catch_all_takes_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: str, lazy: bool = False, **options: Any) -> None: ...

    monkeypatch.setattr(importlib.import_module("mlx_lm.utils"), "load", load)
    assert "mlx_lm.utils.load has no parameter return_config" in refused(compat.check)


@pytest.mark.parametrize(("module", "name"), expected.CALLS)
def test_a_parameter_that_must_be_given_besides_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    def demanding(function: Callable[..., Any]) -> Callable[..., Any]:
        def other(*arguments: Any, adapter: Any, **options: Any) -> Any: ...

        return other

    _replace(monkeypatch, module, name, demanding)
    told = refused(compat.check)
    assert f"{module}.{name} is called in another way" in told
    assert "adapter" in told


@pytest.mark.parametrize("name", expected.OVERRIDDEN)
def test_a_method_that_is_replaced_and_takes_more_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def other(self: Any, indices: Any = None, drafts: Any = None) -> None: ...

    kind, method = name.split(".")
    monkeypatch.setattr(getattr(generate, kind), method, other)
    assert f"{name} has the parameters (self, indices, drafts)" in refused(compat.check)


@pytest.mark.parametrize("named", [False, True], ids=["dataclass", "named tuple"])
@pytest.mark.parametrize(
    ("kind", "field"), [(kind, each) for kind, fields in expected.FIELDS.items() for each in fields]
)
def test_a_field_that_is_gone_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, kind: str, field: str, named: bool
) -> None:
    owner, _, last = kind.partition(".")
    rest = [each for each in expected.FIELDS[kind] if each != field]
    make: Any = collections.namedtuple if named else dataclasses.make_dataclass
    monkeypatch.setattr(getattr(generate, owner), last, make("Response", rest))
    assert refused(compat.check).count(f"a {kind} has no {field}.") == 1


def test_batches_are_made_in_no_way_that_is_not_checked() -> None:
    """Every call of mlx-lm's two classes, with its keywords, is among `CALLS`."""
    calls = {name: set(keywords) for (_, name), (_, keywords) in expected.CALLS.items() if keywords}
    used: dict[str, set[str]] = {}
    source = (WING / "engine" / "mlx_lm_generator.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "self._prompts",
            "self._decoding",
        ):
            used[ast.unparse(node.func)] = {str(each.arg) for each in node.keywords}
    assert used == {
        "self._prompts": calls["PromptProcessingBatch"],
        "self._decoding": calls["GenerationBatch"],
    }


def test_transformers_that_keeps_its_names_elsewhere_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models", types.ModuleType("other"))
    assert "transformers.models" in refused(compat.check)


@pytest.mark.parametrize("attribute", sorted(expected.WRAPPER))
def test_a_tokenizer_that_keeps_its_parts_elsewhere_is_told(attribute: str) -> None:
    class Other:
        tool_parser = None
        detokenizer = None

    other = Other()
    vars(other).update(dict.fromkeys(expected.WRAPPER - {attribute}))
    assert attribute in refused(lambda: compat.model_tokenizer(other))


def test_a_parser_that_reads_literals_in_another_way_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("elsewhere")
    exec("from ast import literal_eval\ndef parse(x, t): return literal_eval(x)", vars(module))
    monkeypatch.setitem(sys.modules, "elsewhere", module)

    class Other:
        tool_parser = module.parse
        detokenizer = None

        def __init__(self) -> None:
            self._tokenizer = self._chat_template = None

    assert "elsewhere reads" in refused(lambda: compat.model_tokenizer(Other()))


def test_templates_that_read_the_clock_in_another_way_are_only_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module: Any = importlib.import_module("transformers.utils.chat_template_utils")
    monkeypatch.delattr(module, "datetime")
    compat.check()
    assert "clock" in caplog.text
    with compat.clock_at(0.0):
        assert not hasattr(module, "datetime")


def test_each_thread_tells_its_own_time_and_the_real_one_afterwards() -> None:
    """Several tokenizers render at once in the process that counts."""
    module: Any = importlib.import_module("transformers.utils.chat_template_utils")
    both = threading.Barrier(2)
    told: dict[float, float] = {}

    def render(now: float) -> None:
        with compat.clock_at(now):
            both.wait(DEADLINE)
            told[now] = module.datetime.now().timestamp()
            both.wait(DEADLINE)

    threads = [threading.Thread(target=render, args=(now,)) for now in (1e9, 2e9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert told == {1e9: 1e9, 2e9: 2e9}
    with compat.clock_at(1e9):
        with compat.clock_at(2e9):
            assert module.datetime.now().year == 2033
        assert module.datetime.now().year == 2001
    assert module.datetime.now().year > 2024
    assert module.datetime.fromtimestamp(1e9) == datetime.fromtimestamp(1e9)


# ── what is changed ──────────────────────────────────────────────────────────────────────────────


def test_a_parsers_literals_are_bounded_once_its_tokenizer_is_taken() -> None:
    parser = wrapper(GLM).tool_parser
    module: Any = sys.modules[parser.__module__]
    assert type(module.ast).__name__ == "_ShortLiterals"
    assert module.ast.literal_eval("(1, 'x')") == (1, "x")
    with pytest.raises(ValueError):  # noqa: PT011
        module.ast.literal_eval("(" + "1, " * 9000 + ")")


def test_a_smollm3_keeps_what_its_windows_show() -> None:
    """As a llama does; mlx-lm's own loader leaves it with caches that keep everything."""
    load: Any = importlib.import_module("mlx_lm.utils").load
    ours, theirs = compat.load_lazily(str(MODEL_DIR))[0], load(str(MODEL_DIR))[0]
    window = theirs.model.sliding_window
    prompt = mx.array([[8 + i * i % 900 for i in range(2 * window)]])
    caches = compat.make_prompt_cache(ours), compat.make_prompt_cache(theirs)
    for begin, end in [(0, window + 90), (window + 90, 2 * window - 2), *_ones(2 * window - 2)]:
        said, expected = (
            model(prompt[:, begin:end], cache=cache)
            for model, cache in zip((ours, theirs), caches, strict=True)
        )
        assert mx.allclose(said, expected, atol=1e-3)
    kept = [[layer.keys.shape[2] >= 2 * window for layer in cache] for cache in caches]
    assert kept == [[False, True], [True, True]]


def _ones(begin: int) -> list[tuple[int, int]]:
    """Two steps of a token each."""
    return [(begin, begin + 1), (begin + 1, begin + 2)]


# ── the import ───────────────────────────────────────────────────────────────────────────────────

IMPORT = """
import resource
from worker.engine import mlx_lm_compat
original = resource.setrlimit
before = resource.getrlimit(resource.RLIMIT_NOFILE)
mlx_lm_compat.import_mlx_lm()
assert resource.setrlimit is original
import mlx_lm.utils, mlx_lm.generate, transformers, types
# No index of all models' names, which takes as long as a third of the rest.
assert type(transformers.models) is types.ModuleType
assert transformers.AutoTokenizer is transformers.models.auto.tokenization_auto.AutoTokenizer
assert transformers.LlamaTokenizer is transformers.models.llama.LlamaTokenizer
# All are found nevertheless, and modules that nobody has imported.
from transformers.models import LlamaConfig, qwen2
assert LlamaConfig is transformers.LlamaConfig
assert qwen2.Qwen2Config is transformers.Qwen2Config
for name in ("Nonsense", "__nonsense__"):
    assert not hasattr(transformers.models, name)
print(before == resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("limits", [(1024, 3000), (5000, 6000)])
def test_importing_mlx_lm_leaves_the_file_limit_alone(limits: tuple[int, int]) -> None:
    """Below mlx-lm's own (2048, 4096) its import would fail, above it would lower ours."""
    lower = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, {limits})\n"
    done = subprocess.run(
        [sys.executable, "-c", lower + IMPORT],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr


FAILED_IMPORT = """
import importlib.abc, logging, sys

class Fails(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise {error}

sys.meta_path.insert(0, Fails())
from worker.engine.batch import BatchEngine
from worker.engine.thread import Unloadable
from supervisor.wire.frames import Load
engine = BatchEngine()
engine.warm_up()
try:
    engine.load(Load("m", 1, "/nowhere", "/nowhere", 1, 0), lambda *_: None)
except Unloadable as refusal:
    print(refusal)
"""


@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("mlx_lm.models.cache", "AttributeError('no such kernel')"),
        ("mlx_lm.generate", "ModuleNotFoundError(\"No module named 'elsewhere'\")"),
        ("transformers", "ImportError('tokenizers is too old')"),
        ("transformers.models.auto", "RuntimeError('as a whole')"),
    ],
)
def test_an_import_that_fails_refuses_models_and_ends_no_worker(module: str, error: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILED_IMPORT.format(error=error), module],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    kind, _, words = error.partition("(")
    assert done.stdout.startswith(f"mlx-lm {VERSION} can't be used"), done.stderr
    assert f"its import failed with {kind}" in done.stdout
    assert words.strip("()'\"") in done.stdout
    assert "there is no module" not in done.stdout
    assert "Traceback" in done.stderr  # in the log, where it tells what failed


def test_a_limit_on_open_files_that_is_changed_nevertheless_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = iter([(5000, 6000), (2048, 4096)])
    monkeypatch.setattr("resource.getrlimit", lambda kind: next(limits))
    assert compat.import_mlx_lm() == ""
    assert "limit on open files from (5000, 6000) to (2048, 4096)" in caplog.text


# ── one place ────────────────────────────────────────────────────────────────────────────────────

WING = ROOT / "worker"
HERE = [
    WING / "engine" / f"mlx_lm_{name}.py"
    for name in ("compat", "expected", "generator", "tokenizers")
]
THEIRS = expected.WRAPPER | {
    name
    for name in (
        *expected.GENERATION_BATCH,
        *(part for names in expected.NAMES.values() for each in names for part in each.split(".")),
        *("_generation_batch", "_prompt_batch", "_matchers", "_token_context"),
    )
    if name.startswith("_")
}
STANDARD = ("_exit", "_replace")
"""Public, for all their names: `os`' and named tuples'."""


def trespasses(source: str) -> Iterator[str]:
    """What a module of the worker takes from mlx-lm by itself: its modules, and private names of
    anything that is not the module's own."""
    tree = ast.parse(source)
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    } | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("mlx_lm"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlx_lm"):
            yield str(node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value == "mlx_lm" or node.value.startswith("mlx_lm."):
                yield node.value
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            mine = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            private = not node.attr.startswith("__") and node.attr not in STANDARD
            if private and not mine and (node.attr in THEIRS or node.attr not in own):
                yield node.attr


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(WING.rglob("*.py")) if path not in HERE],
    ids=lambda path: str(path.relative_to(WING)),
)
def test_no_other_module_takes_anything_from_mlx_lm_by_itself(path: Path) -> None:
    assert list(trespasses(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import mlx_lm",
        "import mlx_lm.utils as u",
        "def f():\n    from mlx_lm.generate import BatchGenerator",
        "import importlib\nm = importlib.import_module('mlx_lm.generate')",
        "import sys\nm = sys.modules['mlx_lm.utils']",
        "def f(wrapper):\n    return wrapper._tokenizer",
        "class A:\n    def f(self, o):\n        self._tokenizer = o\n        return o._tokenizer",
        "def f(batch):\n    return batch._something_new",
    ],
)
def test_a_trespass_is_found(source: str) -> None:
    assert list(trespasses(source))
