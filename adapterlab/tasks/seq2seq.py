"""Sequence to sequence: an encoder-decoder (T5, BART) reads one text and learns to write another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from adapterlab.errors import BackboneError
from adapterlab.tasks.base import register_task
from adapterlab.tasks.encoding import TOLD, encode_for, take_told
from adapterlab.tasks.exchange import Evidence
from adapterlab.tasks.generation import ANSWERED, GenerationOptions, TextGeneration
from adapterlab.tasks.languages import speak
from adapterlab.tasks.metrics import compute
from adapterlab.tasks.text_batches import NOTHING, decoder_inputs, no_losses, padded, token_losses

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits


class Seq2SeqOptions(GenerationOptions):
    """What is put before a source, the languages, and how long a target may be."""

    prefix: str = Field("", description='Put before every source; T5 was trained with "summarize: " and the like.')
    source_language: str | None = Field(
        None, description="For mBART, NLLB and M2M100: the code of the sources' language, as their tokenizer writes it."
    )
    target_language: str | None = Field(None, description="The same of the targets.")
    max_target_length: int = Field(128, ge=2, description="Tokens of a target; longer ones are cut.")


@register_task("seq2seq")
class Seq2Seq(TextGeneration):
    """Learns to write a text that is made of another: a summary, a translation, an answer."""

    summary = "one text from another: summaries, translations, answers"
    columns: ClassVar[dict[str, str]] = {"source": "the text that is read", "target": "the text to write"}
    inputs = ("source",)
    auto_class = "AutoModelForSeq2SeqLM"
    default_metrics = ("perplexity", "rougeL")
    answering: ClassVar[tuple[str, ...]] = (*TextGeneration.answering, "source_language", "target_language")
    answer_column = "target"
    Options = Seq2SeqOptions

    def clean(self, column: str, value: Any) -> str | None:
        """Both are texts; blank ones are missing."""
        if isinstance(value, list | dict):
            raise ValueError(f"holds a {type(value).__name__} where a text is needed")
        if value is None or (isinstance(value, float) and value != value):
            return None
        return str(value) if str(value).strip() else None

    def fit(self, splits: Splits) -> None:
        """Nothing has to be learned of the rows before training."""

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Set the languages; refuse a backbone that doesn't say what a target begins with."""
        super().prepare(model, tokenizer)
        languages = {name: getattr(self.options, name) for name in ("source_language", "target_language")}
        self.begins = speak(model, tokenizer, languages)
        if self.positions is not None and self.options.max_new_tokens > self.positions:
            raise BackboneError(
                f"task.max_new_tokens={self.options.max_new_tokens} is more than the backbone's {self.positions} "
                "positions. Lower it."
            )
        if model.config.decoder_start_token_id is None and "decoder_start_token_id" not in self.begins:
            raise BackboneError(
                f"the config of this {type(model).__name__} has no decoder_start_token_id, so nothing says what a "
                "target begins with. Put it into the backbone's config.json."
            )

    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = "data") -> Dataset:
        """Tokenise; rows that are to be answered have no labels."""
        limits = {"source": self.limit(max_length, tokenizer), "target": self.options.max_target_length}
        if self.positions is not None:
            limits["target"] = min(limits["target"], self.positions)
        prefix, asks = self.options.prefix, name == "data"
        told = {} if tokenizer.is_fast else {"return_overflowing_tokens": True}  # a fast one tells by itself

        def tokenise(batch: dict[str, list[Any]], places: list[int]) -> dict[str, list[Any]]:
            sources = [prefix + text for text in batch["source"]]
            read = tokenizer(sources, truncation=True, max_length=limits["source"], **told)
            labels, cut = [[NOTHING]] * len(places), [0] * len(places)
            if "target" in batch:
                written = tokenizer(text_target=batch["target"], truncation=True, max_length=limits["target"], **told)
                labels, cut = written["input_ids"], _overflowing(written)
            return {
                "input_ids": read["input_ids"],
                "labels": labels,
                "number": [ANSWERED] * len(places) if asks else places,
                "_row": places,
                TOLD: [list(both) for both in zip(_overflowing(read), cut, strict=True)],
            }

        spoken = [getattr(tokenizer, side, None) for side in ("src_lang", "tgt_lang")]
        encoded = encode_for(self, dataset, tokenise, tokenizer, name, limits, asks, spoken)
        encoded, cut = take_told(encoded, ("source", "target"))
        for column, key in (("source", "data.max_length"), ("target", "task.max_target_length")):
            if count := cut[column].sum():
                said = f"{count:,} of {len(dataset):,} {column}s cut to {limits[column]} tokens ({key})"
                self.note(f"{name}: {said}.")
        return encoded

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pad sources and targets on the right."""
        import torch

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            return {
                "input_ids": padded([row["input_ids"] for row in rows], tokenizer.pad_token_id),
                "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
                "labels": padded([row["labels"] for row in rows], NOTHING),
                "number": torch.tensor([row["number"] for row in rows]),
            }

        return collate

    def forward(self, model: Any, batch: dict[str, Any], items: Any = None) -> tuple[Any, Any]:
        """Return the loss per token of the targets, and each row's loss and tokens."""
        labels = batch["labels"]
        if (labels == NOTHING).all():
            return no_losses(batch)
        written = decoder_inputs(getattr(model, "module", model), labels)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        logits = model(**inputs, decoder_input_ids=written, use_cache=False).logits
        return token_losses(logits, labels, items)

    def generate(self, model: Any, batch: dict[str, Any], rows: Any, settings: Any) -> Any:
        """Have the targets written, without the tokens that every one begins with."""
        inputs = {key: batch[key][rows] for key in ("input_ids", "attention_mask")}
        settings.update(**self.begins)
        begin = 2 if "forced_bos_token_id" in self.begins else 1
        return model.generate(**inputs, generation_config=settings)[:, begin:]

    def reference(self, row: Mapping[str, Any]) -> str | None:
        """Return the target."""
        return row.get("target")

    def question(self, row: Mapping[str, Any]) -> str:
        """Return the source."""
        return str(row["source"])

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare with copying the source, too."""
        rows = evidence.splits.named[evidence.split][: self.options.generate_test]
        found = super().baselines(evidence)
        if not self.text_metrics or not rows["source"]:
            return found
        return {"copied source": compute(self.text_metrics, rows["source"], rows["target"]), **found}


def _overflowing(encoded: Any) -> list[int]:
    """Return for each text whether a tokenizer cut it."""
    if encoded.encodings is None:
        return [int(cut > 0) for cut in encoded.get("num_truncated_tokens") or [0] * len(encoded["input_ids"])]
    return [int(bool(encoding.overflowing)) for encoding in encoded.encodings]
