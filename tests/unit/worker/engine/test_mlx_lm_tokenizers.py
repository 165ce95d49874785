"""worker.engine.mlx_lm_tokenizers: the tokenizers of workers, without MLX."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.models.catalog import DEMO_DIR
from supervisor.wire.frames import Chat, Generate
from tests.helpers.children import ROOT
from tests.helpers.dialects import TOOLS
from tests.helpers.strict_templates import GEMMA_2, MISTRAL
from tests.helpers.tiny_llama import make_llama
from tests.helpers.tiny_tokenizers import DECODERS, tiny_tokenizer
from worker.counting.tokenizers import PromptTokens
from worker.engine import mlx_lm_tokenizers
from worker.engine.mlx_lm_compat import model_tokenizer
from worker.engine.mlx_lm_expected import TOKENIZER_DEFAULTS
from worker.engine.mlx_lm_tokenizers import TokenizerLoader, import_tokenizers, literals
from worker.engine.thread import Unloadable
from worker.prompt.template import PromptBuilder
from worker.prompt.tokenizer import ModelTokenizer

VERSION = importlib.metadata.version("mlx-lm")
NOW = 1_700_000_000.0
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CHAT = Chat([{"role": "user", "content": "héllo 模 <|end|> world"}])
SYSTEM = Chat([{"role": "system", "content": "be kind"}, *CHAT.messages])
CALLED = Chat(
    [
        *CHAT.messages,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ],
    TOOLS,
)
OPTIONS = Chat(CHAT.messages, template={"enable_thinking": False, "reasoning_effort": "low"})
WITH_TOOLS = (
    "{{ strftime_now('%d %B') }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ m.tool_calls }}{% endfor %}"
    "{% if enable_thinking is false %}{{ reasoning_effort }}{% endif %}"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("counted") / "m")


def configured(folder: Path, files: Path, **settings: Any) -> Path:
    """A copy of the model whose tokenizer_config.json has these settings, None = not any more."""
    shutil.copytree(files, folder)
    path = folder / "tokenizer_config.json"
    changed = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({key: each for key, each in changed.items() if each is not None}))
    return folder


def changed_config(folder: Path, **settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def by_a_worker(folder: Path, chat: Chat) -> int:
    """Tokens of the prompt that a worker makes of it, with the tokenizer that mlx-lm gives it."""
    utils: Any = importlib.import_module("mlx_lm.utils")
    tokenizer = model_tokenizer(utils.load_tokenizer(folder))
    return len(PromptBuilder(tokenizer, 2**20, 2**20).tokens(Generate("r", chat, NOW)))


def counted(folder: Path, chat: Chat) -> int:
    return PromptTokens(TokenizerLoader("").load(folder)).count(chat, NOW, "r")


@pytest.mark.parametrize("chat", [CHAT, SYSTEM, CALLED, OPTIONS], ids=["chat", "system", "called",
    "options"])  # fmt: skip
@pytest.mark.parametrize("template", [WITH_TOOLS, MISTRAL, GEMMA_2], ids=["own", "mistral",
    "gemma"])  # fmt: skip
def test_as_many_as_a_worker_would_accept(
    tmp_path: Path, files: Path, template: str, chat: Chat
) -> None:
    """Also where the messages are put into another shape before the template takes them."""
    folder = configured(tmp_path / "m", files, chat_template=template)
    if chat is CALLED and template is GEMMA_2:
        chat = Chat(CALLED.messages)  # it knows no tools
    assert counted(folder, chat) == by_a_worker(folder, chat)


def test_templates_in_files_of_their_own_count(tmp_path: Path, files: Path) -> None:
    folder = configured(tmp_path / "m", files, chat_template=None)
    (folder / "chat_template.jinja").write_text("just this")
    assert counted(folder, CHAT) == by_a_worker(folder, CHAT) == len("just this")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools | length }}")
    assert counted(folder, CALLED) == by_a_worker(folder, CALLED) == 1
    assert counted(folder, CHAT) == by_a_worker(folder, CHAT) == len("just this")


def test_a_template_that_the_models_module_brings_counts(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in the model's folder names it. Muse Spark's module could bring one, and does not."""
    templates: Any = importlib.import_module("mlx_lm.chat_templates.muse_spark")
    folder = configured(tmp_path / "m", files, chat_template=None)
    changed_config(folder, model_type="muse_spark")

    def render(messages: Any, **options: Any) -> str:
        return "in Python"

    monkeypatch.setattr(templates, "apply_chat_template", render, raising=False)
    assert TokenizerLoader("").load(folder).python_template is render
    assert counted(folder, SYSTEM) == by_a_worker(folder, SYSTEM) == len("in Python")


