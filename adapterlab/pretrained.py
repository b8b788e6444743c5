"""Load pretrained backbones and their tokenizers from an address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as transformers_logging

from adapterlab.adapters.prefix_attention import position_rows
from adapterlab.addresses import HubId, resolve, unavailable
from adapterlab.backbones import LANGUAGE_MODELS, describe
from adapterlab.errors import BackboneError
from adapterlab.guests import guests_of


def load_tokenizer(address: str) -> Any:
    """Load the tokenizer that stands beside a model, with a padding token.

    Raises:
        BackboneError: there is none, or it can't be read.
    """
    source, options = _source(address)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # transformers raises what it likes: OSError, ValueError, KeyError, ...
        raise _unreadable(address, "tokenizer", error) from error
    if tokenizer.pad_token is None:  # GPT-2 has none; padding is masked, so which token it is doesn't matter
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise BackboneError(
            f"the tokenizer of '{address}' has no padding token, nor one for a text's end or for the unknown that "
            'could serve. Name one of its vocabulary in its tokenizer_config.json: "pad_token": "<pad>".'
        )
    return tokenizer


def load_backbone(address: str, auto_class: str, tokenizer: Any, **options: Any) -> tuple[Any, list[str]]:
    """Load a pretrained model in fp32 with a task head.

    Args:
        auto_class: name of the transformers auto class, e.g. "AutoModelForSequenceClassification".
        options: for `from_pretrained`, e.g. num_labels.

    Returns:
        The model, and the modules that the files lack weights for: fresh, so to be trained. Those of a task's head,
        outside the base model, aren't among them: it is always fresh or trained. Those of a language model's head are,
        but for biases beside its output layer, which stay 0.

    Raises:
        BackboneError: it can't be found or read, or a language model lacks its output layer.
    """
    source, revision = _source(address)
    loader = getattr(transformers, auto_class)
    try:
        with quiet():
            model, info = loader.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, **revision, **options
            )
    except Exception as error:
        raise _unreadable(address, auto_class, error) from error
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    base = model.base_model_prefix + "."
    is_language_model = type(model).__name__.endswith((*LANGUAGE_MODELS, "ForPreTraining"))
    missing = sorted(key for key in info["missing_keys"] if key.startswith(base) or is_language_model)
    fresh = list(dict.fromkeys(key.rpartition(".")[0] for key in missing))
    output = model.get_output_embeddings() if is_language_model else None
    if output is None:
        return model, fresh
    holders = {path for path in fresh if any(part is output for part in model.get_submodule(path).modules())}
    if any(key.endswith(".weight") and model.get_submodule(key.rpartition(".")[0]) is output for key in missing):
        raise BackboneError(
            f"'{address}' is no {type(model).__name__}: its files lack the output layer's weight. Take a model that "
            "was pretrained as one, or whose output layer is tied to its embeddings."
        )
    return model, [path for path in fresh if path not in holders]


def room(model: Any) -> int | None:
    """Return how many tokens a text may have: as many as the backbone has positions, but for those of virtual tokens.

    None where there is no table of positions: the backbone reads texts of any length then.
    """
    guests = guests_of(model)
    path = (guests.backbone if guests else describe(model)).positions()
    rows = None if path is None else position_rows(model.get_submodule(path))
    if rows is None or guests is None:
        return rows
    configs = [guest.config for guest in guests.adapters.values()]
    shifting = [config for config in configs if not getattr(config, "preserve_positions", False)]
    return rows - sum(getattr(config, "num_virtual_tokens", None) or 0 for config in shifting)


def limit_length(tokenizer: Any, model: Any) -> None:
    """Have a tokenizer know how many tokens the model has room for: many tokenizers' files don't say it."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, room(model) or tokenizer.model_max_length)


def portable_address(address: str) -> str:
    """Return the address as it can be found from any working directory: local folders become absolute."""
    found = resolve(address, "model")
    local = isinstance(found, Path) and not address.startswith("package:")
    return str(found.resolve()) if local else address  # type: ignore[union-attr]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and warnings off the screen: what matters of them is said elsewhere."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _source(address: str) -> tuple[str, dict[str, str]]:
    found = resolve(address, "model")
    if isinstance(found, HubId):
        return found.id, {"revision": found.revision} if found.revision else {}
    return str(found), {}


def _unreadable(address: str, what: str, error: Exception) -> BackboneError:
    found = resolve(address, "model")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if reason.startswith("Unrecognized configuration class"):
        source, revision = _source(address)
        config = transformers.AutoConfig.from_pretrained(source, **revision)
        fix = (
            "Take a backbone of another kind: from raw text BERT-type ones learn with task.type=masked_lm, GPT-type "
            "ones with task.type=causal_lm; to write answers GPT-type ones learn with task.type=instruction, T5 and "
            "BART with task.type=seq2seq."
        )
        if "TokenClassification" in reason:
            fix = "Relations can be read off its text with task.read=text; for tags take another backbone."
        elif "PreTraining" in reason:
            fix = "Pairs of sentences need a backbone of BERT's or ALBERT's kind; else set task.sentences=none."
        return BackboneError(
            f"'{address}' is a {config.model_type}, and transformers has no {what} for this task. {fix}"
        )
    if isinstance(found, HubId):
        return unavailable(found, reason)
    there = ", ".join(sorted(entry.name for entry in Path(found).iterdir())[:10])
    what = "tokenizer" if what == "tokenizer" else "model"
    return BackboneError(f"the {what} in '{address}' can't be loaded: {reason}\nThe folder holds: {there}.")
