"""The languages of multilingual backbones (mBART, NLLB, M2M100): said to the tokenizer, and what a text begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterlab.errors import BackboneError, did_you_mean
from adapterlab.tasks.text_batches import decoder_inputs

_SHOWN = 12  # codes in a message


def speak(model: Any, tokenizer: Any, wanted: Mapping[str, str | None]) -> dict[str, int]:
    """Have the tokenizer mark texts with their languages.

    Args:
        model: the encoder-decoder.
        tokenizer: its tokenizer.
        wanted: the codes by option, `source_language` and `target_language`; None takes what the tokenizer was saved
            with.

    Returns:
        What generation has to know for its texts to be of the target language; nothing for tokenizers without any.

    Raises:
        BackboneError: the tokenizer has no languages, not this one, or it isn't said which.
    """
    given = {option: code for option, code in wanted.items() if code is not None}
    if not hasattr(tokenizer, "set_tgt_lang_special_tokens"):
        if not given:
            return {}
        raise BackboneError(
            f"task.{next(iter(given))}: the backbone's {type(tokenizer).__name__} knows no languages. T5 is told by "
            'task.prefix="translate English to German: ", Marian by task.prefix=">>deu<< ".'
        )
    known = _languages(tokenizer)
    saved = {"source_language": "src_lang", "target_language": "tgt_lang"}
    found = {}
    for option, attribute in saved.items():
        code = given.get(option) or tokenizer.init_kwargs.get(attribute)
        if code not in known:
            listing = ", ".join(list(known)[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
            said = "the backbone's tokenizer marks texts with their language: set it."
            if code:
                near = next((f" Did you mean '{one}'?" for one in known if one.startswith(code)), "")
                said = f"the backbone's tokenizer has no language '{code}'.{near or did_you_mean(code, known)}"
            raise BackboneError(f"task.{option}: {said} Languages: {listing}.")
        setattr(tokenizer, attribute, code)
        found[option] = code
    first = known[found["target_language"]]
    labels = tokenizer(text_target="", return_tensors="pt")["input_ids"]
    begun = decoder_inputs(model, labels)[0, 0]
    return {"decoder_start_token_id" if begun == first else "forced_bos_token_id": first}


def _languages(tokenizer: Any) -> dict[str, int]:
    """Return the codes that a tokenizer knows, and their tokens."""
    if known := getattr(tokenizer, "lang_code_to_id", None):
        return dict(known)
    named = {*map(str, (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token))}
    named |= {*map(str, (tokenizer.sep_token, tokenizer.cls_token, tokenizer.mask_token))}
    codes = [token for token in tokenizer.all_special_tokens if token not in named]
    return dict(zip(codes, tokenizer.convert_tokens_to_ids(codes), strict=True))
