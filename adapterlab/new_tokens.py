"""New tokens that an adapter brings along, seen from the tokenizer.

>>> tokens = pieces(tokenizer, ["<e1>", "</e1>"], special=True)
>>> adapterlab.attach(model, "lora", new_tokens=tokens)
>>> adapterlab.load(other_model, "my-adapter")
>>> equip(other_tokenizer, other_model)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import AddedToken

from adapterlab.errors import ConfigError
from adapterlab.token_rows import NewTokens, active_rows

__all__ = ["NewTokens", "equip", "pieces"]


def pieces(tokenizer: Any, tokens: Sequence[str], *, special: bool = False) -> NewTokens:
    """Add tokens to a tokenizer, and return what `attach(new_tokens=...)` wants: of which pieces each was made before.

    Args:
        tokenizer: any of transformers', slow or fast; it has the tokens afterwards.
        tokens: different ones that it doesn't have.
        special: markers, found anywhere and as they are written, and left out by `decode(skip_special_tokens=True)`;
            else words, found as whole words, and in lower case where the tokenizer knows no other.
            (Slow tokenizers find them in texts only as they are written here.)

    Raises:
        ConfigError: no tokens, or some that are empty, there twice or there already. The tokenizer is as it was.
    """
    wanted = list(tokens) if isinstance(tokens, list | tuple) else []
    if not wanted or not all(isinstance(token, str) for token in wanted):
        raise ConfigError(f"tokens: a list of strings is needed, and {tokens!r} was given, e.g. ['<e1>', '</e1>'].")
    if not special and getattr(tokenizer, "do_lower_case", False):
        wanted = [token.lower() for token in wanted]  # slow ones do it themselves, and then know no other spelling
    known = tokenizer.get_vocab()
    problems = [
        f"token '{token}' {why}."
        for token in dict.fromkeys(wanted)
        for is_so, why in (
            (not token.strip(), "is empty"),
            (token in known, f"is in the tokenizer already, with id {known.get(token)}; leave it out"),
            (wanted.count(token) > 1, f"is there {wanted.count(token)} times"),
        )
        if is_so
    ]
    if problems:
        raise ConfigError(problems)
    made_of = {token: tokenizer.encode(token, add_special_tokens=False) for token in wanted}
    found = NewTokens(made_of, len(tokenizer), special)
    _add(tokenizer, found)
    return found


def equip(tokenizer: Any, model: nn.Module) -> list[str]:
    """Add the tokens that the model's active adapter brings to a tokenizer, where they aren't there yet.

    Returns:
        The tokens that were added.

    Raises:
        ConfigError: the tokenizer would give, or gives, them other ids than they were trained with.
    """
    rows = active_rows(model)
    if rows is None:
        return []
    known = tokenizer.get_vocab()
    wrong = {token: known[token] for token, index in rows.tokens.ids.items() if known.get(token, index) != index}
    missing = [token for token in rows.tokens if token not in known]
    if wrong or (missing and len(tokenizer) != rows.tokens.ids[missing[0]]):
        has = f"it has {wrong}" if wrong else f"its next free id is {len(tokenizer)}"
        raise ConfigError(
            f"this tokenizer doesn't fit the adapter's new tokens {rows.tokens.ids}: {has}. "
            "Take the tokenizer that was saved with the adapter, or the backbone's own as it was."
        )
    if missing:
        _add(tokenizer, NewTokens(dict.fromkeys(missing, ()), len(tokenizer), rows.tokens.special))
    return missing


def _add(tokenizer: Any, tokens: NewTokens) -> None:
    whole_words = {"special": False, "single_word": True}
    how: dict[str, bool] = {"special": True, "normalized": False} if tokens.special else whole_words
    tokenizer.add_tokens([AddedToken(token, **how) for token in tokens], special_tokens=tokens.special)
    given = tokenizer.convert_tokens_to_ids(list(tokens))
    if given != list(tokens.ids.values()):
        raise ConfigError(
            f"the tokenizer gave the new tokens the ids {given}, and not those from {tokens.first} on: there are gaps "
            "in its vocabulary. Load it afresh."
        )