def test_special_tokenizer_classes_of_mlx_lms_count(tmp_path: Path, files: Path) -> None:
    folder = configured(tmp_path / "m", files, tokenizer_class="NewlineTokenizer")
    chat = Chat([{"role": "user", "content": "a\nb"}])
    # Each line break becomes three letters, the template's own as well.
    assert counted(folder, chat) == by_a_worker(folder, chat) == counted(files, chat) + 2 * 2


# ── ids, without offsets ─────────────────────────────────────────────────────────────────────────


def texts() -> Iterator[str]:
    """With everything that the tiny vocabularies have in them, and much that they lack."""
    pieces = ["a", "b", "é", "e\u0301", "模", "def", " world", "Hello", ".", ",", "'s", "\n",
        "\r\n", "  ", "\t", "😀", "<s>", "</s>", "[INST]", "<n>", "▁", "\0", "\u200d",
        "\ufb01", "\uff21"]  # fmt: skip
    dice = random.Random(1)
    yield from ("", " ", *pieces)
    for length in (2, 3, 5, 30, 300):
        for _ in range(40):
            yield "".join(dice.choices(pieces, k=length))


def same_ids(tokenizer: ModelTokenizer) -> None:
    for text in texts():
        for special in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=special)
            assert ids == tokenizer.wrapper.encode(text, add_special_tokens=special), text
        assert tokenizer.encode(text) == tokenizer.wrapper.encode(text), text


@pytest.mark.parametrize("kind", DECODERS)
def test_ids_are_those_that_transformers_gives(kind: str) -> None:
    same_ids(tiny_tokenizer(kind))


def test_the_demos_ids_are_those_that_transformers_gives() -> None:
    """Its tokenizer has what a published one has: it splits, merges and adds a first token."""
    same_ids(TokenizerLoader("").load(DEMO_DIR))


def test_no_prompt_is_cut_or_filled_up_because_the_file_says_so(
    tmp_path: Path, files: Path
) -> None:
    folder = configured(tmp_path / "m", files)
    path = folder / "tokenizer.json"
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    filled = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>"}  # fmt: skip
    content = {**json.loads(path.read_text()), "truncation": cut, "padding": filled}
    path.write_text(json.dumps(content))
    tokenizer, text = TokenizerLoader("").load(folder), "héllo world"
    # Twice: the first call leaves transformers' own settings behind.
    plain = TokenizerLoader("").load(files).encode(text)
    assert [tokenizer.encode(text), tokenizer.encode(text)] == [plain, plain]


def test_special_tokens_are_split_where_transformers_splits_them(files: Path) -> None:
    tokenizer = TokenizerLoader("").load(files)
    whole = tokenizer.encode("<|end|>")
    tokenizer.inner.split_special_tokens = True
    assert tokenizer.encode("<|end|>") == tokenizer.wrapper.encode("<|end|>") != whole
    tokenizer.inner.split_special_tokens = False
    assert tokenizer.encode("<|end|>") == whole


def test_a_tokenizer_that_changes_the_text_before_keeps_its_way(
    tmp_path: Path, files: Path
) -> None:
    same_ids(
        TokenizerLoader("").load(
            configured(tmp_path / "m", files, tokenizer_class="NewlineTokenizer")
        )
    )


# ── what mlx-lm's modules say ────────────────────────────────────────────────────────────────────


def test_models_are_of_the_modules_that_mlx_lm_has_for_them() -> None:
    utils: Any = importlib.import_module("mlx_lm.utils")
    loader = TokenizerLoader("")
    for kind, module in utils.MODEL_REMAPPING.items():
        assert loader.module({"model_type": kind}) == module
    for (kind, architecture), module in utils.MODEL_ARCHITECTURE_REMAPPING.items():
        for named in ([architecture], architecture):
            assert loader.module({"model_type": kind, "architectures": named}) == module
        assert loader.module({"model_type": kind, "architectures": ["other"]}) == kind
    assert loader.module({"model_type": "llama"}) == "llama"


