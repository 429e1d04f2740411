"""What a result no longer says, because a kernel was rewritten after its commit."""

from __future__ import annotations

from collections.abc import Collection, Mapping

REPLACED: Mapping[str, tuple[int, int]] = {
    "54e6ae60acde451dea07814805496a876460532e": (17, 64),
}
"""By the commit of a CUDA result: the fewest and the most rows of the kernel rewritten since.

A rewrite is what changes a figure; code that was moved or checks more is none.
"""


def note(commit: str, rows: Collection[int], called: str) -> list[str]:
    """A paragraph for the page, with the empty line before it; nothing where all still holds.

    Args:
        commit: of a result on CUDA.
        rows: of x, that it was measured at.
        called: what its table calls them, such as ``M =``.
    """
    if commit not in REPLACED:
        return []
    fewest, most = REPLACED[commit]
    before = [str(one) for one in sorted(set(rows)) if fewest <= one <= most]
    if not before:
        return []
    show = "shows" if len(before) == 1 else "show"
    return [
        "",
        f"The kernel for {fewest} to {most} rows has been rewritten since: {called} "
        f"{' and '.join(before)} {show} the one before; plans of the present one were timed apart, "
        "below.",
    ]
