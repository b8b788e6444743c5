"""Relations: a sentence and two spans in it, marked by tokens of their own; one class out of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from adapterlab.errors import DataError
from adapterlab.tasks.alignment import Range, join_words, need_fast
from adapterlab.tasks.base import register_task
from adapterlab.tasks.classification import Classification
from adapterlab.tasks.encoding import TOLD, encode_for, take_told
from adapterlab.tasks.exchange import Evidence, Predictions
from adapterlab.tasks.labels import WeightedOptions
from adapterlab.tasks.markers import mark, window_around
from adapterlab.tasks.sentences import read_span, read_text

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits

Text = str | Sequence[str]


class RelationOptions(WeightedOptions):
    """Options of relations."""

    read: Literal["markers", "text"] = Field(
        "markers",
        description="where the class is read: at both entities' markers and the last token, or where the backbone's "
        "own head reads a text's class ([CLS], or a GPT's last token)",
    )
    markers: tuple[str, str, str, str] = Field(
        ("[E1]", "[/E1]", "[E2]", "[/E2]"), description="the tokens around head and tail; the tokenizer learns them"
    )


@register_task("relation")
class Relation(Classification):
    """Learns what two spans of a text have to do with each other."""

    summary = "one class per text and two spans in it"
    columns: ClassVar[dict[str, str]] = {
        "text": "the text, or the list of its words",
        "head": "the first span, {start, end}: characters of a text, or words of a list",
        "tail": "the second span, as the first",
        "label": "what they have to do with each other",
    }
    synonyms: ClassVar[dict[str, tuple[str, ...]]] = {
        "text": ("tokens", "words", "sentence"),
        "label": ("relation",),
        "head": ("subject", "e1"),
        "tail": ("object", "e2"),
    }
    inputs = ("text", "head", "tail")  # type: ignore[assignment]
    optional = ()  # type: ignore[assignment]
    Options = RelationOptions

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.options.read == "markers":
            self.auto_class = "AutoModelForTokenClassification"
        self._closing: list[int] = []

    @property
    def new_tokens(self) -> tuple[str, ...]:
        """The markers."""
        return tuple(self.options.markers)

    def clean(self, column: str, value: Any) -> Any:
        """A text stays as it is, or is a list of words; spans are {start, end}; a label is a string."""
        if column == "text":
            return read_text(value)
        if column == "label":
            return super().clean(column, value)
        return None if value is None else read_span(value)

    def check(self, row: Mapping[str, Any]) -> str | None:
        """Refuse spans outside their text or without a word, and texts that hold markers."""
        text = row["text"]
        if text is None or (isinstance(text, str) and not text.strip()):
            return "the text is empty"
        for name in ("head", "tail"):
            start, end = row[name]["start"], row[name]["end"]
            what = "characters" if isinstance(text, str) else "words"
            if not 0 <= start < end <= len(text):
                return f"{name}, {start} to {end}, isn't inside the text of {len(text)} {what}"
            if isinstance(text, str) and not text[start:end].strip():
                return f"{name}, {start} to {end}, holds no word: {text[start:end]!r}"
        joined = text if isinstance(text, str) else " ".join(text)
        held = next((marker for marker in self.options.markers if marker in joined), None)
        return f"the text holds '{held}', with which entities are marked; see task.markers" if held else None

    def model_kwargs(self) -> dict[str, Any]:
        """Return the classes and their names; read at markers, each class once for every token that is read."""
        kwargs = super().model_kwargs()
        if self.options.read == "text":
            return kwargs
        names = [f"{label} at {place}" for place in (*self.options.markers[1::2], "end") for label in self.labels]
        named = {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
        return {**kwargs, **named, "num_labels": len(names)}

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Keep which tokens close the entities."""
        self._closing = tokenizer.convert_tokens_to_ids(list(self.options.markers[1::2]))

    def forward(self, model: Any, batch: dict[str, Any], items: Any = None) -> tuple[Any, Any]:
        """Run the model; read at markers, a class's logit is the sum of its logits at each token that is read.

        That is a linear layer over these tokens' states, one behind the other (Baldini Soares et al. 2019, "Matching
        the blanks"). The markers that close the entities are read, and the last token: to a GPT's, entities are known
        by then, and the whole text.
        """
        if self.options.read == "text":
            return super().forward(model, batch, items)
        import torch

        outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
        ids, mask = batch["input_ids"], batch["attention_mask"]
        places = [(ids == token).int().argmax(1) for token in self._closing]
        places.append((mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1))
        rows = torch.arange(len(ids), device=ids.device)
        logits = outputs.logits.unflatten(-1, (len(places), -1))
        outputs.logits = sum(logits[rows, place, number] for number, place in enumerate(places))
        loss = self.loss(outputs.logits.float(), batch["labels"]) if "labels" in batch else None
        return loss, outputs

    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = "data") -> Dataset:
        """Tokenise, entities marked; of texts too long, what lies about the entities is kept."""
        need_fast(tokenizer)
        limit = min(max_length, tokenizer.model_max_length)
        ids = tokenizer.convert_tokens_to_ids(list(self.options.markers))
        self._hidden = hidden = dict.fromkeys(ids, tokenizer.unk_token_id if tokenizer.unk_token_id is not None else 0)
        pairs = list(zip(self.options.markers[::2], self.options.markers[1::2], strict=True))

        def tokenise(batch: dict[str, list[Any]]) -> dict[str, Any]:
            entities = zip(batch["text"], batch["head"], batch["tail"], strict=True)
            encoded = tokenizer([mark(*_in_characters(*parts), pairs) for parts in entities])
            columns: dict[str, list[Any]] = {key: [] for key in (*encoded, TOLD)}
            for number, tokens in enumerate(encoded["input_ids"]):
                marks = [place for place, token in enumerate(tokens) if token in hidden]
                inside = [side is not None for side in encoded.sequence_ids(number)]
                kept = window_around(marks, inside, limit)
                columns[TOLD].append([int(kept is None), int(kept is not None and len(kept) < len(tokens))])
                for key in encoded:
                    columns[key].append([encoded[key][number][place] for place in kept or ()])
            return columns

        encoded = encode_for(self, dataset, tokenise, tokenizer, name, limit, with_indices=False)
        encoded, told = take_told(encoded, ("apart", "cut"))
        if apart := told["apart"].nonzero()[0].tolist():
            raise DataError(
                f"{name}: in {len(apart):,} of {len(dataset):,} texts head and tail lie further apart than {limit} "
                f"tokens ({self.locator(name)(apart)}). Raise data.max_length, or leave those rows out."
            )
        if cut := told["cut"].sum():
            self.note(
                f"{name}: {cut:,} of {len(dataset):,} texts cut to {limit} tokens about head and tail "
                "(data.max_length)."
            )
        if "label" in dataset.column_names:
            encoded = encoded.add_column("labels", self.targets(dataset["label"]))
        return encoded

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare as classification does; the untouched backbone reads the markers as unknown tokens."""
        return super().baselines(_Unmarked(evidence, self._hidden))


@dataclass(frozen=True)
class _Unmarked:
    """Evidence whose features don't need the adapter's tokens, which the backbone alone doesn't have."""

    evidence: Evidence
    hidden: Mapping[int, int]

    @property
    def splits(self) -> Splits:
        return self.evidence.splits

    @property
    def split(self) -> str:
        return self.evidence.split

    def encoded(self, split: str, limit: int | None = None) -> Dataset:
        return self.evidence.encoded(split, limit)

    def features(self, encoded: Dataset) -> Any:
        ids = [[self.hidden.get(token, token) for token in tokens] for tokens in encoded["input_ids"]]
        return self.evidence.features(encoded.remove_columns("input_ids").add_column("input_ids", ids))

    def untouched(self) -> Predictions:
        return self.evidence.untouched()


def _in_characters(text: Text, head: Mapping[str, int], tail: Mapping[str, int]) -> tuple[str, list[Range]]:
    spans = [(head["start"], head["end"]), (tail["start"], tail["end"])]
    if isinstance(text, str):
        return text, spans
    joined, words = join_words(text)
    return joined, [(words[start][0], words[end - 1][1]) for start, end in spans]
