"""The configuration as it is documented, and ways to read one."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import pytest

from supervisor.config.flags import Overrides
from supervisor.config.rules import ConfigError
from supervisor.config.schema import (
    Config,
    MemorySettings,
    ModelSettings,
    RecoverySettings,
    ServerSettings,
)
from supervisor.config.settings import from_tree

# The documented schema, every key with its default.
SCHEMA = """
[server]
host = "127.0.0.1"
port = 11435
api_keys_file = ""
allowed_hosts = [
    "localhost", "localhost.", "127.0.0.1", "::1",
    "host.docker.internal", "host.containers.internal",
]
allowed_origins = []
default_model = ""
hold_seconds = 240
max_requests = 0
max_body = "64MB"
max_queue_bytes = "256MB"
metrics = true

[memory]
budget = "auto"
warn = 0.85
high = 0.95
critical = 0.98
keep = 1
max_loaded = 0
cleanup_interval = 600
policy = "gdsf"
min_residency = "auto"
max_wait = "auto"
drain_seconds = 120
load_stall_seconds = 120
load_gate = "shared"
load_gate_timeout = 120
spare = true
prefill_gate = false

[recovery]
mode = "resume"
max_recoveries = 2
stall_seconds = 60
max_restarts = 3
restart_window = 60
backoff_max = 300

[models.coder]
source = "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit"
aliases = ["default", "coding"]
preload = true
pin = false
ttl = 0
memory = "auto"
max_concurrency = 0
max_queue = 1024
context = 0
kv_budget = "auto"
prompt_cache = "auto"
fallback = ""
python = ""
env = {}
trust_remote_code = false
draft = ""
adapter = ""
"""

SUPPORTED = {
    *(f"server.{key}" for key in ("host", "port", "api_keys_file", "allowed_hosts")),
    *(f"server.{key}" for key in ("allowed_origins", "default_model", "hold_seconds", "max_body")),
    "server.max_queue_bytes",
    "server.max_requests",
    *(f"memory.{key}" for key in MemorySettings.__struct_fields__),
    *(f"recovery.{key}" for key in RecoverySettings.__struct_fields__),
    *(f"models.*.{key}" for key in ("source", "aliases", "preload", "max_concurrency")),
    *(f"models.*.{key}" for key in ("max_queue", "context", "env", "pin", "ttl", "memory")),
    "models.*.fallback",
    "models.*.kv_budget",
}
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "server": ServerSettings,
    "memory": MemorySettings,
    "recovery": RecoverySettings,
    "models.*": ModelSettings,
}


def documented() -> dict[str, object]:
    tree = tomllib.loads(SCHEMA)
    tables = {**tree, "models.*": tree["models"]["coder"]}
    return {f"{name}.{key}": value for name in SECTIONS for key, value in tables[name].items()}


def parse(
    text: str, environ: dict[str, str] | None = None, overrides: Overrides | None = None
) -> Config:
    tree = tomllib.loads(text)
    return from_tree(tree, environ=environ or {}, overrides=overrides or Overrides())


def refusal(text: str, environ: dict[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ, Overrides(**flags))
    return str(caught.value)


TWO = '[models.a]\nsource = "x"\naliases = ["one"]\n[models."org/b:8b"]\nsource = "y"\n'
