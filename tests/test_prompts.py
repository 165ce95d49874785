"""worker.prompts: from messages and texts to tokens, and refusals that quote nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import ContextLengthExceeded, InvalidValue
from supervisor.wire.frames import Chat, Generate, Text
from tests.tiny import make_llama
from worker.prompts import Prompts

SECRET = "what-the-client-said"
NOON = datetime(2020, 2, 3, 12, 0).timestamp()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("prompts") / "model")


@pytest.fixture
def tokenizer(files: Path, tmp_path: Path) -> Callable[..., Any]:
    """Loads mlx-lm's tokenizer with another chat template, None = without any."""
    from mlx_lm import tokenizer_utils

    def make(*template: str | None) -> Any:
        folder = Path(shutil.copytree(files, tmp_path / "model"))
        if template:
            path = folder / "tokenizer_config.json"
            config = {**json.loads(path.read_text()), "chat_template": template[0]}
            if template[0] is None:
                del config["chat_template"]
            path.write_text(json.dumps(config))
        load: Any = tokenizer_utils.load
        return load(folder)

    return make


def chat(*messages: dict[str, Any], now: float = NOON) -> Generate:
    return Generate("r", Chat(list(messages)), now)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_messages_are_rendered_by_the_template_and_ask_for_an_answer(
    tokenizer: Callable[..., Any],
) -> None:
    wrapper = tokenizer()
    tokens = Prompts(wrapper, 4096).tokens(
        chat({"role": "system", "content": "be kind"}, user("héllo"))
    )
    assert wrapper.decode(tokens) == "<|system|>be kind\n<|user|>héllo\n<|assistant|>"
    assert all(type(token) is int for token in tokens)


def test_a_text_is_tokenized_as_it_is(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer()
    tokens = Prompts(wrapper, 4096).tokens(Generate("r", Text("<|user|> x"), NOON))
    assert wrapper.decode(tokens) == "<|user|> x"


def test_a_template_sees_the_requests_time(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer("{{ strftime_now('%d %b %Y %H') }}")
    assert wrapper.decode(Prompts(wrapper, 4096).tokens(chat(user("x")))) == "03 Feb 2020 12"


# ── length ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("param", ["messages", "prompt"])
def test_a_prompt_must_leave_room_for_a_token(tokenizer: Callable[..., Any], param: str) -> None:
    prompts = Prompts(tokenizer("{{ messages[0].content }}"), 10)

    def of(size: int) -> Generate:
        text = "x" * size
        return chat(user(text)) if param == "messages" else Generate("r", Text(text), NOON)

    assert len(prompts.tokens(of(9))) == 9
    with pytest.raises(ContextLengthExceeded) as caught:
        prompts.tokens(of(10))
    assert caught.value.message == (
        "This model's maximum context length is 10 tokens. However, your "
        f"{param} resulted in 10 tokens. Please reduce the length of the {param}."
    )
    assert (caught.value.param, caught.value.status) == (param, 400)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("param", ["messages", "prompt"])
def test_an_empty_prompt_is_refused(tokenizer: Callable[..., Any], param: str) -> None:
    prompts = Prompts(tokenizer("{{ '' }}"), 10)
    request = chat(user("x")) if param == "messages" else Generate("r", Text(""), NOON)
    with pytest.raises(InvalidValue, match="empty") as caught:
        prompts.tokens(request)
    assert caught.value.param == param


# ── templates ────────────────────────────────────────────────────────────────────────────────────


def test_without_a_template_only_plain_prompts_go(tokenizer: Callable[..., Any]) -> None:
    prompts = Prompts(tokenizer(None), 4096)
    with pytest.raises(InvalidValue, match="/v1/completions") as caught:
        prompts.tokens(chat(user(SECRET)))
    assert caught.value.param == "messages"
    assert SECRET not in caught.value.message
    assert len(prompts.tokens(Generate("r", Text("hello"), NOON))) == 5


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0].content / 2 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[5].content.x.y }}", ""),
        ("{{ messages[0].content | no_such_filter }}", ""),
        ("{% for %}", ""),
    ],
)
def test_what_a_template_rejects_is_the_requests_fault(
    tokenizer: Callable[..., Any], template: str, told: str
) -> None:
    prompts = Prompts(tokenizer(template), 4096)
    with pytest.raises(InvalidValue) as caught:
        prompts.tokens(chat(user(SECRET)))
    assert caught.value.message.startswith("The model's chat template rejected the messages")
    assert told in caught.value.message
    assert SECRET not in caught.value.message
    assert caught.value.param == "messages"


def test_a_rejected_request_spoils_nothing(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer("{{ 1 / (messages | length - 1) }}")
    prompts = Prompts(wrapper, 4096)
    with pytest.raises(InvalidValue):
        prompts.tokens(chat(user("x")))
    assert wrapper.decode(prompts.tokens(chat(user("x"), user("y")))) == "1.0"
