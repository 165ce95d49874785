"""A server's `/health` as docs/cli.md shows it.

`python -m tests.helpers.status_example` prints what the commands make of it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from supervisor.cli.health import Health
from supervisor.cli.views import models_lines, status_lines

LONG = "mlx-community/Qwen3-Coder-480B-A35B-Instruct-4bit-DWQ"
_GB = 10**9
_ANSWER: dict[str, Any] = {
    "status": "ok",
    "version": "0.1.0",
    "memory": {
        "budget_bytes": 460 * _GB,
        "charged_bytes": 324_500_000_000,
        "physical_bytes": 512 * _GB,
        "used_percent": 61.4,
        "level": "normal",
        "spare": "ready",
    },
    "cached_models": [
        {
            "name": LONG,
            "state": "ready",
            "generation": 1,
            "use_count": 41,
            "memory_bytes": 281_300_000_000,
            "charge_bytes": 297_100_000_000,
            "in_flight": 3,
            "queued": 1,
            "tokens_per_second": 18.6,
            "prefill": {"done_tokens": 8192, "total_tokens": 12_288},
            "pinned": True,
        },
        {
            "name": "coder",
            "state": "loading",
            "generation": 2,
            "use_count": 7,
            "memory_bytes": 9_100_000_000,
            "charge_bytes": 27_200_000_000,
            "queued": 2,
            "loading": {"done_bytes": 8_600_000_000, "total_bytes": 18_400_000_000},
            "deaths": 1,
        },
    ],
    "models": [
        {
            "name": LONG,
            "source": LONG,
            "aliases": ["big"],
            "state": "ready",
            "measured": 270_400_000_000,
            "charge_bytes": 297_100_000_000,
            "next_charge_bytes": 297_100_000_000,
            "next_charge_source": "measured",
            "context": 262_144,
            "pinned": True,
        },
        {
            "name": "coder",
            "source": "mlx-community/Qwen2.5-Coder-32B-Instruct-4bit",
            "aliases": ["default", "coding"],
            "state": "loading",
            "charge_bytes": 27_200_000_000,
            "next_charge_bytes": 27_200_000_000,
            "next_charge_source": "estimated",
            "context": 32_768,
            "deaths": 1,
        },
        {
            "name": "mine",
            "source": "/models/mine",
            "state": "failed",
            "reason": "'/models/mine' is incomplete: there are no *.safetensors files in it",
        },
        {
            "name": "small",
            "source": "demo",
            "state": "cold",
            "next_charge_bytes": 757_000_000,
            "next_charge_source": "estimated",
            "context": 65536,
        },
    ],
}
HEALTH: Health = msgspec.convert(_ANSWER, Health)


def blocks() -> list[str]:
    """The outputs, in the order of the page."""
    views = (status_lines(HEALTH, 80), models_lines(HEALTH, 80), status_lines(HEALTH, None))
    return ["".join(f"{line.plain}\n" for line in view) for view in views]


if __name__ == "__main__":
    print("\n".join(blocks()))
