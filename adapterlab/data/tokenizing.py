"""Tokenising: texts longer than the limit are cut, read in overlapping windows or refused, never silently."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from adapterlab.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def tokenise(
    tokenizer: Any,
    texts: Sequence[Any],
    pairs: Sequence[Any] | None = None,
    *,
    max_length: int,
    long_texts: str = "cut",
    stride: int = 32,
    truncation: bool | str = True,
    **more: Any,
) -> dict[str, list[Any]]:
    """Tokenise a batch; `settle` then reports what happened to the long ones.

    Args:
        tokenizer: of transformers.
        texts: the batch's texts, or lists of words (with `is_split_into_words=True`).
        pairs: the second text of each.
        max_length: tokens in a row at most.
        long_texts: "window" makes a text longer than that several rows; "cut" and "refuse" cut it.
        stride: tokens that a window shares with the one before.
        truncation: which of two texts gives way, as in transformers.
        more: further arguments for the tokenizer.

    Returns:
        the tokenizer's columns, and with windows `row`, the number in the batch that each is of; else `cut`, whether
        each lost tokens.

    Raises:
        DataError: the tokenizer can't make windows, or the stride leaves them no room.
    """
    if long_texts == "window":
        return _windows(tokenizer, texts, pairs, max_length, stride, truncation, more)
    encoded = tokenizer(texts, pairs, truncation=truncation, max_length=max_length, **more)
    if encoded.encodings:  # a fast tokenizer knows what it cut off
        cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
    else:
        full = tokenizer(texts, pairs, truncation=False, verbose=False, **more)["input_ids"]
        cut = [len(ids) > max_length for ids in full]
    return {**encoded, "cut": cut}


def settle(
    encoded: Dataset,
    *,
    name: str,
    max_length: int,
    long_texts: str,
    locate: Callable[[Sequence[int]], str],
    what: str = "texts",
) -> tuple[Dataset, int, str | None]:
    """Take the `cut` column off encoded rows, and word what became of long texts.

    Args:
        encoded: rows that `tokenise` made; with windows, `row` must count from the split's first row by now.
        name: the split's.
        max_length: as there.
        long_texts: as there.
        locate: words where rows of the split stand (`Splits.locate`).
        what: what a row holds: texts, or pairs of them.

    Returns:
        the rows, how many lost tokens, and a note, if there is something to say.

    Raises:
        DataError: there are long texts and they are to be refused.
    """
    if long_texts == "window":
        several = [count for count in Counter(encoded["row"]).values() if count > 1]
        note = f"{name}: {len(several):,} texts longer than {max_length} tokens read in {sum(several):,} windows."
        return encoded, 0, note if several else None
    long = [row for row, cut in enumerate(encoded["cut"]) if cut]
    encoded = encoded.remove_columns("cut")
    if not long:
        return encoded, 0, None
    rows = len(encoded)
    if long_texts == "refuse":
        raise DataError(
            f"{name}: {len(long):,} of {rows:,} {what} have more than {max_length} tokens ({locate(long)}). Raise "
            "data.max_length as far as the backbone goes, shorten them, or set data.long_texts=cut."
        )
    share = f"{len(long) / rows:.1%}" if len(long) / rows >= 0.001 else "less than 0.1%"
    return encoded, len(long), f"{name}: {share} of {rows:,} {what} cut to {max_length} tokens (data.max_length)."


def identity(tokenizer: Any) -> str:
    """Return a digest of all that decides on a tokenizer's outcome, for `encode_rows`'s fingerprint."""
    parts: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "limit": tokenizer.model_max_length,
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }
    if tokenizer.is_fast:
        parts["tokenizer"] = json.loads(tokenizer.backend_tokenizer.to_str())
        for setting in ("truncation", "padding"):  # those of the last call
            parts["tokenizer"].pop(setting, None)
    else:
        parts["tokenizer"] = [tokenizer.get_vocab(), tokenizer.init_kwargs]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _windows(
    tokenizer: Any,
    texts: Sequence[Any],
    pairs: Sequence[Any] | None,
    max_length: int,
    stride: int,
    truncation: bool | str,
    more: dict[str, Any],
) -> dict[str, list[Any]]:
    if not tokenizer.is_fast:
        raise DataError(
            f"data.long_texts=window needs a fast tokenizer, and {type(tokenizer).__name__} is none; set it to cut."
        )
    special = tokenizer.num_special_tokens_to_add(pair=pairs is not None)
    if stride >= max_length - special:
        raise DataError(
            f"data.stride={stride} leaves windows of data.max_length={max_length} tokens, {special} of them special, "
            f"no room for anything new; make it less than {max_length - special}."
        )
    encoded = tokenizer(
        texts, pairs, truncation=truncation, max_length=max_length, stride=stride, return_overflowing_tokens=True,
        **more,
    )  # fmt: skip
    columns = dict(encoded)
    columns["row"] = columns.pop("overflow_to_sample_mapping")
    return columns