def test_what_modules_say_of_tokenizers_is_read_as_it_is() -> None:
    models: Any = importlib.import_module("mlx_lm.models")
    found = []
    for path in Path(models.__path__[0]).glob("*.py"):
        source = path.read_text("utf-8")
        if TOKENIZER_DEFAULTS in source:
            found.append(path.stem)
            module = importlib.import_module(f"mlx_lm.models.{path.stem}")
            read = literals(source, TOKENIZER_DEFAULTS)
            assert read == {TOKENIZER_DEFAULTS: getattr(module, TOKENIZER_DEFAULTS)}
    assert found  # or nothing is tested here


def test_what_is_no_literal_is_none() -> None:
    source = "a = 1\nb = f()\nc = d = {'x': (1,)}\n"
    assert literals(source, "a", "b", "d", "e") == {"a": 1, "b": None, "d": {"x": (1,)}}


@pytest.mark.parametrize("kind", ["../../evil", "no_such_model", 7, None, "base.x"])
def test_odd_model_types_say_nothing(tmp_path: Path, files: Path, kind: Any) -> None:
    folder = changed_config(configured(tmp_path / "m", files), model_type=kind)
    assert TokenizerLoader("")._defaults(folder) is None


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


def test_files_that_cannot_be_read_are_named(tmp_path: Path, files: Path) -> None:
    folder = configured(tmp_path / "m", files)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(Unloadable, match=re.escape(f"{folder / 'tokenizer.json'} is not JSON")):
        TokenizerLoader("").load(folder)
    with pytest.raises(Unloadable):
        TokenizerLoader("").load(tmp_path / "nowhere")


def test_an_import_that_failed_refuses_models(files: Path) -> None:
    with pytest.raises(Unloadable, match=f"mlx-lm {VERSION} can't be used.*KeyError: 'x'"):
        TokenizerLoader("KeyError: 'x'").load(files)


@pytest.mark.parametrize("name", ["load", "NewlineTokenizer", "TokenizerWrapper"])
def test_another_mlx_lm_is_refused(files: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    utils: Any = importlib.import_module("mlx_lm.tokenizer_utils")
    monkeypatch.delattr(utils, name)
    with pytest.raises(Unloadable, match=rf"mlx_lm\.tokenizer_utils\.{name}.* is missing"):
        TokenizerLoader("").load(files)


def test_a_load_that_takes_no_defaults_is_refused(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils: Any = importlib.import_module("mlx_lm.tokenizer_utils")
    monkeypatch.setattr(utils, "load", lambda path: None)
    with pytest.raises(Unloadable, match="is called in another way"):
        TokenizerLoader("").load(files)


def test_tables_that_are_no_literals_are_refused(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "utils.py").write_text("MODEL_REMAPPING = make()\n")
    monkeypatch.setattr(mlx_lm_tokenizers, "_folder", lambda _: tmp_path)
    with pytest.raises(Unloadable, match="tells the modules of models in another way"):
        TokenizerLoader("").load(files)


# ── the import ───────────────────────────────────────────────────────────────────────────────────

ALONE = """
import sys
from pathlib import Path
from supervisor.wire.frames import Chat
from tests.helpers.dialects import TOOLS
from worker.counting.tokenizers import PromptTokens
from worker.engine.mlx_lm_tokenizers import TokenizerLoader, import_tokenizers
assert import_tokenizers() == ""
tokens = PromptTokens(TokenizerLoader("").load(Path(sys.argv[1])))
count = tokens.count(Chat([{"role": "user", "content": "hi"}], TOOLS), 1.0, "r")
strangers = ("mlx", "mlx_lm.utils", "mlx_lm.generate", "torch")
print(count, [name for name in strangers if name in sys.modules])
"""


def test_counting_imports_no_mlx() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(DEMO_DIR)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    tools = Chat([{"role": "user", "content": "hi"}], TOOLS)
    assert done.stdout == f"{by_a_worker(DEMO_DIR, tools)} []\n", done.stderr


def test_an_import_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx_lm_tokenizers, "_spec", lambda _: 1 / 0)
    monkeypatch.delitem(sys.modules, "mlx_lm")
    assert import_tokenizers() == "ZeroDivisionError: division by zero"
