"""`tests/unit/` mirrors the product: whoever changes a module finds its tests at once.

A module has a test file of its own, or is listed here with the tests that hold it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.repository.rooms import ROOT, source_files

UNIT = ROOT / "tests" / "unit"
WITNESSES: dict[str, tuple[str, ...]] = {
    # Shells around what is tested by itself: real processes show that they work.
    "gateway/main.py": ("process/test_processes.py",),
    "gateway/app.py": ("process/test_refusals.py", "process/test_serving.py"),
    "gateway/http/exchange.py": ("process/test_refusals.py",),
    "gateway/handlers/common.py": ("unit/gateway/handlers/test_completions.py",),
    "gateway/handlers/models.py": ("process/test_serving.py",),
    "gateway/handlers/openapi.py": ("process/test_openapi.py",),
    "supervisor/serve.py": ("process/test_processes.py",),
    "supervisor/api/control.py": ("process/test_admin.py", "process/test_bugs.py"),
    "supervisor/cli/main.py": ("process/test_cli.py",),
    "supervisor/cli/commands.py": ("process/test_commands.py",),
    "supervisor/cli/health.py": ("unit/supervisor/cli/test_views.py",),
    "supervisor/cli/output.py": ("process/test_views.py",),
    "supervisor/cli/selftest": ("process/test_selftest.py",),
    "supervisor/processes/child.py": ("unit/supervisor/processes/test_launcher.py",),
    "supervisor/processes/worker.py": ("unit/supervisor/processes/test_spare.py",),
    "worker/main.py": ("process/test_serving.py",),
    "worker/counting/main.py": ("process/test_counting.py",),
    # Values, which decide nothing.
    "gateway/grammars/faults.py": ("unit/gateway/grammars/test_lark.py",),
    "gateway/openai/schemas.py": ("process/test_openapi.py",),
    "gateway/responses/schemas.py": ("process/test_openapi.py",),
    "gateway/anthropic/blocks.py": ("unit/gateway/anthropic/test_messages.py",),
    "gateway/anthropic/known_tools.py": ("unit/gateway/anthropic/test_tools.py",),
    "gateway/anthropic/schemas.py": ("process/test_openapi.py",),
    "supervisor/units.py": ("unit/supervisor/test_build.py",),
    "supervisor/scheduler/death.py": ("unit/supervisor/crashes/test_diagnosis.py",),
    "supervisor/scheduler/effects.py": ("unit/supervisor/scheduler/test_pool.py",),
    "supervisor/wire/about.py": ("unit/supervisor/models/test_about.py",),
    "supervisor/wire/crash.py": ("unit/supervisor/crashes/test_store.py",),
    # Parts of one thing, which is tested as a whole.
    "gateway/grammars/patterns.py": ("unit/gateway/grammars/test_lark.py",),
    "gateway/grammars/rules.py": ("unit/gateway/grammars/test_lark.py",),
    "gateway/responses/output.py": ("unit/gateway/responses/test_render.py",),
    "gateway/document": ("process/test_openapi.py",),
    "gateway/relay/control.py": ("unit/gateway/relay/test_client.py",),
    "supervisor/machine/readers": ("unit/supervisor/machine/test_readers.py",),
    "supervisor/models/advice.py": ("unit/supervisor/models/test_sources.py",),
    "supervisor/models/estimate": ("unit/supervisor/models/test_estimate.py",),
    "supervisor/models/jsonfiles.py": ("unit/supervisor/models/test_sources.py",),
    "supervisor/wire/control_frames.py": ("unit/supervisor/wire/test_frames.py",),
    "supervisor/state/address.py": ("unit/supervisor/cli/test_client.py",),
    "worker/engine/generation.py": ("unit/worker/engine/test_batch.py",),
    "worker/engine/mlx_lm_expected.py": ("unit/worker/engine/test_mlx_lm_compat.py",),
    "worker/engine/rows.py": ("unit/worker/engine/test_decoding.py",),
    "worker/grammar/checker.py": ("unit/worker/grammar/test_schema.py",),
    "worker/grammar/compile.py": (
        "unit/worker/grammar/test_answer_constraint.py",
        "unit/worker/grammar/test_call_constraint.py",
    ),
    "worker/grammar/keywords.py": ("unit/worker/grammar/test_schema.py",),
    "worker/grammar/refusals.py": ("unit/worker/grammar/test_schema.py",),
    "worker/grammar/subschemas.py": ("unit/worker/grammar/test_schema.py",),
    "worker/output/parts.py": ("unit/worker/output/test_transcript.py",),
    "worker/output/token_bytes.py": ("unit/worker/engine/test_active_job.py",),
    "worker/output/tools": ("unit/worker/output/tools/test_answer_format.py",),
    "worker/prompt/encoder.py": ("unit/worker/prompt/test_template.py",),
    "worker/prompt/tokenizer.py": ("unit/worker/prompt/test_template.py",),
    "worker/demo": ("unit/worker/demo/test_demo.py", "unit/worker/demo/test_trainer.py"),
}
"""Modules and packages without a file of their own, and the tests that hold them."""
SUBJECTS = {
    "gateway/grammars/test_any_text.py": "any text is a grammar or a fault",
    "gateway/openai/test_any_body.py": "any JSON is a request that can be sent, or a 400",
    "supervisor/crashes/test_deaths.py": "the way of a death through all of the room",
    "supervisor/scheduler/test_complaints.py": "what users of other servers complained about",
    "supervisor/scheduler/test_keep_alive.py": "what requests say of their model's time",
    "supervisor/scheduler/test_user_settings.py": "every lever that users have",
    "worker/demo/test_wheel.py": "what is shipped of the demo",
    "worker/grammar/test_client_grammars.py": "answers under clients' expressions and grammars",
    "worker/demo/test_agents.py": "the demo behind what agents send",
    "worker/engine/test_gated_prefill.py": "prompts that wait for their turn on the GPU",
    "worker/engine/test_lent_embeddings.py": "embeddings and what is lent, beside requests",
    "worker/engine/test_faults.py": "what fails in one request, beside others that go on",
    "worker/engine/test_resume.py": "requests that are cut anywhere and resumed elsewhere",
}
"""Unit tests whose subject is more than one module."""


def mirror(module: Path) -> Path:
    """Where a module's unit tests stand."""
    inside = module.relative_to(ROOT)
    return UNIT / inside.parent / f"test_{inside.name}"


