"""Entity markers: put around two spans of a text, however these overlap, and kept when texts are cut."""

from __future__ import annotations

from collections.abc import Sequence

from adapterlab.tasks.alignment import Range


def mark(text: str, spans: Sequence[Range], markers: Sequence[tuple[str, str]]) -> str:
    """Return the text with an opening and a closing marker around each span.

    Where several markers come together, what ends is closed before what begins is opened, and spans inside others stay
    inside. An opening marker goes before the blank in front of its word: byte-level tokenizers read the two as one.
    """
    events: list[tuple[int, int, int, str]] = []
    for (start, end), (opening, closing) in zip(spans, markers, strict=True):
        place = start - 1 if start and text[start - 1] == " " else start
        events.append((place, 1, -end, opening))
        events.append((end, 0, -start, closing))
    same = len(spans) == 2 and spans[0] == spans[1]
    if same:  # [E1][E2]x[/E2][/E1]
        events[1], events[3] = events[3], events[1]
    parts, last = [], 0
    for place, _, _, marker in sorted(events, key=lambda event: event[:3]):
        parts += [text[last:place], marker]
        last = place
    return "".join([*parts, text[last:]])


def window_around(marks: Sequence[int], inside: Sequence[bool], limit: int) -> list[int] | None:
    """Return which tokens to keep so that no more than `limit` are left, with all marks and what is about them.

    Args:
        marks: the markers' places.
        inside: for each token whether it is of the text; the others (the tokenizer's own) are kept.
        limit: tokens at most.

    Returns:
        the places of those kept, or None where the marks lie too far apart.
    """
    text = [place for place, of_text in enumerate(inside) if of_text]
    room = limit - (len(inside) - len(text))
    if len(text) <= room:
        return list(range(len(inside)))
    low, high = text.index(min(marks)), text.index(max(marks)) + 1
    if high - low > room:
        return None
    start = max(0, low - (room - (high - low)) // 2)
    end = min(len(text), start + room)
    kept = set(text[max(0, end - room) : end])
    return [place for place, of_text in enumerate(inside) if not of_text or place in kept]
