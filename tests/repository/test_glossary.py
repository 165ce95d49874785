"""docs/glossary.md is sorted, and each word's module is there."""

from __future__ import annotations

import pytest

from tests.repository.test_docs import DOCS, ROOT, tables

HEAD, *ENTRIES = tables((DOCS / "glossary.md").read_text())[0]


def key(word: str) -> str:
    """Where a reader looks for it."""
    return word.casefold().replace("-", " ")


def test_it_is_one_table() -> None:
    assert HEAD == ["word", "meaning", "module"]
    assert len(tables((DOCS / "glossary.md").read_text())) == 1
    assert all(len(entry) == len(HEAD) and all(entry) for entry in ENTRIES)


def test_words_are_sorted_and_stand_once() -> None:
    words = [key(word) for word, _, _ in ENTRIES]
    assert words == sorted(set(words))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry[0]))
def test_the_module_is_there(entry: list[str]) -> None:
    path = ROOT / entry[2].strip("`")
    assert entry[2] == f"`{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}`"
    assert path.exists()