def has_tests(module: Path) -> bool:
    place = module.relative_to(ROOT).as_posix()
    listed = any(place == each or place.startswith(f"{each}/") for each in WITNESSES)
    return mirror(module).is_file() or listed


def has_module(test: Path) -> bool:
    """Whether a test file is named for a module, or for a module and one side of it."""
    inside = test.relative_to(UNIT)
    words = inside.stem.removeprefix("test_").split("_")
    names = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return any((ROOT / inside.parent / f"{name}.py").is_file() for name in names)


def test_a_module_has_its_tests() -> None:
    modules = [path for path in source_files() if path.name != "__init__.py"]
    assert modules
    assert [module for module in modules if not has_tests(module)] == []


def test_a_unit_test_is_where_its_module_is() -> None:
    witnesses = {test for tests in WITNESSES.values() for test in tests}
    tests = sorted(UNIT.rglob("test_*.py"))
    assert tests
    lost = [
        place
        for test in tests
        if not has_module(test)
        and f"unit/{(place := test.relative_to(UNIT).as_posix())}" not in witnesses
        and place not in SUBJECTS
    ]
    assert lost == []


@pytest.mark.parametrize("place", WITNESSES)
def test_a_witness_is_needed_and_there(place: str) -> None:
    assert (ROOT / place).exists()
    assert not (place.endswith(".py") and mirror(ROOT / place).exists())
    assert all((ROOT / "tests" / test).is_file() for test in WITNESSES[place])


@pytest.mark.parametrize("place", SUBJECTS)
def test_a_subject_is_there(place: str) -> None:
    assert (UNIT / place).is_file()


def test_a_module_without_tests_is_noticed() -> None:
    assert not has_tests(ROOT / "supervisor" / "attic.py")
    assert not has_module(UNIT / "supervisor" / "test_attic.py")
