"""docs/performance.md shows what records and benchmarks say, to the last digit."""

from __future__ import annotations

import json

from recipes.performance import PAGE, PENDING, ROOT, page, pending, unmeasured


def test_the_page_is_that_of_the_records() -> None:
    assert (ROOT / PAGE).read_text("utf-8") == page(ROOT), "run python -m recipes.performance"
    assert (ROOT / PENDING).read_text("utf-8") == pending(), "run python -m recipes.performance"


def test_what_was_not_measured_is_said_with_its_command() -> None:
    text = (ROOT / PAGE).read_text("utf-8")
    listed = json.loads((ROOT / PENDING).read_text("utf-8"))["unmeasured"]
    assert listed
    for one in listed:
        assert one == {"what": one["what"], "command": unmeasured(ROOT)[one["what"]]}
        assert f"{one['what']}: **unmeasured**; `{one['command']}`" in text
