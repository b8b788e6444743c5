"""Documents in plain text: runs of lines between blank ones, or each line."""

from __future__ import annotations

from array import array
from dataclasses import replace

from adapterlab.data.formats import Parsed

WAYS = ("auto", "blank_lines", "lines")


def join_lines(parsed: Parsed, how: str) -> Parsed:
    """Make documents of a txt file's lines; a document's place is its first line's. Blank lines are left out.

    Args:
        parsed: the lines, blank ones among them.
        how: "blank_lines", "lines", or "auto": blank lines part documents if there are any between others.
    """
    lines = parsed.columns["text"]
    texts: list[str] = []
    places = array("q")
    together = how != "lines" and (how == "blank_lines" or are_parted(lines))
    goes_on = False
    for line, place in zip(lines, parsed.places, strict=True):
        if not line.strip():
            goes_on = False
        elif goes_on:
            texts[-1] += f"\n{line}"
        else:
            texts.append(line)
            places.append(place)
            goes_on = together
    return replace(parsed, columns={"text": texts}, places=places)


def are_parted(lines: list[str]) -> bool:
    """Whether blank lines stand between others."""
    filled = [bool(line.strip()) for line in lines]
    return True in filled and False in filled[filled.index(True) : len(filled) - filled[::-1].index(True)]
