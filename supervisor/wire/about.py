"""What is known of a model's files, for clients that choose by it. On the wire as JSON."""

from __future__ import annotations

import msgspec


class About(msgspec.Struct, frozen=True):
    """Of the files that are served, or would be. What they do not tell is 0 or ""."""

    size_bytes: int = 0
    """Of all files together."""
    modified: float = 0.0
    """When the newest of them changed, epoch seconds."""
    digest: str = ""
    """64 hexadecimal digits: the same as long as the files are the same."""
    architecture: str = ""
    """`model_type` of config.json."""
    parameters: int = 0
    """About so many."""
    quantization: str = ""
    """Such as "4bit" or "bf16"."""
    embedding_length: int = 0
    layers: int = 0
    embeds: bool = False
    """Whether it is made for embeddings."""
    template: str = ""
    """The chat template; "" where there is none."""
    tools: bool = False
    """Whether a template shows the model tools."""
    thinks: bool = False
    """Whether a template knows of thoughts."""
