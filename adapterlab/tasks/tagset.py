"""The tags of a data set: which labels they hold, which of them can't be, and how much each counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from adapterlab.errors import ConfigError, DataError, did_you_mean
from adapterlab.tasks.schemes import IO, OUTSIDE, PLAIN, faults, is_entity_tags, label_of

if TYPE_CHECKING:
    from datasets import Dataset

SHOWN = 8  # so many labels at most in a message


def check_alike(rows: Dataset) -> None:
    """Refuse rows that are of several kinds, which the data floor could hold as text only.

    Raises:
        DataError: some have tags and some have spans, or some have words and some a text.
    """
    for text, tags in zip(rows["text"], rows["tags"], strict=True):
        if isinstance(tags, str) or (isinstance(text, str) and tags and isinstance(tags[0], str)):
            raise DataError(
                "some rows have texts with spans and others have words with tags; put them into files of their own, "
                "and take one kind for train, the other (if you like) for eval or test."
            )


def find_labels(rows: Dataset, scheme: str) -> list[str]:
    """Return the labels of train: of entities, or the plain tags.

    Raises:
        DataError: there are too few, or tags that the scheme doesn't know.
    """
    kinds = _kinds(rows, scheme)
    if strangers := [tag for tag in kinds if _label(tag, scheme) is None]:
        raise DataError(
            f"train has tags that {scheme} doesn't know: {some(strangers)}. Mend them, or say how tags are meant: "
            "task.scheme=io (entities without B- and I-) or task.scheme=plain (no entities)."
        )
    found = sorted({label for tag in kinds if (label := _label(tag, scheme))})
    if len(found) < (2 if scheme == PLAIN else 1):
        what = f"only one tag, {some(found)}," if found else "no entity"
        raise DataError(f"train has {what} in {len(rows):,} rows: there is nothing to learn. Is data.columns right?")
    return found


def check_tags(rows: Dataset, name: str, scheme: str, labels: Sequence[str], source: str) -> None:
    """Refuse rows, called `name`, with tags that `source` (of the labels) doesn't have.

    Raises:
        DataError: there are some.
    """
    known = {str(_label(tag, "iob2" if is_entity_tags(labels) else PLAIN)) for tag in labels}
    if strangers := [tag for tag in _kinds(rows, scheme) if _label(tag, scheme) not in known]:
        raise DataError(
            f"{name} holds tags that {source} doesn't have: {some(strangers)}.{did_you_mean(strangers[0], labels)} "
            f"{source} has: {some(sorted(known - {''}))}. Mend the tags, or leave those rows out."
        )


def invalid(rows: Dataset, scheme: str, locate: Callable[[list[int]], str]) -> str:
    """Say which rows have tags where the scheme doesn't allow them; "" if none has."""
    every = list(rows["tags"])
    wrong = {
        row: places
        for row, tags in enumerate(every)
        if tags and isinstance(tags[0], str) and (places := faults(tags, scheme))
    }
    if not wrong:
        return ""
    row, places = next(iter(wrong.items()))
    return (
        f"{len(wrong):,} rows have tags that {scheme} doesn't allow where they stand (e.g. {every[row][places[0]]} as "
        f"tag {places[0] + 1}; {locate(list(wrong))}); an inner tag that continues nothing was read as the beginning "
        "of an entity."
    )


def weigh(given: str | Mapping[str, float] | None, counts: Mapping[str, int], labels: Sequence[str]) -> list[float]:
    """Return how much each tag counts, as the option `class_weights` says; [] if all count the same.

    Raises:
        ConfigError: weights of unknown tags, or unusable ones.
    """
    if given is None:
        return []
    if isinstance(given, str):  # "balanced"
        there = [counts[tag] for tag in labels if counts.get(tag)]
        return [sum(there) / (len(there) * counts[tag]) if counts.get(tag) else 1.0 for tag in labels]
    shorter = {tag: tag[2:] if is_entity_tags(labels) and tag != OUTSIDE else tag for tag in labels}
    names = {*labels, *shorter.values()}
    if strangers := [name for name in given if name not in names]:
        raise ConfigError(
            f"task.class_weights: train has no {some(strangers)}.{did_you_mean(strangers[0], names)} It has: "
            f"{some(sorted(names))}."
        )
    if wrong := {name: weight for name, weight in given.items() if not 0 <= weight < float("inf")}:
        raise ConfigError(f"task.class_weights: weights are numbers from 0 on, and {wrong} was given.")
    return [given.get(tag, given.get(shorter[tag], 1.0)) for tag in labels]


def some(names: Sequence[str]) -> str:
    """List names, the first of them if there are many."""
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN:,} more" if len(names) > SHOWN else shown


def _kinds(rows: Dataset, scheme: str) -> list[str]:
    """Return the different tags of rows, as the scheme writes them; a span's is that of its first word."""
    prefix = "" if scheme in (IO, PLAIN) else "B-"
    every = (tag if isinstance(tag, str) else f"{prefix}{tag['label']}" for tags in rows["tags"] for tag in tags)
    return list(dict.fromkeys(every))


def _label(tag: str, scheme: str) -> str | None:
    return tag if scheme == PLAIN else label_of(tag, scheme)
