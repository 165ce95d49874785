"""supervisor.models.hub: the Hugging Face cache, and which snapshot of a repo is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.models.hub import choose, hub_dir, repo_dir, state_of
from tests.helpers.hub_cache import add_repo, plain_files, safetensors


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/o", "HF_HOME": "/b"}, "/o"),
        ({"HF_HUB_CACHE": "", "HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/huggingface/hub"),
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "HF_HOME": "~/hf"}, "/h/hf/hub"),
    ],
)
def test_hub_dir_follows_huggingface_hub(environ: dict[str, str], expected: str) -> None:
    assert hub_dir(environ) == Path(expected)


def test_what_a_choice_depends_on_changes_with_it(tmp_path: Path) -> None:
    repo = repo_dir(tmp_path, "org/m")
    states = []
    add_repo(tmp_path, "org/m", commit="aaa", mtime=1000)
    states.append(state_of(repo))
    assert state_of(repo) == states[0]
    add_repo(tmp_path, "org/m", commit="bbb", ref=None, mtime=2000)
    states.append(state_of(repo))
    (repo / "refs" / "main").write_text("bbb")
    states.append(state_of(repo))
    (repo / "blobs" / "x.incomplete").write_bytes(b"")
    states.append(state_of(repo))
    assert len({tuple(state) for state in states}) == 4


def test_a_snapshot_that_lacks_weights_is_passed_for_a_complete_one(tmp_path: Path) -> None:
    older = add_repo(tmp_path, "org/m", commit="aaa", mtime=1000)
    half = plain_files(model=None) | {"model-00001-of-00002.safetensors": safetensors()}
    newer = add_repo(tmp_path, "org/m", half, commit="bbb", mtime=2000)
    choice = choose(repo_dir(tmp_path, "org/m"))
    assert choice is not None
    assert (choice.folder, choice.passed) == (older, newer)
    assert "model-00002-of-00002.safetensors is missing" in choice.passed_why
    named = choose(repo_dir(tmp_path, "org/m"), "bbb")
    assert named is not None
    assert named.folder == newer
