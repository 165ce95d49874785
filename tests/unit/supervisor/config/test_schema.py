"""supervisor.config.schema: the documented keys and their defaults."""

from __future__ import annotations

from types import MappingProxyType

import msgspec
import pytest

from supervisor.config import settings as config_module
from supervisor.config.schema import NOT_YET, Config, ModelSettings
from tests.helpers.config_files import SCHEMA, SECTIONS, SUPPORTED, TWO, documented, parse


def test_the_fields_are_the_documented_keys() -> None:
    fields = {f"{name}.{key}" for name, cls in SECTIONS.items() for key in cls.__struct_fields__}
    assert fields == documented().keys()


@pytest.mark.parametrize("key", documented())
def test_the_default_is_the_documented_one(key: str) -> None:
    # The schema's model is an example: these two differ from the defaults, and source has none.
    expected = documented() | {"models.*.aliases": [], "models.*.preload": False}
    section, name = key.rsplit(".", 1)
    value = getattr(
        ModelSettings(source="x") if section == "models.*" else SECTIONS[section](), name
    )
    if key != "models.*.source":
        assert (list(value) if isinstance(value, tuple) else value) == expected[key]


@pytest.fixture
def everything_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The day on which NOT_YET is empty."""
    monkeypatch.setattr(config_module, "NOT_YET", MappingProxyType({}))


@pytest.mark.usefixtures("everything_supported")
def test_the_documented_file_loads_as_the_defaults() -> None:
    config = parse(SCHEMA)
    coder = ModelSettings(
        source="mlx-community/Qwen2.5-Coder-32B-Instruct-4bit",
        aliases=("default", "coding"),
        preload=True,
    )
    assert config == Config(models={"coder": coder})


def test_every_key_is_supported_or_refused() -> None:
    assert SUPPORTED.isdisjoint(NOT_YET)
    assert SUPPORTED | NOT_YET.keys() == documented().keys()


def test_settings_survive_the_way_to_another_process() -> None:
    config = parse('[server]\nport = 0\n[models.a]\nsource = "x"\naliases = ["b"]\nenv = {K = "v"}')
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().server.port = 1  # type: ignore[misc]


@pytest.mark.usefixtures("everything_supported")
def test_sizes_are_available_in_bytes() -> None:
    text = '[server]\nmax_body = "1MiB"\n[models.a]\nsource = "x"\nmemory = "2GB"\n'
    config = parse(text + 'kv_budget = "3GB"\nprompt_cache = "0MB"\n[models.b]\nsource = "x"')
    a, b = config.models["a"], config.models["b"]
    assert config.server.max_body_bytes == 2**20
    assert (a.memory_bytes, b.memory_bytes) == (2 * 10**9, None)
    assert (a.kv_budget, a.prompt_cache) == ("3GB", "0MB")


@pytest.mark.parametrize(
    ("budget", "size"), [("auto", None), ("96GB", 96 * 10**9), ("75%", 96), ("12.5%", 16)]
)
def test_a_budget_may_be_a_share_of_the_ram(budget: str, size: int | None) -> None:
    memory = parse(f'[memory]\nbudget = "{budget}"').memory
    assert memory.budget_bytes(physical=128) == size


def test_names_lead_to_their_models() -> None:
    assert parse(TWO).names() == {"a": "a", "one": "a", "org/b:8b": "org/b:8b"}
