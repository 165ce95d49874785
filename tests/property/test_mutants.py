"""tests.property.mutants: which survivors are new, and how they are known."""

from __future__ import annotations

import pytest

from tests.property.mutants import JUDGED, compare, identify, read_judged

DIFF = """\
--- supervisor/scheduler/plan.py
+++ supervisor/scheduler/plan.py
@@ -7,3 +7,3 @@
     left = list(tenants)
-    if size <= free:
+    if size < free:
         return
"""


def test_a_mutant_is_known_by_its_function_and_its_line_wherever_that_is() -> None:
    name = "plan.Capacity.fits_now: if size <= free: → if size < free:"
    assert identify("plan", "Capacity.fits_now", DIFF) == name
    assert identify("plan", "Capacity.fits_now", DIFF.replace("-7,3", "-9,3")) == name


def test_a_line_that_is_gone_and_lines_that_were_several_are_one_name() -> None:
    diff = "--- f\n+++ f\n@@ -1,3 +1,2 @@\n (\n-    a,\n-    b,\n+    a,\n )"
    assert identify("m", "f", diff) == "m.f: a, b, → a,"


def test_survivors_without_a_judgement_and_judgements_without_a_survivor_are_told() -> None:
    survivors = {"b": "", "a": "", "known": ""}
    assert compare(survivors, ["gone", "known"]) == (["a", "b"], ["gone"])
    assert compare({"known": ""}, ["known"]) == ([], [])


def test_the_list_can_be_read_and_judges_nothing_twice() -> None:
    assert read_judged(JUDGED.read_text())
    with pytest.raises(ValueError, match="twice"):
        read_judged('judged = [{why = "", mutants = ["a"]}, {why = "", mutants = ["a"]}]')
