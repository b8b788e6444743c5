"""Instruction tuning: a GPT-type model learns to answer prompts, to take its turns in conversations, or plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from adapterlab.errors import BackboneError, DataError
from adapterlab.tasks import causal_rows, chat, packed_rows
from adapterlab.tasks.base import register_task
from adapterlab.tasks.encoding import TOLD, encode_for, take_told
from adapterlab.tasks.generation import ANSWERED, NEVER, GenerationOptions, TextGeneration
from adapterlab.tasks.text_batches import NOTHING, no_losses, padded, token_losses

if TYPE_CHECKING:
    from datasets import Dataset

    from adapterlab.data import Splits

_ENCODED = ("input_ids", "labels", "prompt_length", "number", "_row", TOLD)
_KINDS = ("prompt", "messages", "text")


class CausalOptions(GenerationOptions):
    """What is learned of a row, and how it is written."""

    template: Literal["tokenizer", "chatml", "plain"] | None = Field(
        None,
        description="How conversations are written: the tokenizer's chat template (what messages take by default), "
        "chatml, or plain (User: ... Assistant: ...). Set it to have prompts asked as a user's message too.",
    )
    separator: str = Field(
        " ", description="Put between prompt and completion where neither has white space there; without a template."
    )
    train_on: Literal["completions", "all"] = Field(
        "completions", description="Learn to write the completions (the assistant's messages) only, or prompts too."
    )
    packing: bool = Field(False, description="Put several short rows into one window while training, kept apart.")


@register_task("instruction", "chat")
class Instruction(TextGeneration):
    """Learns to write what follows."""

    summary = "text that follows: answers to prompts, turns of conversations, plain text"
    columns: ClassVar[dict[str, str]] = {
        "prompt": "what the model is given",
        "completion": "what it learns to write",
        "messages": "or a conversation: messages of role and content",
        "text": "or a plain text, all of it learned",
    }
    optional = ("prompt", "completion", "messages", "text")
    inputs = ("prompt", "messages", "text")
    plain_input = "prompt"
    auto_class = "AutoModelForCausalLM"
    extra_inputs = ("number", "prompt_length")
    answer_column = "completion"
    Options = CausalOptions

    def clean(self, column: str, value: Any) -> Any:
        """Texts are strings, messages lists of role and content; blank ones are missing."""
        if value is None or (isinstance(value, float) and value != value):
            return None
        if column == "messages":
            return chat.clean_messages(value) if value else None
        if isinstance(value, list | dict):
            raise ValueError(f"holds a {type(value).__name__} where a text is needed")
        return str(value) if str(value).strip() else None

    def check(self, row: Mapping[str, Any]) -> str | None:
        """A row is a prompt (and its completion), a conversation or a text."""
        given = [kind for kind in _KINDS if row.get(kind) is not None]
        if len(given) != 1:
            return "there is no prompt, messages or text" if not given else f"there is both {' and '.join(given)}"
        if given == ["prompt"] and "completion" in row and row["completion"] is None:
            return "there is a prompt and no completion"
        if given == ["messages"] and not any(message["role"] == "user" for message in row["messages"]):
            return "no message is a user's"
        return None

    def fit(self, splits: Splits) -> None:
        """Refuse splits that have nothing to learn to write."""
        for name, split in splits.named.items():
            if "prompt" in split.column_names and "completion" not in split.column_names:
                raise DataError(
                    f"{name} has prompts but no completions to learn. Say which column they are in: "
                    "data.columns.completion=COLUMN (or data.columns.text=COLUMN for plain texts)."
                )
            given = split["messages"] if "messages" in split.column_names else []
            silent = [row for row, messages in enumerate(given) if messages and not causal_rows.answers(messages)]
            if silent:
                raise DataError(
                    f"{len(silent):,} conversations of {name} have no assistant's answer to a user, so there is "
                    f"nothing to learn ({splits.locate(name, silent)})."
                )

    def prepare(self, model: Any, tokenizer: Any) -> None:
        """Refuse a backbone that sees what follows, packing where it mixes rows, messages without a template."""
        super().prepare(model, tokenizer)
        if self.options.template is not None or tokenizer.chat_template:
            end = chat.turn_end(tokenizer, self._renderer((), tokenizer))
            self.stops += [] if end is None or end in self.stops else [end]
        name = type(model).__name__
        if self.positions is not None and self.options.max_new_tokens >= self.positions:
            raise BackboneError(
                f"task.max_new_tokens={self.options.max_new_tokens} leaves no room for a prompt in {name}'s "
                f"{self.positions} positions. Lower it."
            )
        if not packed_rows.looks_back_only(model):
            raise BackboneError(
                f"{name} sees the tokens that follow, so it can't learn to write them: instruction tuning needs a "
                "GPT-type backbone. BERT-type ones learn by task.type=masked_lm, T5 and BART by task.type=seq2seq."
            )
        if self.options.packing and not packed_rows.keeps_apart(model):
            raise BackboneError(
                f"task.packing: rows packed into one window would see each other in {name} with this adapter (it "
                "doesn't read the rows' borders off the positions, or the adapter's virtual tokens stand in front of "
                "the first row only). Set task.packing=false."
            )

    def encode(self, dataset: Dataset, tokenizer: Any, max_length: int, *, name: str = "data") -> Dataset:
        """Tokenise; rows that are to be answered ("data") keep their prompts only."""
        limit, asks = self.limit(max_length, tokenizer), name == "data"
        render = self._renderer(dataset.column_names, tokenizer)
        head, tail = causal_rows.frame(tokenizer)
        options = self.options

        def tokenise(batch: dict[str, list[Any]], places: list[int]) -> dict[str, list[Any]]:
            rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            written = [
                _parts(row, options, render, asks, f"{name}, row {n + 1}") for row, n in zip(rows, places, strict=True)
            ]
            made = []
            for row, place, parts, ids in zip(rows, places, written, chat.tokens(tokenizer, written), strict=True):
                framed = row.get("messages") is None and options.template is None
                one = causal_rows.joined(
                    parts, ids, head * framed, tail * (framed and not asks), options.train_on == "all"
                )
                cut = int(len(one["input_ids"]) > limit)
                one = causal_rows.last(one, limit, len(head) * framed) if asks else causal_rows.first(one, limit)
                if not one["input_ids"]:  # nothing was asked: the answer begins as after another text's end
                    one = {"input_ids": tail or [tokenizer.pad_token_id], "labels": [NOTHING], "prompt_length": 1}
                learned = sum(label != NOTHING for label in one["labels"])
                gone = row.get("text") is not None or one["prompt_length"] >= len(one["input_ids"])
                one["number"] = ANSWERED if asks else NEVER if gone else place
                made.append({**one, "_row": place, TOLD: [cut, len(one["input_ids"]), learned]})
            return {key: [one[key] for one in made] for key in _ENCODED}

        encoded = encode_for(self, dataset, tokenise, tokenizer, name, limit, name)
        encoded, told = take_told(encoded, ("cut", "tokens", "learned"))
        if not asks:
            kept = told["learned"].nonzero()[0]
            self.left_out(len(kept), len(dataset), name, limit)
            encoded = encoded if len(kept) == len(encoded) else encoded.select(kept)
            self.note(f"{name}: {told['tokens'][kept].sum():,} tokens, {told['learned'].sum():,} of them learned.")
        if cut := told["cut"].sum():
            what = "prompts cut to their last" if asks else "rows cut to their first"
            self.note(f"{name}: {cut:,} of {len(dataset):,} {what} {limit} tokens (data.max_length).")
        return self._packed(encoded, limit) if self.options.packing and name == "train" else encoded

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pad on the right. Packed rows have positions and no mask: padding is a row of its own behind them."""
        import torch

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            batch = {
                "input_ids": padded([row["input_ids"] for row in rows], tokenizer.pad_token_id),
                "labels": padded([row["labels"] for row in rows], NOTHING),
            }
            if "position_ids" in rows[0]:
                return {**batch, "position_ids": padded([row["position_ids"] for row in rows], 0)}
            batch["attention_mask"] = padded([[1] * len(row["input_ids"]) for row in rows], 0)
            return batch | {key: torch.tensor([row[key] for row in rows]) for key in self.extra_inputs}

        return collate

    def forward(self, model: Any, batch: dict[str, Any], items: Any = None) -> tuple[Any, Any]:
        """Return the loss per learned token, and each row's loss and tokens; logits only where they are needed."""
        targets = batch["labels"][:, 1:]
        places = (targets != NOTHING).any(dim=0).nonzero()[:, 0]
        if not len(places):
            return no_losses(batch)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids") if key in batch}
        logits = model(**inputs, use_cache=False, logits_to_keep=places).logits
        return token_losses(logits, targets[:, places], items)

    def generate(self, model: Any, batch: dict[str, Any], rows: Any, settings: Any) -> Any:
        """Have the prompts continued; they end together, padded on the left."""
        room = None if self.positions is None else self.positions - self.options.max_new_tokens
        ids = [batch["input_ids"][row, : batch["prompt_length"][row]].tolist() for row in rows.tolist()]
        prompts = [prompt if room is None else prompt[-room:] for prompt in ids]
        given = padded(prompts, self.tokenizer.pad_token_id, left=True).to(rows.device)
        mask = padded([[1] * len(prompt) for prompt in prompts], 0, left=True).to(rows.device)
        new = model.generate(input_ids=given, attention_mask=mask, generation_config=settings)
        return new[:, given.shape[1] :]

    def reference(self, row: Mapping[str, Any]) -> str | None:
        """Return the completion, or the last of the assistant's messages."""
        if row.get("messages") is not None:
            return next((m["content"] for m in reversed(row["messages"]) if m["role"] == "assistant"), None)
        return row.get("completion")

    def question(self, row: Mapping[str, Any]) -> str:
        """Return the prompt, or the messages before the last answer."""
        if row.get("messages") is not None:
            return " / ".join(f"{m['role']}: {m['content']}" for m in causal_rows.asked(row["messages"]))
        return row.get("prompt") or row.get("text") or ""

    def _renderer(self, columns: Sequence[str], tokenizer: Any) -> chat.Render:
        """Return what writes messages as text.

        Raises:
            BackboneError: the tokenizer's template is wanted, and it has none.
        """
        template = self.options.template
        wanted = template == "tokenizer" or (template is None and "messages" in columns)
        if wanted and not tokenizer.chat_template:
            raise BackboneError(
                "the backbone's tokenizer has no chat template, so nothing says how messages are written. Set "
                "task.template=plain (User: ... Assistant: ...) or task.template=chatml."
            )
        return chat.renderer(tokenizer, template)

    def _packed(self, encoded: Dataset, window: int) -> Dataset:
        """Return windows of several rows, their positions beginning anew."""
        from datasets import Dataset

        ids, labels = encoded["input_ids"], encoded["labels"]
        windows = packed_rows.fill([len(row) for row in ids], window)
        self.note(f"{len(encoded):,} rows of train packed into {len(windows):,} windows of {window} tokens.")
        columns = {
            "input_ids": [[token for row in rows for token in ids[row]] for rows in windows],
            "labels": [[label for row in rows for label in labels[row]] for rows in windows],
            "position_ids": [[place for row in rows for place in range(len(ids[row]))] for rows in windows],
        }
        return Dataset.from_dict(columns)


def _parts(row: Mapping[str, Any], options: Any, render: chat.Render, asks: bool, where: str) -> list[chat.Part]:
    """Return a row's text in parts, those that are learned marked; of a row to be answered, the prompt."""
    messages = row.get("messages")
    if options.template is not None and row.get("prompt") is not None:
        messages = [{"role": "user", "content": row["prompt"]}]
        if not asks:
            messages.append({"role": "assistant", "content": row["completion"]})
    if messages is not None:
        try:
            return chat.parts(causal_rows.asked(messages) if asks else messages, render)
        except ValueError as error:
            raise DataError(f"{where}: {error}.") from error
    if row.get("prompt") is None:
        return [(row["text"], not asks)]
    prompt, completion = row["prompt"], row.get("completion", "")
    if asks:
        return [(prompt, False)]
    apart = prompt[-1:].isspace() or completion[:1].isspace()
    return [(prompt, False), (completion if apart else options.separator + completion, True)]
