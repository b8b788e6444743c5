"""Prompt tuning and P-tuning against peft's: the same file, the same logits, the same generated text."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
import transformers as T
from conftest import CONFIGS, DECODERS, randomize
from safetensors.torch import load_file

import adapterlab

P = 5
HEADS = {
    "SequenceClassification": "SEQ_CLS",
    "TokenClassification": "TOKEN_CLS",
    "QuestionAnswering": "QUESTION_ANS",
    "CausalLM": "CAUSAL_LM",
    "Seq2SeqLM": "SEQ_2_SEQ_LM",
}
THEIRS = {"prompt": peft.PromptTuningConfig, "p_tuning": peft.PromptEncoderConfig}


def cells():
    for architecture in CONFIGS:
        config = CONFIGS[architecture]()
        for head in HEADS:
            if type(config) not in getattr(T, f"AutoModelFor{head}")._model_mapping or architecture == "invented":
                continue  # "invented" takes no embeddings
            if head == "CausalLM" and architecture not in DECODERS:
                continue  # encoders that would have to be told to be decoders
            if config.is_encoder_decoder and head in ("SequenceClassification", "QuestionAnswering"):
                continue  # peft gives them embeddings only, and they look for end-of-text tokens
            yield pytest.param(architecture, head, id=f"{architecture}-{head}")


def ours(tiny, architecture, head, method):
    model = adapterlab.attach(tiny(architecture, head), method, num_virtual_tokens=P)
    randomize(model)
    return model


def run(model, batch, architecture, head, cut=False):
    """Logits of the rows that peft reads as we do; `cut`: drop peft's virtual tokens."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if head == "Seq2SeqLM":
        inputs["decoder_input_ids"] = batch["input_ids"][:, :4]
    model.eval()
    with torch.no_grad():
        out = model(**inputs)
    logits = torch.stack([out.start_logits, out.end_logits], -1) if head == "QuestionAnswering" else out.logits
    if cut and head in ("TokenClassification", "QuestionAnswering", "CausalLM"):
        logits = logits[:, P:]
    # with embeddings alone a decoder's head can't see where a padded row ends
    return logits[1:] if head == "SequenceClassification" and architecture in DECODERS else logits


def cells_of_both():
    """Prompt tuning in each cell; P-tuning, whose file and forward are the same, once in each architecture."""
    for cell in cells():
        for method in THEIRS:
            if method == "prompt" or cell.values[1] in ("SequenceClassification", "Seq2SeqLM"):
                yield pytest.param(*cell.values, method, id=f"{cell.id}-{method}")


@pytest.mark.parametrize(("architecture", "head", "method"), cells_of_both())
def test_both_ways(tiny, batch, tmp_path, architecture, head, method):
    model = ours(tiny, architecture, head, method)
    expected = run(model, batch, architecture, head)
    adapterlab.save(model, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        theirs = peft.PeftModel.from_pretrained(tiny(architecture, head), tmp_path / "ours")
    assert type(theirs).__name__ != "PeftModel", "peft must know the task, or it leaves the prompt out"
    torch.testing.assert_close(run(theirs, batch, architecture, head, cut=True), expected, rtol=0, atol=2e-6)

    theirs.save_pretrained(tmp_path / "theirs")
    back = adapterlab.load(tiny(architecture, head), tmp_path / "theirs")
    torch.testing.assert_close(run(back, batch, architecture, head), expected, rtol=0, atol=2e-6)
    files = [load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("ours", "theirs")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])


@pytest.mark.parametrize(
    ("architecture", "head"),
    [c for c in cells() if c.id in ("bert-SequenceClassification", "gpt2-CausalLM", "t5-Seq2SeqLM")],
)
@pytest.mark.parametrize("method", ["prompt", "p_tuning", "p_tuning-lstm"])
def test_what_peft_trained(tiny, batch, tmp_path, architecture, head, method):
    """By peft's own defaults: for an encoder-decoder it stores a second prompt, which it never reads."""
    options = {"encoder_reparameterization_type": "LSTM"} if "lstm" in method else {}
    config = THEIRS[method.split("-")[0]](task_type=HEADS[head], num_virtual_tokens=P, **options)
    theirs = peft.get_peft_model(tiny(architecture, head), config)
    randomize(theirs)
    expected = run(theirs, batch, architecture, head, cut=True)
    theirs.save_pretrained(tmp_path)
    model = adapterlab.load(tiny(architecture, head), tmp_path)
    torch.testing.assert_close(run(model, batch, architecture, head), expected, rtol=0, atol=2e-6)
    again = adapterlab.save(model, tmp_path / "again")
    twice = peft.PeftModel.from_pretrained(tiny(architecture, head), again)
    torch.testing.assert_close(run(twice, batch, architecture, head, cut=True), expected, rtol=0, atol=2e-6)
    once_more = adapterlab.load(tiny(architecture, head), again)
    torch.testing.assert_close(run(once_more, batch, architecture, head), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("architecture", "head"), [cell for cell in cells() if cell.values[1] in ("CausalLM", "Seq2SeqLM")]
)
def test_generated_text(tiny, batch, tmp_path, architecture, head):
    model = adapterlab.attach(tiny(architecture, head), "prompt", num_virtual_tokens=P)
    randomize(model, std=1.0)
    adapterlab.save(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny(architecture, head), tmp_path)
    ids = batch["input_ids"][1:, :6]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    scores = {"return_dict_in_generate": True, "output_scores": True}
    mine = model.generate(**inputs, **scores)
    # peft 0.21 doesn't see a cache of transformers 5.24, and would prepend the prompt to each token
    peers = theirs.generate(**inputs, **scores, use_cache=head != "CausalLM")
    assert torch.equal(mine.sequences, peers.sequences)
    for one, other in zip(mine.scores, peers.scores, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_a_classifier_that_pools_with_the_mean(batch, tmp_path):
    config = CONFIGS["modernbert"]()
    config.classifier_pooling = "mean"
    torch.manual_seed(0)
    model = T.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "backbone")
    adapterlab.attach(model, "prompt", num_virtual_tokens=P)
    randomize(model)
    adapterlab.save(model, tmp_path / "ours")
    backbone = T.AutoModelForSequenceClassification.from_pretrained(tmp_path / "backbone")
    theirs = peft.PeftModel.from_pretrained(backbone, tmp_path / "ours")
    head = "SequenceClassification"
    torch.testing.assert_close(run(theirs, batch, "modernbert", head), run(model, batch, "modernbert", head))
