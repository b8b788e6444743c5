"""A row for a causal model: tokens, which of them are learned, and where its last answer begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapterlab.tasks.chat import Part
from adapterlab.tasks.text_batches import NOTHING


def joined(
    parts: Sequence[Part], ids: Sequence[list[int]], head: list[int], tail: list[int], everything: bool
) -> dict[str, Any]:
    """Return the row's tokens and labels, and how many tokens stand before its last answer."""
    tokens, labels, prompt_length = [*head], [NOTHING] * len(head), None
    for (_, learned), new in zip(parts, ids, strict=True):
        prompt_length = len(tokens) if learned else prompt_length
        tokens += new
        labels += new if learned or everything else [NOTHING] * len(new)
    tokens, labels = [*tokens, *tail], [*labels, *tail]
    labels[:1] = [NOTHING]  # nothing stands before the first token that could predict it
    return {
        "input_ids": tokens,
        "labels": labels,
        "prompt_length": len(tokens) if prompt_length is None else prompt_length,
    }


def first(row: dict[str, Any], limit: int) -> dict[str, Any]:
    """Cut a row to learn from at its end."""
    ids = row["input_ids"][:limit]
    return {"input_ids": ids, "labels": row["labels"][:limit], "prompt_length": min(row["prompt_length"], len(ids))}


def last(row: dict[str, Any], limit: int, head: int) -> dict[str, Any]:
    """Cut a prompt at its beginning, which begins as every row does: what is asked mostly stands at the end."""
    ids = row["input_ids"]
    ids = ids if len(ids) <= limit else [*ids[:head], *ids[len(ids) - limit + head :]]
    return {"input_ids": ids, "labels": [NOTHING] * len(ids), "prompt_length": len(ids)}


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before a text, and the one that ends what is learned."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    head = full[: full.index(bare[0])] if bare and bare[0] in full else []
    return head, [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def answers(messages: Sequence[Mapping[str, str]]) -> bool:
    """Say whether an assistant's message follows a user's."""
    roles = [message["role"] for message in messages]
    return "user" in roles and "assistant" in roles[roles.index("user") :]


def asked(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the messages without the answers they end with."""
    asked = list(messages)
    while len(asked) > 1 and asked[-1]["role"] == "assistant":
        asked.pop()
    return asked
