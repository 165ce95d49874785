"""worker.engine.pooling: which models make embeddings, by their files."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.tiny_embedding import make_embedding, say
from worker.engine.pooling import NoEmbeddings, pooling_of


def refusal(folder: Path) -> str | None:
    """Why the model in `folder` makes no embeddings; None = it does."""
    try:
        pooling_of(folder)
    except NoEmbeddings as error:
        return str(error)
    return None


def test_what_the_files_may_say(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for pooling, read in (("lasttoken", "last"), ("mean_tokens", "mean")):
        say(folder, pooling)
        assert pooling_of(folder) == read
    for pooling in ("cls_token", "max_tokens", "none_at_all"):
        say(folder, pooling)
        assert "pooling" in str(refusal(folder))
    say(folder, "lasttoken", pooling_mode_mean_tokens=True)
    assert "lasttoken and mean" in str(refusal(folder)).replace("mean_tokens", "mean")
    say(folder, "none", pooling_mode="lasttoken")  # as newer versions write it
    assert refusal(folder) is None
    for key, value in (("is_causal", False), ("use_bidirectional_attention", True)):
        (folder / "config.json").write_text(json.dumps({key: value}))
        assert "both ways" in str(refusal(folder))
    (folder / "config.json").write_text(json.dumps({"is_causal": True}))
    assert refusal(folder) is None
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "Dense" in str(refusal(folder))
    (folder / "modules.json").unlink()
    assert refusal(folder) is None
    (folder / "1_Pooling" / "config.json").write_text("no JSON")
    assert refusal(folder) is not None
    assert refusal(tmp_path / "absent") is not None


def test_a_conversion_without_the_files_is_known_by_name_and_tokenizer(tmp_path: Path) -> None:
    named, other = tmp_path / "Qwen3-Embedding-tiny", tmp_path / "chat"
    for folder, appended, supported in (
        (named, True, True),
        (named, False, False),
        (other, True, False),
    ):
        make_embedding(folder, appended=appended)
        (folder / "modules.json").unlink()
        (folder / "1_Pooling" / "config.json").unlink()
        # The name of the folder that pytest makes must not say it.
        assert "embed" not in str(tmp_path).lower()
        assert (refusal(folder) is None) is supported
