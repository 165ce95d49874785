"""From a request to prompt tokens: chat template, tokenizer, context."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from supervisor.errors import InvalidValue, UnsupportedParameter
from supervisor.wire.frames import Chat, Generate, Text, Tokens
from worker.prompt.encoder import PromptEncoder
from worker.prompt.reshape import gentler
from worker.prompt.tokenizer import ModelTokenizer, template_text

log = logging.getLogger("bulkhead.worker")

_RESERVED = frozenset(("messages", "add_generation_prompt", "tokenize", "tools", "chat_template"))
"""Arguments that no client sets; beside them, all that `apply_chat_template` itself takes."""
_CONTINUES = "continue_final_message"
"""The argument of `apply_chat_template` that ends the prompt within the last message."""
_NO_CONTINUING = "it can't go on with a last message of the assistant's"
ECHO_MAX = 2**20
"""Characters; of up to four bytes, half of what one frame to the gateway may hold."""
_WITHOUT_THINKING = ("none", "minimal")
_REASON = 300
"""Characters of a template's own words in an error message."""


class PromptBuilder:
    """Tokenizes for one model. One thread at a time: tokenizers are not safe for more."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        context: int,
        vocabulary: int,
        *,
        fitting: int | None = None,
    ) -> None:
        """`context` is in tokens, `vocabulary` is how many token ids the model knows. `fitting` is
        how much of the context this machine can hold, None = all of it."""
        self._tokenizer = tokenizer
        self._encoder = PromptEncoder(tokenizer, context, vocabulary, fitting=fitting)
        self._template = _Template(tokenizer)

    def tokens(self, request: Generate) -> list[int]:
        """The prompt's tokens: at least one, and fewer than the context if there is to be output.

        Raises ContextLengthExceeded, PromptTooLarge, InvalidValue or UnsupportedParameter. Messages
        never quote the prompt.
        """
        match request.prompt:
            case Chat() as chat:
                param = "messages"
                text = self._template.render(chat, request.now, request.request_id)
                tokens = self._encoder.encode(text, param, param, add_special_tokens=False)
            case Text(text):
                param = "prompt"
                tokens = self._encoder.encode(text, param, param)
            case Tokens(ids):
                param = "prompt"
                tokens = self._encoder.checked(ids, param, param)
        if not tokens:
            raise InvalidValue(
                "The prompt is empty: the model needs at least one token.", param=param
            )
        self._encoder.check_size(len(tokens), param, param, more=int(request.max_tokens != 0))
        return tokens

    def text_of(self, request: Generate, tokens: Sequence[int]) -> str:
        """The prompt's text, for an echo: as it was sent, or what its `tokens` stand for.

        Raises InvalidValue for one that is too long to be sent back.
        """
        if isinstance(request.prompt, Text):
            text = request.prompt.text
        else:
            text = self._tokenizer.text(tokens)
        if len(text) > ECHO_MAX:
            raise InvalidValue(
                f"Invalid value for `echo`: the prompt has {len(text)} characters, of which at "
                f"most {ECHO_MAX} are sent back.",
                param="echo",
            )
        return text


class _Template:
    """A model's chat template: what it knows, and what it makes of a chat."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._exists: bool = tokenizer.has_chat_template
        self._clock_at = tokenizer.clock_at
        in_python = tokenizer.chat_template is None or tokenizer.python_template is not None
        # mlx-lm's wrapper forces thinking on where a model knows it; the template's own default is
        # what the model's makers chose. Only templates written in Python need the wrapper.
        self._apply: Callable[..., Any] = (
            tokenizer.apply_chat_template if in_python else tokenizer.inner.apply_chat_template
        )
        function = tokenizer.python_template or tokenizer.inner
        self._source = _source(function) if in_python else template_text(tokenizer)
        self._reserved = _RESERVED | _parameters(tokenizer.inner.apply_chat_template)
        self._accepted = (
            _parameters(function) if in_python and inspect.isfunction(function) else None
        )
        """The only arguments that a template in Python takes; None = it takes any."""
        self._renders: bool | None = None
        """Whether it has rendered the simplest chat; None = not tried yet."""

    def mentions(self, variable: str) -> bool:
        """Whether the template names `variable`."""
        return re.search(rf"\b{variable}\b", self._source) is not None

    def render(self, chat: Chat, now: float, request_id: str) -> str:
        """The prompt's text: of the messages as they are, or, where the template refuses these,
        merged as far as it takes. Raises InvalidValue or UnsupportedParameter."""
        if not self._exists:
            raise InvalidValue(
                "This model has no chat template. Use /v1/completions with a plain prompt.",
                param="messages",
            )
        if chat.tools and not self.mentions("tools"):
            raise UnsupportedParameter(
                "This model's chat template does not support `tools`.", param="tools"
            )
        options = self._options(chat.template)
        if chat.tools:
            options["tools"] = chat.tools
        with self._clock_at(now):
            if chat.continues:
                if self._accepted is not None:  # a template in Python begins every answer itself
                    raise _rejected(_NO_CONTINUING)
                options[_CONTINUES] = True
            try:
                return self._text(chat.messages, options)
            except InvalidValue:
                # Agents cannot help sending what many templates refuse.
                taken = self._gentler(chat.messages, options)
                if taken is None:
                    raise
                what, text = taken
                log.info("%s: the chat template takes it with %s", request_id, what)
                return text

    def _gentler(
        self, sent: Sequence[dict[str, Any]], options: dict[str, Any]
    ) -> tuple[str, str] | None:
        """What was done, and the text of the first shape of which the template shows everything;
        where it does so of none, of the first that it takes. None = it takes none."""
        first: tuple[str, str] | None = None
        for what, messages in gentler(sent, knows_calls=self.mentions("tool_calls")):
            try:
                text = self._text(messages, options)
            except InvalidValue:
                continue
            if _shows_all(text, messages):
                return what, text
            first = first or (what, text)
        return first

    def _text(self, sent: Sequence[dict[str, Any]], options: dict[str, Any]) -> str:
        """Raises InvalidValue when the template refuses the messages."""
        try:
            messages, parsed = _messages(sent)
            try:
                return self._rendered(messages, options)
            except TypeError:
                if not parsed:
                    raise
                # Some templates put the arguments of calls into their text as they are.
                messages, _ = _messages(sent, parse=False)
                return self._rendered(messages, options)
        except Exception as error:  # noqa: BLE001
            # Templates are programs from the model's folder: they can raise anything at all, and
            # what they choke on is the request, or their own fault, but not the worker's.
            if options.get(_CONTINUES) and isinstance(error, ValueError):
                raise _rejected(_NO_CONTINUING) from None
            raise self._refusal(error) from None

    def _rendered(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
        begins = not options.get(_CONTINUES)
        text = self._apply(messages, tokenize=False, add_generation_prompt=begins, **options)
        if not isinstance(text, str):
            raise TypeError
        return text

    def _options(self, asked: dict[str, Any]) -> dict[str, Any]:
        options = {name: value for name, value in asked.items() if name not in self._reserved}
        effort = options.get("reasoning_effort")
        if effort in _WITHOUT_THINKING:
            for switch in ("enable_thinking", "thinking"):
                if self.mentions(switch):
                    options.setdefault(switch, False)
        if not self.mentions("reasoning_effort"):
            options.pop("reasoning_effort", None)
        if self._accepted is not None:  # Jinja's ignore what they do not name
            options = {
                name: value
                for name, value in options.items()
                if name in self._accepted or ("kwargs" in self._accepted and self.mentions(name))
            }
        return options

    def _refusal(self, error: Exception) -> InvalidValue:
        if isinstance(error, TemplateSyntaxError):
            # Its words are about the template's text, never about a request.
            words = " ".join(str(error.message or "").split())[:_REASON]
            return _does_not_compile(f"line {error.lineno}: {words}")
        if isinstance(error, TemplateError):
            # The template's own refusal is no more than one, where its words may not be shown.
            kind = "" if type(error) is TemplateError else type(error).__name__
            detail = self._own_words(error) or kind
        else:
            detail = type(error).__name__
        if type(error) is not TemplateError and not self._renders_anything():
            detail += " (it fails on the simplest chat as well: see the model's files)"
        return _rejected(detail.strip())

    def _renders_anything(self) -> bool:
        """Whether the template takes the simplest chat, or refuses it in words of its own."""
        if self._renders is None:
            try:
                self._rendered([{"role": "user", "content": "hi"}], {})
                self._renders = True
            except Exception as error:  # noqa: BLE001
                self._renders = type(error) is TemplateError
        return self._renders

    def _own_words(self, error: TemplateError) -> str:
        """What a template says about a request, if it says it in words of its own alone."""
        if type(error) is not TemplateError:
            return ""  # Jinja's words may quote what it could not compute with
        words = str(error)
        own = self._source.replace("\\'", "'").replace('\\"', '"')
        return words[:_REASON] if words and words in own else ""


def _shows_all(text: str, messages: Sequence[dict[str, Any]]) -> bool:
    """Whether what was said stands in the prompt's text. Calls, what is said beside them, and their
    results are left to the template, which may tell them in other words."""
    said = (
        each.get("content")
        for each in messages
        if each.get("role") != "tool" and not each.get("tool_calls")
    )
    return all(each.strip() in text for each in said if isinstance(each, str))


def _messages(
    messages: Sequence[dict[str, Any]], *, parse: bool = True
) -> tuple[list[dict[str, Any]], bool]:
    """Copies in the shape that templates take: no content is "", the arguments of calls, which
    clients send as JSON text, are objects where they are; and whether any of them were."""
    shaped, parsed = [], False
    for message in messages:
        message = dict(message)
        if message.get("content") is None:
            message["content"] = ""
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [_call(call) if parse else call for call in calls]
            parsed = parsed or message["tool_calls"] != calls
        shaped.append(message)
    return shaped, parsed


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _source(function: Any) -> str:
    """The source of a template that is written in Python; "" when there is none to be read."""
    try:
        target = function if inspect.isfunction(function) else type(function)
        return inspect.getsource(inspect.getmodule(target) or target)
    except (OSError, TypeError):
        return ""


def _parameters(function: Any) -> frozenset[str]:
    """The names that a function gives its parameters; that of `**kwargs` is "kwargs"."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(
        "kwargs" if each.kind is inspect.Parameter.VAR_KEYWORD else each.name for each in parameters
    )


def _does_not_compile(where: str) -> InvalidValue:
    return InvalidValue(
        f"The model's chat template does not compile ({where}). The fault is in the model's files, "
        "chat_template.jinja or tokenizer_config.json, and not in the request: mend the template "
        "or get another build of the model. /v1/completions works without it.",
        param="messages",
    )


def _rejected(detail: str) -> InvalidValue:
    why = f": {detail}" if detail else ""
    return InvalidValue(f"The model's chat template rejected the messages{why}.", param="messages")
