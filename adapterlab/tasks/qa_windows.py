"""Windows of long contexts: a question and as much of the context as fits, overlapping, with the answer's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adapterlab.errors import BackboneError


class QAWindows:
    """Encodes batches of rows; a window is question, context or a part of it, and the token for "no answer".

    Args:
        tokenizer: a fast one.
        limit: tokens of a window at most.
        stride: tokens of the context that two windows share.

    Raises:
        BackboneError: the tokenizer is a slow one.
    """

    def __init__(self, tokenizer: Any, limit: int, stride: int) -> None:
        if not tokenizer.is_fast:
            raise BackboneError(
                f"qa needs a fast tokenizer, which knows where in the text a token stands; {type(tokenizer).__name__} "
                "isn't one. Take a backbone that has one: most do."
            )
        self.tokenizer, self.limit, self.stride = tokenizer, limit, stride
        self.special = tokenizer.num_special_tokens_to_add(pair=True)
        # BERT's first token stands for "no answer". A GPT's sees nothing; there a token at the end does.
        self.closes = tokenizer.cls_token_id is None
        self.closing = tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id

    def without_room(self, questions: Sequence[str]) -> list[int]:
        """Return the places of questions that leave no more tokens for the context than windows share."""
        lengths = map(len, self.tokenizer(self._apart(questions), add_special_tokens=False, verbose=False)["input_ids"])
        most = self.limit - self.special - self.closes - self.stride
        return [place for place, length in enumerate(lengths) if length >= most]

    def encode(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """Return the windows of some rows; where each token stands in the context is in `_begins` and `_ends`."""
        encoded = self.tokenizer(
            self._apart(batch["question"]),
            batch["context"],
            truncation="only_second",
            max_length=self.limit - self.closes,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        columns: dict[str, list[Any]] = {key: [list(ids) for ids in values] for key, values in encoded.items()}
        columns |= {"_row": [indices[row] for row in rows], "_begins": [], "_ends": [], "_null": []}
        for window, spans in enumerate(offsets):
            inside = [part == 1 for part in encoded.sequence_ids(window)]
            columns["_begins"].append(_small([a if here else -1 for (a, _), here in zip(spans, inside, strict=True)]))
            columns["_ends"].append(_small([b if here else -1 for (_, b), here in zip(spans, inside, strict=True)]))
            columns["_null"].append(self._null(columns, window))
        if "answers" in batch:
            places = [self._place(columns, window, batch["answers"][row]) for window, row in enumerate(rows)]
            columns["start_positions"] = [start for start, _ in places]
            columns["end_positions"] = [end for _, end in places]
        return columns

    def _apart(self, questions: Sequence[str]) -> list[str]:
        end = "\n" if self.tokenizer.sep_token_id is None else ""
        return [question + end for question in questions]

    def _null(self, columns: dict[str, list[Any]], window: int) -> int:
        ids = columns["input_ids"][window]
        if not self.closes:
            return ids.index(self.tokenizer.cls_token_id)
        if columns["_begins"][window][-1] >= 0:  # T5's ends in a token of its own already
            for key in columns.keys() & {"input_ids", "attention_mask", "token_type_ids"}:
                columns[key][window].append(self.closing if key == "input_ids" else columns[key][window][-1])
            columns["_begins"][window] = _small([*columns["_begins"][window], -1])
            columns["_ends"][window] = _small([*columns["_ends"][window], -1])
        return len(ids) - 1

    def _place(self, columns: dict[str, list[Any]], window: int, answers: list[dict[str, Any]]) -> tuple[int, int]:
        """Return the first and last token of the first answer, or the "no answer" token if it isn't all there."""
        begins, ends, null = columns["_begins"][window], columns["_ends"][window], columns["_null"][window]
        inside = np.flatnonzero(begins >= 0)
        if not answers or not len(inside):
            return null, null
        start = answers[0]["start"]
        end = start + len(answers[0]["text"])
        if begins[inside[0]] > start or ends[inside[-1]] < end:
            return null, null
        return int(inside[ends[inside] > start][0]), int(inside[begins[inside] < end][-1])


def _small(numbers: list[int]) -> np.ndarray[Any, Any]:
    return np.array(numbers, dtype=np.int32)  # Arrow's default would take twice the room, for each token of each window
