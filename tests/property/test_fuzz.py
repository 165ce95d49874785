"""Nothing that a client sends hurts a worker: the known killers by name, and a short random run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers.serving import Answer, Server, serving
from tests.helpers.tiny_llama import make_llama
from tests.property.fuzz import fuzz, fuzzed

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
VOCABULARY = 257
PICKY = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}"
    "{% if m.content == 'refuse' %}{{ raise_exception('roles must alternate') }}"
    "{% elif m.content == 'divide' %}{{ 1 // 0 }}"
    "{% elif m.content == 'type' %}{{ m.content + 1 }}"
    "{% elif m.content == 'absent' %}{{ nothing.at.all }}"
    "{% elif m.content == 'escape' %}{{ m.__class__.__mro__[1].__subclasses__() }}"
    "{% elif m.content == 'nothing' %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
"""A chat template that fails in every way that a template can."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Real workers: of the demo, of a random Llama, and of one whose template fails."""
    folder = tmp_path_factory.mktemp("fuzz")
    make_picky(folder / "picky")
    models = {
        "demo": "demo",
        "tiny": make_llama(folder / "tiny"),
        "picky": folder / "picky",
    }
    named = [f"--model={name}={source}" for name, source in models.items()]
    with serving(folder / "state", *named) as running:
        for name in models:
            assert running.request("POST", TEXT, known(name)).status == 200
        yield running


def make_picky(folder: Path) -> None:
    """A random Llama with the template that fails."""
    path = make_llama(folder) / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": PICKY}))


def known(model: str) -> dict[str, Any]:
    """A request whose greedy answer is always the same."""
    return {"model": model, "prompt": "What is known", "max_tokens": 16, "temperature": 0}


def state(server: Server, model: str) -> tuple[int, int, str]:
    """The worker's generation and process, and what it answers to the known prompt."""
    entry = server.loaded(model)
    answer = server.request("POST", TEXT, known(model))
    assert answer.status == 200
    return entry["generation"], entry["pid"], answer.json["choices"][0]["text"]


@pytest.fixture(scope="module")
def states() -> dict[str, tuple[int, int, str]]:
    """Each model's last known `state`: what one case leaves is what the next one finds."""
    return {}


def assert_well_formed(answer: Answer, status: int, param: str | None) -> None:
    """The wanted status, and an error in the contract's form that names the parameter."""
    assert answer.status == status, answer.body[:500]
    if status == 200:
        assert answer.json["choices"]
        return
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error


class Case(NamedTuple):
    """A request that must be answered `status`; a refusal names `param`."""

    path: str
    body: dict[str, Any] | bytes
    status: int = 200
    param: str | None = None


def chat(status: int = 200, param: str | None = None, /, **more: Any) -> Case:
    """A short chat with `more`, in which null is sent as such."""
    messages = [{"role": "user", "content": "hi"}]
    return Case(
        CHAT, {"model": "tiny", "messages": messages, "max_tokens": 4, **more}, status, param
    )


def text(status: int = 200, param: str | None = None, /, **more: Any) -> Case:
    """A short completion with `more`."""
    return Case(TEXT, {"model": "tiny", "prompt": "hi", "max_tokens": 4, **more}, status, param)


def said(content: Any, status: int = 200, param: str | None = None, **more: Any) -> Case:
    """A chat of one message."""
    return chat(status, param, messages=[{"role": "user", "content": content}], **more)


def raw(members: str, status: int = 400, param: str | None = None) -> Case:
    """A completion whose further members are JSON as it stands."""
    body = f'{{"model":"tiny","prompt":"hi","max_tokens":4,{members}}}'
    return Case(TEXT, body.encode(), status, param)


