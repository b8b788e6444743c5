"""Tagging: a tag for each word (parts of speech), or labelled spans of words (entities)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from adapterlab.errors import ConfigError, DataError
from adapterlab.tasks.alignment import need_fast
from adapterlab.tasks.base import Task, register_task, spread_evenly
from adapterlab.tasks.encoding import encode_for, take_told
from adapterlab.tasks.exchange import Evidence, Predictions, ReportTable
from adapterlab.tasks.metrics_tagging import ENTITY_METRICS
from adapterlab.tasks.schemes import OUTSIDE, PLAIN, detect, is_entity_tags, spans_of
from adapterlab.tasks.sentences import Sentence, misfit, read_sentence, read_tags, read_text
from adapterlab.tasks.settings import TaskOptions
from adapterlab.tasks.tagset import SHOWN, check_alike, check_tags, find_labels, invalid, some, weigh
from adapterlab.tasks.windows import COUNTED, WordWindows, decide

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits


class TaggingOptions(TaskOptions):
    """Options of tagging."""

    scheme: Literal["auto", "iob2", "iob1", "iobes", "bilou", "bmes", "io", "plain"] = Field(
        "auto", description="how tags mark entities; io: without B- and I-; plain: they don't. auto: seen from train"
    )
    label_all_pieces: bool = Field(False, description="train on every piece of a word, not on its first one only")
    class_weights: Literal["balanced"] | dict[str, float] | None = Field(
        None, description="how much a word of each tag (or entity label) counts; balanced: rare tags count more"
    )


@register_task("tagging", "ner", "pos")
class Tagging(Task):
    """Learns tags of words, or spans of words with a label."""

    summary = "a tag per word, or labelled spans"
    columns: ClassVar[dict[str, str]] = {
        "text": "the text, or the list of its words",
        "tags": "a tag for each word, or the spans of the text",
    }
    synonyms: ClassVar[dict[str, tuple[str, ...]]] = {
        "text": ("tokens", "words"),
        "tags": ("spans", "entities", "ner_tags", "pos_tags", "labels"),
    }
    inputs = ("text",)
    auto_class = "AutoModelForTokenClassification"
    default_metrics = ("entity_f1", "entity_precision", "entity_recall", "token_accuracy")
    windows = True
    Options = TaggingOptions

    def __init__(self, *, metrics: Sequence[str] | None = None, **settings: Any) -> None:
        self._metrics_given = metrics is not None
        self._weights: list[float] = []
        super().__init__(metrics=metrics, **settings)

    def clean(self, column: str, value: Any) -> Any:
        """A text stays as it is, or is a list of words; tags are strings, spans {start, end, label}."""
        return read_text(value) if column == "text" else read_tags(value)

    def check(self, row: Mapping[str, Any]) -> str | None:
        """Refuse tags that don't belong to their words, and spans that lie outside their text or overlap."""
        return None if row.get("tags") is None or row["text"] is None else misfit(row["text"], row["tags"])

    def fit(self, splits: Splits) -> None:
        """See how train's tags mark entities, take the labels from it, and refuse those it never saw."""
        self.splits = splits
        rows = splits.train
        check_alike(rows)
        scheme = self.options.scheme
        has_spans = isinstance(rows["text"][0], str)
        if scheme == "auto" or has_spans:
            scheme = "iob2" if has_spans else detect(rows["tags"])
            self.options = self.options.model_copy(update={"scheme": scheme})
        self._fit_metrics()
        found = find_labels(rows, scheme)
        if self._labels_from == "train":
            self.labels = found
        if scheme != PLAIN and not is_entity_tags(self.labels):
            self.labels = [OUTSIDE, *(f"{letter}-{label}" for label in self.labels for letter in "BI")]
        for name, split in splits.named.items():
            self.check_labels(split, name)
            if scheme != PLAIN and (told := invalid(split, scheme, self.locator(name))):
                self.note(f"{name}: {told}")
        self._describe(rows)

    def check_labels(self, dataset: Dataset, name: str) -> None:
        """Refuse rows with tags that the task doesn't know."""
        check_alike(dataset)
        check_tags(dataset, name, self.options.scheme, self.labels, self._labels_from)

    def model_kwargs(self) -> dict[str, Any]:
        """Return the number of tags and their names, both ways."""
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {tag: number for number, tag in enumerate(self.labels)},
        }

    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = "data") -> Dataset:
        """Tokenise texts and give each word's first piece its tag.

        Long texts are read in overlapping windows, unless data.long_texts says otherwise: training texts may be cut.
        Those to measure or to answer are not, for a word without an answer is none.
        """
        need_fast(tokenizer)
        limit = min(max_length, tokenizer.model_max_length)
        cuts = name == "train" and self.preparation.long_texts == "cut"
        scheme, all_pieces = self.options.scheme, self.options.label_all_pieces
        windows = WordWindows(tokenizer, limit, self.preparation.stride, self.labels, cuts, all_pieces)

        def tokenise(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
            return windows.encode(list(_read(batch, scheme)), rows)

        encoded = encode_for(self, dataset, tokenise, tokenizer, name, limit, cuts)
        encoded, told = take_told(encoded, COUNTED)
        if told["long"].any() and self.preparation.long_texts == "refuse" and "labels" in encoded.column_names:
            long = [row for row, is_long in zip(encoded["_row"], told["long"], strict=True) if is_long]
            raise DataError(
                f"{name}: {len(long):,} of {len(dataset):,} texts have more than {limit} tokens "
                f"({self.locator(name)(long)}), and data.long_texts is refuse. "
                "Raise data.max_length, or set data.long_texts=window."
            )
        self._note_encoding(name, len(dataset), limit, {key: int(counts.sum()) for key, counts in told.items()})
        return encoded

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pad tokens and their tags."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(tokenizer)

    def forward(self, model: Any, batch: dict[str, Any], items: Any = None) -> tuple[Any, Any]:
        """Run the model; weigh its loss, if tags have weights."""
        if not self._weights or "labels" not in batch:
            return super().forward(model, batch, items)
        from torch.nn.functional import cross_entropy

        outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
        logits, labels = outputs.logits.float().flatten(0, 1), batch["labels"].flatten()
        return cross_entropy(logits, labels, weight=logits.new_tensor(self._weights), ignore_index=-100), outputs

    def spread(self, outputs: Any, batch: dict[str, Any], items: Any = None) -> Any:
        """See `Task.spread`."""
        return spread_evenly(outputs.logits, batch["labels"])

    def measure(self, seen: Predictions) -> dict[str, float]:
        """Compute the metrics over words, those of all windows together."""
        return self.score(
            [self._named(tags) for tags, _ in decide(seen, self._sentences(seen.rows))], self._true(seen.rows)
        )

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Return the spans found, or a tag for each word, with their places in the text and their probabilities."""
        answers: list[dict[str, Any]] = []
        for sentence, (tags, scores) in zip(
            self._sentences(seen.rows), decide(seen, self._sentences(seen.rows)), strict=True
        ):
            named = self._named(tags)
            if self.options.scheme == PLAIN:
                singles = [(place, place + 1, tag) for place, tag in enumerate(named)]
                answers.append({"tags": [_found(sentence, span, scores, "tag") for span in singles]})
            else:
                answers.append({"spans": [_found(sentence, span, scores, "label") for span in spans_of(named)]})
        return answers

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare with each word's most frequent tag in train, and the most frequent of all for new words."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        every: Counter[str] = Counter()
        for sentence in self._sentences(evidence.splits.train):
            for (start, end), tag in zip(sentence.words, sentence.tags or (), strict=True):
                counts[sentence.text[start:end]][tag] += 1
                every[tag] += 1
        best = {word: found.most_common(1)[0][0] for word, found in counts.items()}
        usual = every.most_common(1)[0][0]
        rows = evidence.splits.named[evidence.split]
        guessed = [
            [best.get(sentence.text[start:end], usual) for start, end in sentence.words]
            for sentence in self._sentences(rows)
        ]
        return {"most frequent tag per word": self.score(guessed, self._true(rows))}

    def tables(self, seen: Predictions) -> list[ReportTable]:
        """Show precision, recall, F1 and number of each entity label, or of each tag."""
        true, given = self._true(seen.rows), [self._named(tags) for tags, _ in decide(seen, self._sentences(seen.rows))]
        if self.options.scheme == PLAIN:
            from sklearn.metrics import classification_report as of_tags

            title, kind = "Each tag", "tag"
            report = of_tags([*chain(*true)], [*chain(*given)], output_dict=True, zero_division=0)
        else:
            from seqeval.metrics import classification_report as of_entities

            title, kind = "Each entity label", "label"
            report = of_entities(true, given, output_dict=True, zero_division=0)
        body = [
            [
                name,
                *(f"{float(scores[key]):.3f}" for key in ("precision", "recall", "f1-score")),
                f"{scores['support']:,.0f}",
            ]
            for name, scores in report.items()
            if isinstance(scores, dict) and not name.endswith(" avg")
        ]
        return [ReportTable(title, [kind, "precision", "recall", "F1", "number"], body)]

    def _sentences(self, rows: Any) -> Iterator[Sentence]:
        return _read(rows, self.options.scheme)

    def _true(self, rows: Dataset) -> list[list[str]]:
        return [sentence.tags or [] for sentence in self._sentences(rows)]

    def _named(self, tags: Sequence[int]) -> list[str]:
        return [self.labels[tag] for tag in tags]

    def _fit_metrics(self) -> None:
        if self.options.scheme != PLAIN:
            return
        if not self._metrics_given:
            self.metrics = ["token_accuracy", "token_f1"]
        if wrong := [name for name in self.metrics if name in ENTITY_METRICS]:
            raise ConfigError(
                f"task.metrics: {', '.join(wrong)} count entities, and train's tags mark none (they lack B- and I-). "
                "Use token_accuracy and token_f1; or, if its tags are labels of entities, task.scheme=io."
            )

    def _describe(self, rows: Dataset) -> None:
        plain = self.options.scheme == PLAIN
        counts: Counter[str] = Counter()
        words: Counter[str] = Counter()
        for sentence in self._sentences(rows):
            words.update(sentence.tags or ())
            counts.update(sentence.tags or () if plain else [span[2] for span in spans_of(sentence.tags or ())])
        total = sum(counts.values())
        shown = ", ".join(f"{label} {n:,} ({n / total:.0%})" for label, n in counts.most_common(SHOWN))
        more = f", and {len(counts) - SHOWN} rarer ones" if len(counts) > SHOWN else ""
        what = "tags" if plain else "kinds of entities"
        self.note(f"{len(counts)} {what}; in train's {sum(words.values()):,} words: {shown}{more}.")
        if plain and OUTSIDE in counts:
            self.note("Tags have O, but no B- or I-: read as plain tags. task.scheme=io reads them as entities.")
        if unused := [tag for tag in self.labels if tag not in words and not tag.startswith("I-")]:
            self.note(f"train has no word with {some(unused)}: the model can't learn what nobody shows it.")
        self._weights = weigh(self.options.class_weights, words, self.labels)

    def _note_encoding(self, name: str, rows: int, limit: int, counts: Mapping[str, int]) -> None:
        long = counts["long"]
        if counts["cut"]:
            self.note(
                f"{name}: {long:,} of {rows:,} texts cut to {limit} tokens (data.max_length), {counts['cut']:,} words "
                "with them; data.long_texts=window keeps them."
            )
        elif long:
            self.note(f"{name}: {long:,} of {rows:,} texts have more than {limit} tokens: read in windows.")
        if n := counts["unseen"]:
            self.note(f"{name}: {n:,} words that the tokenizer drops (control characters, say) shown to it as unknown.")
        if n := counts["split"]:
            self.note(f"{name}: {n:,} words split at the border of a span; where no spans are known, words stay whole.")
        if n := counts["shared"]:
            self.note(f"{name}: {n:,} words share their first token with the word before, and so their tag.")


def _read(rows: Any, scheme: str) -> Iterator[Sentence]:
    texts = rows["text"]
    tags = rows["tags"] if "tags" in getattr(rows, "column_names", rows) else [None] * len(texts)
    for text, own in zip(texts, tags, strict=True):
        yield read_sentence(text, own, scheme)


def _found(sentence: Sentence, span: tuple[int, int, str], scores: Sequence[float], kind: str) -> dict[str, Any]:
    first, end, label = span
    start, stop = sentence.words[first][0], sentence.words[end - 1][1]
    found: dict[str, Any] = {"start": start, "end": stop, kind: label, "text": sentence.text[start:stop]}
    found["score"] = float(np.mean(scores[first:end]))
    return found | ({"tokens": [first, end]} if sentence.is_split else {})
