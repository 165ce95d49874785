"""Endpoints of other servers' APIs that this version lacks. Data, and a look-up.

They are refused as such and not as unknown paths: to many clients a 404 says that the model does
not exist (Claude Code), or that the whole server is unfit (LiteLLM).
"""

from __future__ import annotations

from collections.abc import Mapping

OPENAI = (
    *("/assistants", "/audio", "/batches", "/chat/completions", "/chatkit", "/completions"),
    *("/containers", "/conversations", "/edits", "/embeddings", "/engines", "/evals", "/files"),
    *("/dashboard", "/deployments", "/traces", "/usage"),
    *("/fine_tuning", "/fine-tunes", "/images", "/moderations", "/organization", "/projects"),
    *(
        "/openai",
        "/realtime",
        "/responses",
        "/skills",
        "/threads",
        "/uploads",
        "/vector_stores",
        "/videos",
    ),
)
ANTHROPIC = ("/complete", "/messages/batches", "/organizations")
LOCAL = (
    # LM Studio, KoboldCpp
    *("/api/extra", "/api/latest", "/api/v0", "/api/v1"),
    # llama.cpp
    *("/apply-template", "/completion", "/detokenize", "/embedding", "/infill", "/lora-adapters"),
    *("/props", "/rerank", "/reranking", "/slots", "/tokenize"),
    # vLLM, SGLang, text-generation-inference, text-generation-webui
    *("/classify", "/generate", "/generate_stream", "/info", "/internal", "/invocations", "/load"),
    *("/ping", "/pooling", "/score", "/server_info", "/version"),
    *("/chat_tokenize", "/flush_cache", "/get_model_info", "/get_server_info", "/health_generate"),
    *("/is_sleeping", "/load_lora_adapter", "/model_info", "/reset_prefix_cache", "/sleep"),
    *("/tokenizer_info", "/unload_lora_adapter", "/v2/embed", "/wake_up"),
    # TabbyAPI, LiteLLM's proxy
    *("/lora", "/model", "/token"),
    # Everybody's
    "/metrics",
)
BULKHEAD = ("/admin/logs", "/ui")
BY_HAND = {
    "/api/blobs": "Models come from folders and from the Hugging Face cache",
    "/api/copy": "To serve a model under another name too, add to its `aliases` in the "
    "configuration",
    "/api/create": "To serve another model, name it under [models] in the configuration or with "
    "`bulkhead serve --model NAME=SOURCE`",
    "/api/delete": "`bulkhead unload NAME` gives its memory back, and `hf cache rm` its disk",
    "/api/push": "Models are published with `hf upload`",
}
"""Endpoints of Ollama's that change what there is, which no request does here, and what does."""
_ALL = {
    **dict.fromkeys(OPENAI, "OpenAI's API"),
    **dict.fromkeys(ANTHROPIC, "Anthropic's API"),
    **dict.fromkeys(LOCAL, "other local servers"),
    **dict.fromkeys(BULKHEAD, "a later version of Bulkhead"),
    "/v2/rerank": "other local servers",
}


def lacking(path: str) -> str | None:
    """Whose the endpoint is, with or without `/v1` before it; None for one that nobody has."""
    return _longest(path, _ALL)


def by_hand(path: str) -> str | None:
    """What is done instead of asking that endpoint; None where that is not known."""
    return _longest(path, BY_HAND)


def _longest(path: str, known: Mapping[str, str]) -> str | None:
    parts = path.removeprefix("/v1").split("/")
    for length in range(2, len(parts) + 1):
        if (found := known.get("/".join(parts[:length]))) is not None:
            return found
    return None
