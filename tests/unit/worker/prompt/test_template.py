"""worker.prompt.template: from messages and texts to tokens, and refusals that quote nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import ContextLengthExceeded, InvalidValue, UnsupportedParameter
from supervisor.wire.frames import Chat, Generate, Text, Tokens
from tests.helpers.strict_templates import MISTRAL
from tests.helpers.tiny_llama import make_llama
from worker.engine.mlx_lm_compat import model_tokenizer
from worker.prompt.template import ECHO_MAX, PromptBuilder

SECRET = "what-the-client-said"
NOON = datetime(2020, 2, 3, 12, 0).timestamp()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("prompts") / "model")


@pytest.fixture
def tokenizer(files: Path, tmp_path: Path) -> Callable[..., Any]:
    """Loads a tokenizer with another chat template, None = without any."""
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
        return model_tokenizer(load(folder))

    return make


def chat(*messages: dict[str, Any], now: float = NOON) -> Generate:
    return Generate("r", Chat(list(messages)), now)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def builder(tokenizer: Any, context: int = 4096) -> PromptBuilder:
    """One for a model that knows as many tokens as its tokenizer."""
    return PromptBuilder(tokenizer, context, max(tokenizer.get_vocab().values()) + 1)


def test_messages_are_rendered_by_the_template_and_ask_for_an_answer(
    tokenizer: Callable[..., Any],
) -> None:
    wrapper = tokenizer()
    tokens = builder(wrapper).tokens(chat({"role": "system", "content": "be kind"}, user("héllo")))
    assert wrapper.decode(tokens) == "<|system|>be kind\n<|user|>héllo\n<|assistant|>"
    assert all(type(token) is int for token in tokens)


def test_a_text_is_tokenized_as_it_is(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer()
    tokens = builder(wrapper).tokens(Generate("r", Text("<|user|> x"), NOON))
    assert wrapper.decode(tokens) == "<|user|> x"


def test_a_template_sees_the_requests_time(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer("{{ strftime_now('%d %b %Y %H') }}")
    assert wrapper.decode(builder(wrapper).tokens(chat(user("x")))) == "03 Feb 2020 12"


# ── length ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("param", ["messages", "prompt"])
def test_a_prompt_must_leave_room_for_a_token(tokenizer: Callable[..., Any], param: str) -> None:
    prompts = builder(tokenizer("{{ messages[0].content }}"), context=10)

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
    prompts = builder(tokenizer("{{ '' }}"), context=10)
    request = chat(user("x")) if param == "messages" else Generate("r", Text(""), NOON)
    with pytest.raises(InvalidValue, match="empty") as caught:
        prompts.tokens(request)
    assert caught.value.param == param


# ── templates ────────────────────────────────────────────────────────────────────────────────────


def test_without_a_template_only_plain_prompts_go(tokenizer: Callable[..., Any]) -> None:
    prompts = builder(tokenizer(None))
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
    ],
)
def test_what_a_template_rejects_is_the_requests_fault(
    tokenizer: Callable[..., Any], template: str, told: str
) -> None:
    prompts = builder(tokenizer(template))
    with pytest.raises(InvalidValue) as caught:
        prompts.tokens(chat(user(SECRET)))
    assert caught.value.message.startswith("The model's chat template rejected the messages")
    assert told in caught.value.message
    assert SECRET not in caught.value.message
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for %}", "line 1: Expected an expression"),
        ("x\n{{ messages[0].content | no_such_filter }}", "line 2: No filter named"),
        ("{% nosuch %}", "line 1: Encountered unknown tag"),
        ("{% if messages %}", "line 1: Unexpected end of template"),
        ("{{ 1 is nosuch }}", "line 1: No test named"),
    ],
)
def test_a_template_that_does_not_compile_is_at_fault_itself(
    tokenizer: Callable[..., Any], template: str, told: str
) -> None:
    prompts = builder(tokenizer(template))
    with pytest.raises(InvalidValue) as caught:
        prompts.tokens(chat(user(SECRET)))
    message = caught.value.message
    assert message.startswith(f"The model's chat template does not compile ({told}")
    assert "not in the request" in message
    assert "/v1/completions" in message
    assert SECRET not in message
    # Which it says with good reason.
    assert prompts.tokens(Generate("r", Text("hi"), NOON))


@pytest.mark.parametrize(
    ("template", "always"),
    [("{{ 1 / 0 }}", True), ("{{ no_such() }}", True), ("{{ messages[0].x / 2 }}", True)]
    + [("{{ messages[0].content.x.y if messages | length > 1 }}", False)],
)
def test_a_template_that_fails_on_any_chat_is_told_from_one_that_rejects_this(
    tokenizer: Callable[..., Any], template: str, always: bool
) -> None:
    prompts = builder(tokenizer(template))
    with pytest.raises(InvalidValue) as caught:
        prompts.tokens(chat(user(SECRET), user(SECRET)))
    assert ("fails on the simplest chat as well" in caught.value.message) is always


def test_a_rejected_request_spoils_nothing(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer("{{ 1 / (messages | length - 1) }}")
    prompts = builder(wrapper)
    with pytest.raises(InvalidValue):
        prompts.tokens(chat(user("x")))
    assert wrapper.decode(prompts.tokens(chat(user("x"), user("y")))) == "1.0"


def test_jinjas_words_and_what_a_template_quotes_are_not_passed_on(
    tokenizer: Callable[..., Any],
) -> None:
    template = "{{ raise_exception('Unknown: ' + messages[0].content) }}"
    with pytest.raises(InvalidValue) as caught:
        builder(tokenizer(template)).tokens(chat(user(SECRET)))
    assert caught.value.message == "The model's chat template rejected the messages."


# ── tools ────────────────────────────────────────────────────────────────────────────────────────

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def rendered(wrapper: Any, prompt: Chat) -> str:
    tokens = builder(wrapper).tokens(Generate("r", prompt, NOON))
    return str(wrapper.decode(tokens))


def test_tools_are_shown_by_the_template(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer(
        "{% if tools is defined and tools %}{{ tools[0].function.name }}{% endif %}."
    )
    assert rendered(wrapper, Chat([user("x")], [TOOL])) == "f."
    assert rendered(wrapper, Chat([user("x")])) == "."


def test_tools_that_a_template_would_not_show_are_refused(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer("{{ messages[0].content }} toolset")
    with pytest.raises(UnsupportedParameter, match="does not support") as caught:
        rendered(wrapper, Chat([user(SECRET)], [TOOL]))
    assert caught.value.param == "tools"
    assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    "tool", [{}, {"function": None}, {"function": {"parameters": {"$ref": "\ud800"}}}, {"a": 1e308}]
)
def test_a_broken_tool_is_the_requests_fault(
    tokenizer: Callable[..., Any], tool: dict[str, Any]
) -> None:
    wrapper = tokenizer(
        "{% for tool in tools %}{{ tool | tojson + tool.function.name }}{% endfor %}"
    )
    with pytest.raises(InvalidValue) as caught:
        rendered(wrapper, Chat([user(SECRET)], [tool]))
    assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ('{"a": [1]}', "a=[1];"),
        ("", ""),
        ("{}", ""),
        ("[1]", "[1]"),
        ("no json", "no json"),
        ("[" * 100_000, "["),
    ],
)
def test_a_calls_arguments_are_an_object_in_the_template(
    tokenizer: Callable[..., Any], arguments: str, told: str
) -> None:
    wrapper = tokenizer(
        "{% for call in messages[0].tool_calls %}{% set a = call.function.arguments %}"
        "{% if a is string %}{{ a[:9] }}{% else %}"
        "{% for k, v in a.items() %}{{ k }}={{ v }};{% endfor %}{% endif %}{% endfor %}."
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert rendered(wrapper, Chat([message])).startswith(told or ".")
    assert call["function"]["arguments"] == arguments  # type: ignore[index]  # ours to read only


def test_a_template_that_wants_the_arguments_text_gets_it(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer("{{ 'args: ' + messages[0].tool_calls[0].function.arguments }}")
    call = {"function": {"name": "f", "arguments": '{"a":  1}'}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert rendered(wrapper, Chat([message])) == 'args: {"a":  1}'


def test_the_rest_of_a_message_reaches_the_template(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer(
        "{% for m in messages %}{{ m.role }} {{ m.content }} {{ m.reasoning_content }} "
        "{{ m.tool_call_id }};{% endfor %}"
    )
    thought = {"role": "assistant", "content": None, "reasoning_content": "hm"}
    result = {"role": "tool", "tool_call_id": "1", "content": "7"}
    assert rendered(wrapper, Chat([thought, result])) == "assistant  hm ;tool 7  1;"


# ── template arguments ───────────────────────────────────────────────────────────────────────────


def test_arguments_go_to_the_template(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer("{{ enable_thinking }} {{ date_string }}")
    options = {"enable_thinking": True, "date_string": "today", "unknown": 1}
    assert rendered(wrapper, Chat([user("x")], [], options)) == "True today"


def test_arguments_never_replace_what_is_ours(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer("{{ messages[0].content }}{{ tools }}{{ add_generation_prompt }}")
    options = {
        "messages": [user("other")],
        "conversation": [user("other")],
        "tools": [TOOL],
        "tokenize": True,
        "add_generation_prompt": False,
        "chat_template": "other",
        "continue_final_message": True,
        "return_dict": True,
        "padding": "max_length",
    }
    assert rendered(wrapper, Chat([user("mine")], [], options)).startswith("mine")
    assert rendered(wrapper, Chat([user("mine")], [], options)).endswith("True")


@pytest.mark.parametrize(
    ("template", "asked", "told"),
    [
        ("{{ reasoning_effort }}", {"reasoning_effort": "high"}, "high"),
        ("{{ reasoning_effort }}", {"reasoning_effort": "minimal"}, "minimal"),
        ("{{ enable_thinking }}", {"reasoning_effort": "none"}, "False"),
        ("{{ enable_thinking }}", {"reasoning_effort": "minimal"}, "False"),
        ("{{ thinking }}", {"reasoning_effort": "none"}, "False"),
        ("{{ enable_thinking is defined }}", {"reasoning_effort": "high"}, "False"),
        ("{{ enable_thinking }}", {"reasoning_effort": "none", "enable_thinking": True}, "True"),
    ],
)
def test_reasoning_effort_is_told_in_the_templates_terms(
    tokenizer: Callable[..., Any], template: str, asked: dict[str, Any], told: str
) -> None:
    assert rendered(tokenizer(template), Chat([user("x")], [], asked)) == told


def test_a_template_in_python_gets_only_what_it_names(tokenizer: Callable[..., Any]) -> None:
    wrapper = replace(tokenizer(), python_template=in_python)
    wrapper.wrapper._chat_template = in_python
    options = {"enable_thinking": False, "elsewhere": 1, "reasoning_effort": "high"}
    assert rendered(wrapper, Chat([user("x")], [], options)) == "x False True"


def in_python(
    messages: Any, add_generation_prompt: bool = False, enable_thinking: bool = True
) -> str:
    return f"{messages[0]['content']} {enable_thinking} {add_generation_prompt}"


# ── what no tokenizer can take ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prompt", [Chat([user("a\ud800b")]), Text("a\ud800b")])
def test_lone_surrogates_are_refused(tokenizer: Callable[..., Any], prompt: Chat | Text) -> None:
    with pytest.raises(InvalidValue, match="rejected the") as caught:
        builder(tokenizer()).tokens(Generate("r", prompt, NOON))
    assert caught.value.param == ("messages" if isinstance(prompt, Chat) else "prompt")


def test_deep_arguments_are_refused(tokenizer: Callable[..., Any]) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidValue, match="RecursionError"):
        rendered(tokenizer("{{ tools | tojson }}"), Chat([user("x")], [{"a": deep}]))


@pytest.mark.parametrize("ids", [(-1,), (0, 10**6), (2**63,)])
def test_ids_outside_of_the_vocabulary_are_refused(
    tokenizer: Callable[..., Any], ids: tuple[int, ...]
) -> None:
    prompts = builder(tokenizer())
    with pytest.raises(InvalidValue, match="from 0 to 256") as caught:
        prompts.tokens(Generate("r", Tokens(ids), NOON))
    assert caught.value.param == "prompt"


def test_the_models_own_vocabulary_counts(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer()
    assert builder(wrapper).tokens(Generate("r", Tokens((0, 256)), NOON)) == [0, 256]
    assert PromptBuilder(wrapper, 4096, 300).tokens(Generate("r", Tokens((299,)), NOON)) == [299]
    with pytest.raises(InvalidValue):
        PromptBuilder(wrapper, 4096, 300).tokens(Generate("r", Tokens((300,)), NOON))


def test_a_prompts_text_can_be_told(tokenizer: Callable[..., Any]) -> None:
    prompts = PromptBuilder(tokenizer(), 4096, 300)
    for prompt in (Text("héllo <|end|>"), Chat([user("x")]), Tokens((256, 299))):
        request = Generate("r", prompt, NOON)
        text = prompts.text_of(request, prompts.tokens(request))
        if isinstance(prompt, Text):
            assert text == prompt.text
        else:
            assert text.startswith("<|")


def test_a_special_token_without_weights_is_refused(tokenizer: Callable[..., Any]) -> None:
    """Tokenizers know tokens that were never given to the model; MLX would read beyond its
    weights."""
    wrapper = tokenizer()
    wrapper.inner.add_tokens(["<image>"])
    width = len(wrapper.inner) - 1
    prompts = PromptBuilder(wrapper, 4096, width)
    assert prompts.tokens(Generate("r", Text("<imag"), NOON))
    for prompt in (Text("a <image>"), Chat([user("<image>")])):
        with pytest.raises(InvalidValue, match="no weights") as caught:
            prompts.tokens(Generate("r", prompt, NOON))
        assert "<image>" not in caught.value.message
    with pytest.raises(InvalidValue, match="token ids"):
        prompts.tokens(Generate("r", Tokens((width,)), NOON))


def test_an_echo_is_bounded(tokenizer: Callable[..., Any]) -> None:
    prompts = builder(tokenizer())
    said = Generate("r", Text("x" * ECHO_MAX), NOON)
    assert prompts.text_of(said, []) == "x" * ECHO_MAX
    with pytest.raises(InvalidValue) as caught:
        prompts.text_of(Generate("r", Text("x" * (ECHO_MAX + 1)), NOON), [])
    assert caught.value.param == "echo"
    with pytest.raises(InvalidValue):
        prompts.text_of(Generate("r", Tokens((1,)), NOON), [65] * (ECHO_MAX + 1))


def test_messages_that_a_template_refuses_are_merged_and_rendered_again(
    tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    wrapper = tokenizer(MISTRAL)
    system = {"role": "system", "content": SECRET}
    with caplog.at_level("INFO", "bulkhead.worker"):
        tokens = builder(wrapper).tokens(chat(system, system, user("a"), user("b"), system))
    assert wrapper.decode(tokens) == f"[INST]{SECRET}\n\n{SECRET}\n\na\n\nb\n\n{SECRET}[/INST]"
    assert caplog.messages == ["r: the chat template takes it with messages merged"]


def test_a_shape_of_which_a_template_leaves_something_out_is_not_the_one(
    tokenizer: Callable[..., Any],
) -> None:
    """Mistral's tells a system message only before the user's words: an agent that has forgotten
    how its conversation began sends none of those at first."""
    call = {"id": "call_1234567890", "type": "function", "function": {"name": "f", "arguments": ""}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": SECRET},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_call_id": call["id"]},
        user("go on"),
    ]
    wrapper = tokenizer(MISTRAL)
    text = wrapper.decode(builder(wrapper).tokens(chat(*messages)))
    assert SECRET in text
    assert "[TOOL_CALLS]" in text
    assert "[TOOL_RESULTS]done" in text


def test_of_shapes_that_all_leave_something_out_the_first_is_taken(
    tokenizer: Callable[..., Any],
) -> None:
    wrapper = tokenizer(
        "{% if messages[1:] %}{{ raise_exception('one') }}{% endif %}{{ messages[0].content[:1] }}"
    )
    assert wrapper.decode(builder(wrapper).tokens(chat(user("ab"), user("cd")))) == "a"


def test_messages_that_a_template_takes_are_left_alone(
    tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    wrapper = tokenizer("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}")
    system = {"role": "system", "content": "s"}
    with caplog.at_level("INFO", "bulkhead.worker"):
        tokens = builder(wrapper).tokens(chat(user("a"), user("b"), system))
    assert wrapper.decode(tokens) == "user:a;user:b;system:s;"
    assert caplog.messages == []


def test_what_no_shape_cures_is_refused_with_the_first_reason(
    tokenizer: Callable[..., Any],
) -> None:
    wrapper = tokenizer(
        "{{ raise_exception('too many') if messages | length > 1 else raise_exception('no') }}"
    )
    with pytest.raises(InvalidValue, match="too many"):
        builder(wrapper).tokens(chat(user("a"), user("b")))


# ── answers that have begun ──────────────────────────────────────────────────────────────────────


def begun(*messages: dict[str, Any]) -> Chat:
    return Chat(list(messages), continues=True)


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def test_an_answer_that_has_begun_is_gone_on_with(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer()
    text = rendered(wrapper, begun(user("héllo"), assistant("The best (")))
    assert text == "<|user|>héllo\n<|assistant|>The best ("


def test_one_that_stands_in_the_question_as_well(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer()
    text = rendered(wrapper, begun(user("a"), assistant("a"), user("a"), assistant("a")))
    assert text == "<|user|>a\n<|assistant|>a\n<|user|>a\n<|assistant|>a"


def test_one_of_a_conversation_that_had_to_be_merged(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer(MISTRAL)
    text = rendered(wrapper, begun(user("a"), user("b"), assistant("So")))
    assert text.endswith("So")
    assert "a\n\nb" in text


def test_a_template_that_does_not_show_it_refuses(tokenizer: Callable[..., Any]) -> None:
    wrapper = tokenizer("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(InvalidValue) as caught:
        builder(wrapper).tokens(Generate("r", begun(user("a"), assistant(SECRET)), NOON))
    assert SECRET not in caught.value.message
    assert "last message" in caught.value.message
