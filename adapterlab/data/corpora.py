"""Corpora larger than memory: a stream's rows as documents, each with the place that reading can go on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from adapterlab.data.documents import are_parted
from adapterlab.data.stream import Stream
from adapterlab.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from adapterlab.data.columns import RowSchema

_BUFFER = 1000  # rows that are shuffled together
_LOOKED_AT = 2000  # lines that tell whether blank ones part documents
_LONGEST = 1_000_000  # characters of a document that is joined of lines; what is longer goes on as another


class Corpus:
    """The documents of a stream, one pass after the other.

    Rows are shuffled in blocks, anew in each pass; the lines of a txt whose documents take several keep their order.

    Args:
        addresses: files, see `Stream`.
        schema: the task.
        column: the files' column with the text.
        encoding: of the files; None detects it.
        bad_rows: "refuse" raises on a row with no text, "drop" leaves it out.
        seed: of the shuffling.

    Raises:
        DataError: see `Stream`; or there is no such column.
    """

    def __init__(
        self,
        addresses: str | list[str],
        schema: RowSchema,
        column: str,
        encoding: str | None = None,
        bad_rows: str = "refuse",
        seed: int = 0,
    ) -> None:
        self.schema, self.column, self.bad_rows = schema, column, bad_rows
        stream = Stream(addresses, encoding, bad_rows)
        if column not in stream.columns:
            raise DataError(
                f"the corpus has no column '{column}' for the text.{did_you_mean(column, stream.columns)} Its columns: "
                f"{', '.join(map(repr, stream.columns))}. Say which one it is: data.columns.text=COLUMN"
            )
        self.joins = False
        if stream.is_plain and schema.documents != "lines":
            head = [row["text"] for row in islice(stream, _LOOKED_AT)]
            self.joins = schema.documents == "blank_lines" or are_parted(head)
        self.stream = Stream(addresses, encoding, bad_rows, shuffle=0 if self.joins else _BUFFER, seed=seed)
        order = "in their order" if self.joins else f"shuffled in blocks of {_BUFFER:,} rows"
        self.notes = [*self.stream.notes, f"The corpus is streamed, its documents {order}."]

    def documents(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the documents of one pass, each with the state to restore for it to be the next one.

        Raises:
            DataError: a row can't be used; the message names file and line.
        """
        before, lines, length = self.stream.state(), [], 0
        for row in self.stream:
            text = self._text(row)
            if self.joins and text is not None:
                lines.append(text)
                length += len(text)
                if length < _LONGEST:
                    continue
            if lines:
                yield before, "\n".join(lines)
                lines, length = [], 0
            elif text is not None:
                yield before, text
            before = self.stream.state()
        if lines:
            yield before, "\n".join(lines)

    def head(self, count: int) -> list[str]:
        """Return the first documents, up to so many; the corpus stands where it stood then."""
        before = self.stream.state()
        found = [text for _, text in islice(self.documents(), count)]
        self.stream.restore(before)
        return found

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where a document began.

        Raises:
            DataError: the files aren't what they were.
        """
        self.stream.restore(state)

    def _text(self, row: Mapping[str, Any]) -> str | None:
        try:
            text = self.schema.clean("text", row.get(self.column))
        except ValueError as error:
            raise DataError(f"{self.stream.place}, column '{self.column}' as text: {error}") from error
        if text is None and not self.stream.is_plain and self.bad_rows != "drop":
            raise DataError(
                f"{self.stream.place} has no text in column '{self.column}'. Mend it, or set data.bad_rows=drop to "
                "leave such rows out."
            )
        return None if text is None else str(text)
