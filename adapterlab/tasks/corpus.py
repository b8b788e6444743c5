"""What the tasks that learn from raw text share: documents to blocks, and the perplexity of held-out ones."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from adapterlab.data.corpora import Corpus
from adapterlab.errors import AdapterLabError, BackboneError, ConfigError, DataError
from adapterlab.tasks.base import Task
from adapterlab.tasks.exchange import Evidence, Predictions
from adapterlab.tasks.metrics import compute
from adapterlab.tasks.metrics_language import GENERAL, PERPLEXITY
from adapterlab.tasks.new_words import find_words
from adapterlab.tasks.packing import Block, Packer, Pieces
from adapterlab.tasks.settings import TaskOptions

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits

_AT_ONCE = 64  # documents that are tokenised together
_LOOKED_THROUGH = 20_000  # documents of a stream in which new words are looked for
_SHOWN = 8  # words in a note
_COUNTED = 2000  # training blocks that word frequencies are counted in, at most
ANSWERS = "data"  # the name of rows that are to be answered one by one: those that no split is made of
OF_GENERAL = "_general"  # column of encoded rows: whether they are of the general text that isn't to be forgotten


class CorpusOptions(TaskOptions):
    """Options of the tasks that learn from raw text."""

    documents: Literal["auto", "blank_lines", "lines"] = Field(
        "auto",
        description="What a document is in a txt file: what stands between blank lines, or each line. auto: blank "
        "lines part them if there are any. In other files a row is a document.",
    )
    borders: bool | None = Field(
        None,
        description="Whether the documents in a block can't see each other. Default: yes, where the model can.",
    )
    new_words: int = Field(
        0,
        ge=0,
        description="Give so many of the corpus's words, at most, a token of their own: frequent ones that the "
        "tokenizer reads in three pieces or more. Their embeddings start from these and are trained.",
    )


class CorpusTask(Task):
    """Learns from raw text in blocks of `data.max_length` tokens, each packed with several documents, or parts."""

    columns: ClassVar[dict[str, str]] = {"text": "a document"}
    inputs = ("text",)
    extra_inputs: ClassVar[tuple[str, ...]] = ("document", "words", "labels", "fill")
    default_metrics = (PERPLEXITY,)
    raw_text = True
    mask_function: ClassVar[str]  # which of transformers' the model must use, for documents to be kept apart
    Options = CorpusOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.documents = self.options.documents
        self.apart = bool(self.options.borders)
        self.pieces_of: dict[int, int] = {}  # of how many pieces new tokens are made: so many they count for
        self._first = 0  # a document's first position
        self._longest: int | None = None  # positions that the backbone has

    def clean(self, column: str, value: Any) -> str | None:
        """Texts are strings; blank ones, None and NaN are missing."""
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return None
        if not isinstance(value, str):
            raise ValueError(f"holds a {type(value).__name__} where {self.type} needs a text per row")
        return value if value.strip() else None

    def fit(self, splits: Splits) -> None:
        """Say how much text there is to train on; of a stream that isn't known."""
        if isinstance(splits.train, Corpus):
            return
        letters = sum(map(len, splits.train["text"]))
        self.note(f"{len(splits.train):,} documents of {letters / len(splits.train):,.0f} characters to train on.")

    def new_words(self, train: Any, tokenizer: Any) -> list[str]:
        """Look for the words that the option of this name asks for; in a stream, among its first documents."""
        if not self.options.new_words:
            return []
        texts = train.head(_LOOKED_THROUGH) if isinstance(train, Corpus) else train["text"]
        found = find_words(texts, tokenizer, self.options.new_words)
        shown = f" ({', '.join(found[:_SHOWN])}{', ...' if len(found) > _SHOWN else ''})" if found else ""
        self.note(f"{len(found):,} new words{shown}.")
        return found

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Learn how many positions this model has, and how documents are kept apart in it."""
        from adapterlab.adapters.prefix_attention import first_position, position_rows
        from adapterlab.backbones import describe
        from adapterlab.guests import guests_of
        from adapterlab.pretrained import room
        from adapterlab.token_rows import active_rows

        guests = guests_of(model)
        path = (guests.backbone if guests else describe(model)).positions()
        module = None if path is None else model.get_submodule(path)
        table = None if module is None else position_rows(module)
        self._first = 0 if table is None else first_position(module)
        self._longest = room(model) or getattr(model.config, "max_position_embeddings", None)
        if rows := active_rows(model):
            self.pieces_of = {rows.tokens.ids[token]: len(pieces) for token, pieces in rows.tokens.items()}
        self._settle_borders(model)

    def _settle_borders(self, model: Any) -> None:
        able = self._keeps_apart(model)
        if self.options.borders and not able:
            raise ConfigError(
                f"task.borders: this {type(model).__name__} can't keep the documents of a block apart. Leave the "
                "option out, or set it to false: then they see each other."
            )
        self.apart = able and self.options.borders is not False
        if not able:
            self.note(f"Documents in one block see each other: {type(model).__name__} can't keep them apart.")

    def _keeps_apart(self, model: Any) -> bool:
        module = sys.modules[type(model.base_model).__module__]
        return hasattr(module, self.mask_function)

    @abstractmethod
    def pieces(self, texts: list[str], tokenizer: Any) -> list[Pieces]:
        """Return documents as tokens."""

    @abstractmethod
    def frame(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """Return the special tokens before and after each piece of a document in a block."""

    def packer(self, tokenizer: Any, size: int, name: str) -> Packer:
        """Return what makes blocks of documents; `name` is the split's, as for `encode`."""
        return Packer(size, *self.frame(tokenizer))

    @abstractmethod
    def columns_of(self, blocks: Iterable[Block], tokenizer: Any, name: str) -> Iterator[dict[str, Any]]:
        """Yield blocks as encoded rows."""

    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = ANSWERS) -> Dataset:
        """Pack documents into blocks; those that are to be answered for get blocks of their own."""
        from datasets import Dataset

        if self._longest is not None and max_length > self._longest:
            raise BackboneError(
                f"data.max_length={max_length}: blocks of so many tokens are more than the backbone's {self._longest} "
                f"positions. Set data.max_length={self._longest} or less."
            )
        if isinstance(dataset, Corpus):
            from adapterlab.tasks.streamed import Blocks

            return cast(Any, Blocks(dataset, self, tokenizer, max_length))
        packer = self.packer(tokenizer, max_length, name)
        owners: list[int] = []

        def blocks() -> Iterator[Block]:
            for row, document in enumerate(self._documents(dataset["text"], tokenizer)):
                for block in packer.take(document):
                    owners.append(row)
                    yield block
                if name != ANSWERS:
                    continue
                for block in packer.rest():
                    owners.append(row)
                    yield block
            yield from packer.rest()

        rows = list(self.columns_of(blocks(), tokenizer, name))
        if packer.lack and name != ANSWERS:
            raise DataError(f"{name}: {packer.lack}")
        if not rows:
            raise DataError(f"{name} holds no text: its {len(dataset):,} rows give no token.")
        encoded = Dataset.from_dict({column: [row[column] for row in rows] for column in rows[0]})
        if name == ANSWERS:
            return encoded.add_column("_row", owners)
        tokens = sum(len(row["input_ids"]) for row in rows)
        if name == "train":
            self.note(f"train: {tokens:,} tokens in {len(rows):,} blocks of up to {max_length}.{packer.remark}")
        return encoded

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pad to the longest block of a batch."""
        from adapterlab.tasks.blocks import collate

        return partial(collate, pad=tokenizer.pad_token_id)

    def _documents(self, texts: Iterable[str], tokenizer: Any) -> Iterator[Pieces]:
        batch: list[str] = []
        for text in texts:
            batch.append(text)
            if len(batch) == _AT_ONCE:
                yield from self.pieces(batch, tokenizer)
                batch = []
        if batch:
            yield from self.pieces(batch, tokenizer)

    def reading(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the model reads of a batch beside its ids: positions and mask, with documents kept apart."""
        return {"attention_mask": batch["attention_mask"]}

    def measure(self, seen: Predictions) -> dict[str, float]:
        """Return the perplexity of held-out text; and of general text, where there is some among the rows."""
        loss, count = (np.asarray(part, dtype=np.float64) for part in seen.outputs[:2])
        if np.isnan(loss).any():
            raise AdapterLabError(
                "the model gives NaN: training has diverged. Lower optim.lr, or set optim.precision=fp32."
            )
        general = np.zeros(len(loss), dtype=bool)
        if OF_GENERAL in seen.encoded.column_names:
            general = np.asarray(seen.encoded[OF_GENERAL], dtype=bool)
        measured = compute([PERPLEXITY], loss[~general], count[~general])
        if general.any():
            measured[GENERAL] = compute([PERPLEXITY], loss[general], count[general])[PERPLEXITY]
        return measured

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare with guessing by how frequent each token is in train, and with the backbone as it came."""
        frequencies = self._frequencies(evidence)
        untouched = {"untouched backbone": self.measure(evidence.untouched())}
        return {"token frequencies": frequencies} | untouched if frequencies else untouched

    def _frequencies(self, evidence: Evidence) -> dict[str, float]:
        rows = evidence.encoded(evidence.split)
        if "labels" not in rows.column_names or isinstance(evidence.splits.train, Corpus):
            return {}
        train = evidence.encoded("train", _COUNTED)
        counts = np.bincount(np.concatenate([np.asarray(ids) for ids in train["input_ids"]])) + 1.0
        losses, found = [], []
        for labels in rows["labels"]:
            true = np.asarray(labels)
            true = true[true >= 0]
            seen = np.where(true < len(counts), counts[np.minimum(true, len(counts) - 1)], 1.0)
            losses.append(float(-np.log(seen / counts.sum()).sum()))
            found.append(len(true))
        return self.measure(Predictions((losses, found), rows, rows))
