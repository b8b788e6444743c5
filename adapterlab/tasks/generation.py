"""What tasks that write texts share: their options, generating, metrics and examples."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from adapterlab.errors import AdapterLabError, DataError
from adapterlab.tasks.base import Task, spread_evenly
from adapterlab.tasks.exchange import Evidence, Predictions, ReportTable
from adapterlab.tasks.metrics import compute
from adapterlab.tasks.metrics_language import PERPLEXITY
from adapterlab.tasks.settings import TaskOptions
from adapterlab.tasks.text_batches import NOTHING

ANSWERED, NEVER = -1, 2**31  # numbers of rows that are there to be answered, and of those that nothing asks
_DRAWING = ("temperature", "top_p", "top_k")  # options that say how tokens are drawn
_OWN = ("repetition_penalty", "no_repeat_ngram_size", "length_penalty")  # options that the backbone has values for
_SHOWN, _LONGEST = 5, 400  # examples in the report, and characters of each text


class GenerationOptions(TaskOptions):
    """How texts are generated, and of how many rows for the metrics."""

    max_new_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")
    num_beams: int = Field(1, ge=1, description="Beams of the search; 1 takes the likeliest token each time.")
    temperature: float = Field(
        0.0, ge=0, description="0 takes the likeliest tokens; above it they are drawn, by top_p and top_k."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the likeliest tokens that have this share together.")
    top_k: int | None = Field(None, ge=1, description="Draw from so many of the likeliest tokens. Default: from all.")
    repetition_penalty: float | None = Field(
        None, gt=0, description="Above 1 makes tokens that are there already less likely. Default: the backbone's own."
    )
    no_repeat_ngram_size: int | None = Field(
        None, ge=0, description="So many tokens in a row are not written twice; 0 is no limit. Default: the backbone's."
    )
    length_penalty: float | None = Field(
        None, description="Of beams: above 0 they favour long texts, below it short ones. Default: the backbone's own."
    )
    generate_test: int = Field(
        100, ge=0, description="Rows to generate at the end, for the metrics of texts and the report's examples."
    )
    generate_eval: int = Field(
        0, ge=0, description="Rows to generate in each evaluation while training: it is slow, so none by default."
    )


class TextGeneration(Task):
    """A task whose answers are generated texts; subclasses say what the model reads and what it learns to write."""

    extra_inputs: ClassVar[tuple[str, ...]] = ("number",)
    counts_items = True
    ahead = 4  # answers take long: they come in small groups
    default_metrics: ClassVar[tuple[str, ...]] = (PERPLEXITY,)
    deferred = "Set task.generate_eval to the rows to generate in each."
    answering: ClassVar[tuple[str, ...]] = ("max_new_tokens", "num_beams", *_DRAWING, *_OWN)
    answer_column: ClassVar[str]
    Options = GenerationOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if PERPLEXITY not in self.metrics:
            self.metrics.append(PERPLEXITY)
        self.positions: int | None = None

    @property
    def text_metrics(self) -> list[str]:
        """The metrics that compare generated texts."""
        return [name for name in self.metrics if name != PERPLEXITY]

    @property
    def eval_metrics(self) -> list[str]:
        """All, if evaluations generate; else perplexity."""
        return self.metrics if self.options.generate_eval else [PERPLEXITY]

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Keep the tokenizer, the tokens that end an answer, and how many positions the backbone has."""
        from adapterlab.guests import guests_of

        self.tokenizer = tokenizer
        ends = model.generation_config.eos_token_id
        found = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
        self.stops = list(dict.fromkeys(int(token) for token in found if token is not None))
        if not self.stops:
            self.note("The tokenizer has no token that ends a text: every answer has task.max_new_tokens.")
        positions = getattr(model.config, "max_position_embeddings", None)
        guests = guests_of(model)
        configs = [guest.config for guest in guests.adapters.values()] if guests else []
        virtual = sum(getattr(config, "num_virtual_tokens", None) or 0 for config in configs)
        self.positions = None if positions is None else int(positions) - virtual

    def limit(self, max_length: int, tokenizer: Any) -> int:
        """Return how many tokens a row may have: as the recipe says, if tokenizer and backbone have as many."""
        limit = min(max_length, tokenizer.model_max_length, self.positions or max_length)
        if limit < max_length:
            self.note(f"data.max_length={max_length} is more than the backbone's {limit} tokens; {limit} it is.")
        return limit

    @abstractmethod
    def reference(self, row: Mapping[str, Any]) -> str | None:
        """Return the text that a row's answer is compared with."""

    @abstractmethod
    def question(self, row: Mapping[str, Any]) -> str:
        """Return what was asked, for people."""

    @abstractmethod
    def generate(self, model: Any, batch: dict[str, Any], rows: Any, settings: Any) -> Any:
        """Return the new tokens, (rows, tokens), for some rows of a batch."""

    def numbers(self, outputs: Any) -> tuple[Any, ...]:
        """See `Task.numbers`: the losses."""
        return (outputs[0] if isinstance(outputs, tuple) else outputs,)

    def outputs(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Keep each row's loss and number of tokens."""
        return outputs.rows

    def spread(self, outputs: Any, batch: dict[str, Any], items: Any = None) -> Any:
        """See `Task.spread`."""
        return spread_evenly(outputs.logits, outputs.labels, items)

    def answer(self, model: Any, batch: dict[str, Any], *, final: bool = True) -> tuple[Any, Any]:
        """Return the loss; and (each row's loss and tokens, generated tokens: -100 alone where none were asked for)."""
        loss, outputs = self.forward(model, batch)
        losses = self.outputs(outputs, batch)
        wanted = self.options.generate_test if final else self.options.generate_eval
        if final and not self.text_metrics:
            wanted = min(wanted, _SHOWN)
        if not wanted and (batch["number"] != ANSWERED).all():
            return loss, losses
        chosen = ((batch["number"] == ANSWERED) | (batch["number"] < wanted)).nonzero()[:, 0]
        texts = losses.new_full((len(losses), 1), NOTHING, dtype=batch["input_ids"].dtype)
        if len(chosen):
            unwrapped = getattr(model, "module", model)
            new = self._until_stop(self.generate(unwrapped, batch, chosen, self._settings(unwrapped)))
            texts = new.new_full((len(losses), new.shape[1]), NOTHING)
            texts[chosen] = new
        return loss, (losses, texts)

    def measure(self, seen: Predictions) -> dict[str, float]:
        """Return loss and perplexity per token, and the texts' metrics where texts were generated."""
        losses, _ = self._kept(seen)
        total, tokens = losses.astype(np.float64).sum(axis=0)
        if not np.isfinite(total):
            raise AdapterLabError(
                "the loss is NaN or infinite: training has diverged. Lower optim.lr, or set optim.precision=fp32."
            )
        measured = {"loss": float(total / max(tokens, 1))}
        pairs = [(text, true) for text, true in self._texts(seen) if text is not None and true is not None]
        if pairs and self.text_metrics:
            texts, references = zip(*pairs, strict=True)
            measured |= compute(self.text_metrics, list(texts), list(references))
        return measured | compute([PERPLEXITY], losses[:, 0], losses[:, 1])

    def decode(self, seen: Predictions) -> list[dict[str, Any]]:
        """Return the generated text, one dict a row."""
        return [{self.answer_column: text or ""} for text, _ in self._texts(seen)]

    def baselines(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Compare with what the backbone writes by itself."""
        if self.text_metrics and self.options.generate_test:
            rows = min(self.options.generate_test, len(evidence.encoded(evidence.split)))
            self.note(f"Metrics of texts are of the first {rows:,} rows of {evidence.split} (task.generate_test).")
        return {"untouched backbone": self.measure(evidence.untouched())}

    def tables(self, seen: Predictions) -> list[ReportTable]:
        """Show what was generated for a few rows, beside the reference."""
        rows = [seen.rows[row] for row in seen.encoded["_row"][: _SHOWN * 4]]
        body = [
            [_short(self.question(row), last=True), _short(true), _short(text)]
            for row, (text, true) in zip(rows, self._texts(seen), strict=False)
            if text is not None and true is not None
        ]
        header = ["asked", "reference", "generated"]
        return [ReportTable("Examples", header, body[:_SHOWN])] if body else []

    def left_out(self, kept: int, rows: int, name: str, limit: int) -> None:
        """Note how many rows of a split have nothing to learn within the limit.

        Raises:
            DataError: all of them.
        """
        if kept == rows:
            return
        said = f"{rows - kept:,} of {rows:,} rows of {name} have no token to learn within {limit} tokens"
        if not kept:
            raise DataError(f"{said}: nothing is left. Raise data.max_length, or shorten the prompts.")
        self.note(f"{said} (data.max_length): left out.")

    def _settings(self, model: Any) -> Any:
        """Return the model's generation settings, ours in place of its own search."""
        options, settings = self.options, copy.deepcopy(model.generation_config)
        drawn = options.temperature > 0
        settings.update(
            max_new_tokens=options.max_new_tokens, max_length=None, num_beams=options.num_beams, do_sample=drawn,
            pad_token_id=self.tokenizer.pad_token_id, eos_token_id=self.stops or None,
            **{name: getattr(options, name) if drawn else None for name in _DRAWING},
            **{name: given for name in _OWN if (given := getattr(options, name)) is not None},
        )  # fmt: skip
        return settings

    def _until_stop(self, new: Any) -> Any:
        """Blank what follows the first token that ends a text; that token stays."""
        import torch

        stop = torch.isin(new, torch.tensor(self.stops, dtype=new.dtype, device=new.device))
        return new.masked_fill((stop.cumsum(1) - stop.long()) > 0, NOTHING)

    def _kept(self, seen: Predictions) -> tuple[Any, Any]:
        if isinstance(seen.outputs, tuple | list):
            return np.asarray(seen.outputs[0]), np.asarray(seen.outputs[1]).astype(np.int64)
        return np.asarray(seen.outputs), None

    def _texts(self, seen: Predictions) -> list[tuple[str | None, str | None]]:
        """Return each encoded row's generated text and reference; None where there is none."""
        _, tokens = self._kept(seen)
        if tokens is None:
            return [(None, None)] * len(seen.encoded)
        found: list[tuple[str | None, str | None]] = []
        for ids, row in zip(tokens, seen.encoded["_row"], strict=True):
            real = ids[ids != NOTHING].tolist()
            text = self.tokenizer.decode(real, skip_special_tokens=True).strip() if real else None
            found.append((text, self.reference(seen.rows[row]) if real else None))
        return found


def _short(text: str, *, last: bool = False) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"… {text[-_LONGEST:]}" if last else f"{text[:_LONGEST]} …"
