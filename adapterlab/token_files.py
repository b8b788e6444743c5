"""New tokens in an adapter folder: rows among its tensors, the rest in adapterlab.json; what peft makes of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from adapterlab.errors import ConfigError
from adapterlab.token_rows import CHILD, NewTokens, base_of, embedding_of, lookups, output_of, rows_of

_KEY = "token_adapter.trainable_tokens_delta"  # what peft calls such rows in a file
NEEDS_US = "new_tokens_that_need_adapterlab_load"
PEFT_FIELDS = ("trainable_token_indices", NEEDS_US)


def saved(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Return an adapter's rows by the keys that they have in its file: peft's, for the modules that they belong to."""
    rows = rows_of(model, name)
    if rows is None:
        return {}
    found = {f"{lookups(model)[0].path}.{_KEY}": rows.input}
    return found if rows.output is None else found | {f"{_output_path(model)}.{_KEY}": rows.output}


def is_row(key: str) -> bool:
    """Whether a file's tensor holds new tokens' rows."""
    return key.endswith(_KEY)


def is_spare(model: nn.Module, key: str) -> bool:
    """Whether a file's rows are for an output layer that this model doesn't have: it may well have another head."""
    return is_row(key) and output_of(model) is None and key != f"{lookups(model)[0].path}.{_KEY}"


def for_peft(model: nn.Module, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return what adapter_config.json says of new tokens.

    peft's LoRA reads the rows, into a model with resized embeddings. What else peft has can't: it warns of a field
    that it doesn't know, and this one's name says what to do.
    """
    rows = rows_of(model, name)
    if rows is None:
        return {}
    output = output_of(model)
    has_bias = output is not None and getattr(base_of(output), "bias", None) is not None  # peft would drop it
    if "trainable_token_indices" in fields and len(lookups(model)) == 1 and not has_bias:
        paths = [key.removesuffix(f".{_KEY}") for key in saved(model, name)]
        return {"trainable_token_indices": {path: list(rows.tokens.ids.values()) for path in paths}}
    return {NEEDS_US: list(rows.tokens)}


def to_json(model: nn.Module, name: str) -> dict[str, Any]:
    """Return what adapterlab.json says of new tokens: nothing, where there are none."""
    rows = rows_of(model, name)
    if rows is None:
        return {}
    about = {"first": rows.tokens.first, "special": rows.tokens.special, "rows": len(embedding_of(model).weight)}
    return {CHILD: about | {"pieces": dict(rows.tokens)}}


def from_json(model: nn.Module, extra: dict[str, Any]) -> NewTokens | None:
    """Read what `to_json` wrote.

    Raises:
        ConfigError: it isn't that, or the model's vocabulary is of another size.
    """
    about = extra.get(CHILD)
    if about is None:
        return None
    try:
        tokens, size = NewTokens(about["pieces"], int(about["first"]), bool(about["special"])), int(about["rows"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError("adapterlab.json: new_tokens must hold first, special, rows and pieces.") from None
    if size != len(embedding_of(model).weight):
        raise ConfigError(
            f"the adapter's {len(tokens)} new tokens stand behind a vocabulary of {size} tokens, and this model's "
            f"has {len(embedding_of(model).weight)}. Load the backbone as it was when the adapter was trained."
        )
    return tokens


def _output_path(model: nn.Module) -> str:
    output = output_of(model)
    return next(path for path, module in model.named_modules() if module is output)