def tool(status: int, param: str | None, parameters: Any, choice: Any = "required") -> Case:
    """A chat that must call a tool with these parameters."""
    function = {"name": "f", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    return chat(status, param, tools=tools, tool_choice=choice, model="picky")


def schema(
    status: int, wanted: Any, param: str = "response_format", *, strict: bool = False
) -> Case:
    """A chat that must answer under this schema."""
    told = {"name": "s", "schema": wanted, "strict": strict}
    response_format = {"type": "json_schema", "json_schema": told}
    return chat(status, param if status == 400 else None, response_format=response_format)


def nested(depth: int, leaf: Any) -> Any:
    """A schema of `depth` levels."""
    for _ in range(depth):
        leaf = {"type": "object", "properties": {"a": leaf}, "required": ["a"]}
    return leaf


SCHEMA = "response_format.json_schema.schema"
PARAMETERS = "tools[0].function.parameters"
NULLS = (
    "n", "stop", "seed", "temperature", "top_p", "top_k", "min_p", "max_tokens", "logit_bias",
    "stream", "stream_options", "presence_penalty", "frequency_penalty", "user", "min_tokens",
    "repetition_penalty", "xtc_probability", "xtc_threshold", "ignore_eos",
)  # fmt: skip
CHAT_NULLS = (
    "tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs",
    "reasoning_effort", "chat_template_kwargs", "max_completion_tokens", "functions", "audio",
)  # fmt: skip

KILLERS: dict[str, Case] = {
    # What one request does to mlx_lm.server
    "prompts in a list": text(prompt=["a", "b"]),
    "empty prompt": text(400, "prompt", prompt=""),
    "empty prompt in a list": text(400, "prompt", prompt=["a", ""]),
    "no prompts": text(400, "prompt", prompt=[]),
    "no tokens": text(400, "prompt[0]", prompt=[[]]),
    "null prompt": text(400, "prompt", prompt=None),
    "empty message": said("", model="tiny"),
    "no messages": chat(400, "messages", messages=[]),
    "template of nothing": said("nothing", 400, "messages", model="picky"),
    "stop of a number": text(400, "stop[0]", stop=[1]),
    "stop of nothing": text(400, "stop", stop=""),
    "stop of lists": text(400, "stop[0]", stop=[["a"]]),
    "top_k at the vocabulary": text(top_k=VOCABULARY),
    "top_k beyond the vocabulary": text(top_k=2**53, temperature=1),
    "top_k beyond integers": text(400, "top_k", top_k=2**64),
    "top_k negative": text(400, "top_k", top_k=-2),
    "xtc_threshold": text(400, "xtc_threshold", xtc_threshold=0.51, xtc_probability=1),
    "xtc_threshold largest": text(xtc_threshold=0.5, xtc_probability=1, temperature=1),
    "bias outside": text(400, "logit_bias", logit_bias={str(VOCABULARY): 5}),
    "bias far outside": text(400, "logit_bias", logit_bias={"999999999": 5}),
    "bias beyond 32 bits": text(400, "logit_bias", logit_bias={"4294967296": 5}),
    "bias negative": text(400, "logit_bias", logit_bias={"-1": 5}),
    "bias of a word": text(400, "logit_bias", logit_bias={"hello": 5}),
    "bias against all": text(logit_bias=dict.fromkeys(map(str, range(VOCABULARY)), -100)),
    "nulls": text(**{**dict.fromkeys(NULLS), "max_tokens": 4}),
    "nulls in a chat": chat(**{**dict.fromkeys((*NULLS, *CHAT_NULLS)), "max_tokens": 4}),
    "stream_options of nothing": text(stream_options={}),
    "objects of nulls": chat(
        response_format={"type": None}, tool_choice={"type": None}, reasoning={"effort": None}
    ),
    "settings of others": chat(num_ctx=1, keep_alive=-1, options={"num_gpu": 1, "seed": -1}),
    "deep settings of others": chat(400, "options.type", options=nested(80, {})),
    "deep settings without effect": chat(num_ctx=nested(80, {})),
    # Numbers
    "id at the vocabulary": text(400, "prompt", prompt=[1, VOCABULARY]),
    "id negative": text(400, "prompt[0]", prompt=[-1]),
    "id beyond 32 bits": text(400, "prompt[1]", prompt=[1, 2**40]),
    "id that is a float": text(400, "prompt[0]", prompt=[1.5]),
    "id that is a boolean": text(400, "prompt[0]", prompt=[True]),
    "id in a later list": text(400, "prompt", prompt=[[1], [VOCABULARY]]),
    "temperature NaN": raw('"temperature":NaN'),
    "temperature Infinity": raw('"temperature":Infinity'),
    "temperature 1e400": raw('"temperature":1e400'),
    "temperature -1e400": raw('"temperature":-1e400'),
    "temperature tiny": raw('"temperature":1e-300', 200),
    "temperature denormal": raw('"temperature":5e-324', 200),
    "temperature of 1000 digits": raw(f'"temperature":{"9" * 1000}', 400, "temperature"),
    "temperature negative zero": raw('"temperature":-0.0', 200),
    "penalty 1e400": raw('"presence_penalty":1e400'),
    "repetition tiny": raw('"repetition_penalty":1e-300', 200),
    "top_p tiny": raw('"top_p":1e-300,"temperature":1', 200),
    "top_p zero": raw('"top_p":0,"temperature":1', 200),
    "min_p one": raw('"min_p":1,"temperature":1', 200),
    "seed of 1000 digits": raw(f'"seed":{"9" * 1000}', 400, "seed"),
    "seed smallest": raw(f'"seed":{-(2**63)},"temperature":1', 200),
    "n huge": text(400, "n", n=10**9),
    "n beyond integers": text(400, "n", n=10**30),
    "n zero": text(400, "n", n=0),
    "n one too many": chat(400, "n", n=129),
    "n of many prompts": text(400, "n", n=64, prompt=["a", "b", "c"]),
    "n largest": text(n=128, max_tokens=1),
    "max_tokens huge": text(max_tokens=2**53, stop="\n", model="demo"),
    "max_tokens of no limit": text(max_tokens=-1, stop="\n", model="demo"),
    "max_tokens below": text(400, "max_tokens", max_tokens=-2),
    "max_tokens zero": text(400, "max_tokens", max_tokens=0),
    "min_tokens above max_tokens": text(400, "min_tokens", min_tokens=5),
    "top_logprobs of none": chat(400, "top_logprobs", top_logprobs=3),
    "top_logprobs beyond": chat(400, "top_logprobs", logprobs=True, top_logprobs=21),
    "all logprobs": chat(logprobs=True, top_logprobs=20),
    # JSON
    "brackets": Case(CHAT, b"[" * 100_000, 400),
    "braces": Case(CHAT, b'{"a":' * 100_000, 400),
    "brackets closed": raw(f'"metadata":{"[" * 100_000}{"]" * 100_000}'),
    "brackets in a prompt": raw(f'"stop":{"[" * 100_000}{"]" * 100_000}'),
    "lone surrogate": raw(r'"stop":"\ud800"'),
    "lone low surrogate": raw(r'"user":"\udfff"'),
    "surrogates swapped": raw(r'"stop":"\udc00\ud800"'),
    "surrogate in UTF-8": Case(TEXT, b'{"model":"tiny","prompt":"\xed\xa0\x80"}', 400),
    "not UTF-8": Case(TEXT, b'{"model":"tiny","prompt":"\xff"}', 400),
    "UTF-16": Case(TEXT, '{"model":"tiny","prompt":"a"}'.encode("utf-16"), 400),
    "nothing": Case(CHAT, b"", 400),
    "null": Case(CHAT, b"null", 400),
    "a zero byte": said("a\x00b"),
    "noncharacters": said("\uffff\ufffe\U0010ffff\u202e\u0300"),
    "special tokens": said("<|end|><|end|>"),
    # Chats
    "template refuses": said("refuse", 400, "messages", model="picky"),
    "template divides": said("divide", 400, "messages", model="picky"),
    "template adds": said("type", 400, "messages", model="picky"),
    "template names nothing": said("absent", 400, "messages", model="picky"),
    "template escapes": said("escape", 400, "messages", model="picky"),
    "unknown role": chat(400, "messages[0].role", messages=[{"role": "god", "content": "x"}]),
    "picture": said(
        [{"type": "image_url", "image_url": {"url": "x"}}], 400, "messages[0].content[0]"
    ),
    "part of nothing": said([{}], 400, "messages[0].content[0].type"),
    "no parts": said([]),
    "content of a number": said(1, 400, "messages[0].content"),
    "template kwargs": chat(400, "chat_template_kwargs.tools", chat_template_kwargs={"tools": 1}),
    # Tools and schemas
    "tool without a function": chat(400, "tools[0].function", tools=[{"type": "function"}]),
    "tool of nothing": chat(400, "tools[0].function", tools=[{}]),
    "tool parameters of a list": tool(400, PARAMETERS, [1]),
    "tool parameters of a broken type": tool(400, PARAMETERS, {"type": "objekt"}),
    "tool parameters of a number": tool(400, PARAMETERS, {"type": 7}),
    "tool with broken properties": tool(
        400, PARAMETERS, {"type": "object", "properties": {"a": {"$ref": "#/no/where"}}}
    ),
    "tool chosen that is not there": tool(
        400, "tool_choice", {}, {"type": "function", "function": {"name": "g"}}
    ),
    "tool with an endless schema": tool(400, PARAMETERS, nested(150, {})),
    "$ref to nothing": schema(400, {"$ref": "#/$defs/none"}),
    "$ref to itself": schema(400, {"$ref": "#"}),
    "$ref in a circle": schema(
        400,
        {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        },
    ),
    "$ref elsewhere": schema(200, {"$ref": "http://127.0.0.1:1/schema.json"}),
    "$ref elsewhere, strictly": schema(
        400, {"$ref": "http://127.0.0.1:1/schema.json"}, strict=True
    ),
    "$ref to a file": schema(200, {"$ref": "file:///etc/passwd"}),
    "$ref to a file, strictly": schema(400, {"$ref": "file:///etc/passwd"}, strict=True),
    "$ref of a number": schema(400, {"$ref": 3}),
    "schema of an unknown type": schema(400, {"type": "objekt"}),
    "schema of nothing allowed": schema(400, {"enum": []}),
    "schema too deep": schema(400, nested(150, {"type": "string"}), SCHEMA),
    "schema deep": schema(200, nested(20, {"type": "string"})),
    "schema beyond 64 bits": schema(400, {"const": 2**70}, SCHEMA),
    "regex broken": schema(200, {"type": "string", "pattern": "("}),
    "regex broken, strictly": schema(400, {"type": "string", "pattern": "("}, strict=True),
    "regex that looks behind": schema(200, {"type": "string", "pattern": "(?<=a)b"}),
    "regex that looks behind, strictly": schema(
        400, {"type": "string", "pattern": "(?<=a)b"}, strict=True
    ),
    "regex that refers back": schema(200, {"type": "string", "pattern": r"(a)\1"}),
    "regex that refers back, strictly": schema(
        400, {"type": "string", "pattern": r"(a)\1"}, strict=True
    ),
    "regex that backtracks": schema(200, {"type": "string", "pattern": "^(a+)+$"}),
    "regex of many repetitions": schema(
        200, {"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"}
    ),
    "minItems huge": schema(
        200, {"type": "array", "items": {"type": "string"}, "minItems": 10**9}
    ),
    "minLength huge": schema(200, {"type": "string", "minLength": 10**9}),
}  # fmt: skip


@pytest.mark.parametrize("name", KILLERS)
def test_killers(name: str, server: Server, states: dict[str, tuple[int, int, str]]) -> None:
    """Answered, and then the same worker gives the same greedy answer."""
    case = KILLERS[name]
    model = "tiny"
    if isinstance(case.body, dict) and case.body["model"] != "demo":
        model = case.body["model"]
    before = states.get(model) or state(server, model)
    assert_well_formed(server.request("POST", case.path, case.body), case.status, case.param)
    states[model] = state(server, model)
    assert states[model] == before


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_prompt_equal_to_an_earlier_answer(name: str, server: Server) -> None:
    """A prompt that is exactly what the cache holds: an earlier prompt with its completion."""
    before = state(server, name)
    longer = known(name)
    for _ in range(3):
        answer = server.request("POST", TEXT, longer)
        assert_well_formed(answer, 200, None)
        again = server.request("POST", TEXT, longer)
        assert again.json["choices"] == answer.json["choices"]
        longer = {**longer, "prompt": longer["prompt"] + answer.json["choices"][0]["text"]}
    assert state(server, name) == before


def test_random_requests(tmp_path: Path) -> None:
    """The short form of `python -m tests.property.fuzz`."""
    for running in fuzzed(tmp_path):
        seen = fuzz(running, seed=3, requests=60)
        assert seen[200] > 15
        assert seen[400] > 15
        for dialect in ("messages", "responses", "ollama"):
            seen = fuzz(running, seed=3, requests=40, dialect=dialect)
            assert seen[200] > 8, dialect
            assert seen[400] > 8, dialect
