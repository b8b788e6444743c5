"""Backbones and tokenizers that don't suit a task: what to do instead is said before training."""

from __future__ import annotations

import json

import pytest
from corpora import tiny_bert, tiny_gpt2

from adapterlab import pretrained
from adapterlab.addresses import HubId
from adapterlab.errors import BackboneError
from adapterlab.pretrained import load_backbone, load_tokenizer


def test_a_tokenizer_that_has_nothing_to_pad_with(tmp_path):
    folder = tiny_gpt2(tmp_path / "gpt2")
    file = tmp_path / "gpt2" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["eos_token"]
    file.write_text(json.dumps(settings))
    with pytest.raises(BackboneError, match=r"gpt2' has no padding token.*tokenizer_config\.json: \"pad_token\""):
        load_tokenizer(folder)
    file.write_text(json.dumps(settings | {"pad_token": "!"}))
    assert load_tokenizer(folder).pad_token_id is not None


@pytest.mark.parametrize("auto_class", ["AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModelForMultipleChoice"])
def test_the_task_that_suits_another_kind_of_backbone_is_named(auto_class, tmp_path):
    folder = tiny_gpt2(tmp_path / "gpt2")
    with pytest.raises(
        BackboneError,
        match=rf"is a gpt2.*no {auto_class} for this task.*task\.type=instruction.*T5.*seq2seq",
    ):
        load_backbone(folder, auto_class, load_tokenizer(folder))


def test_a_bert_writes_nothing(tmp_path):
    folder = tiny_bert(tmp_path / "bert")
    with pytest.raises(BackboneError, match=r"is a bert.*T5 and BART with task\.type=seq2seq"):
        load_backbone(folder, "AutoModelForSeq2SeqLM", load_tokenizer(folder))


def test_a_backbone_of_the_hub_is_told_the_same(tmp_path, monkeypatch):
    folder = tiny_gpt2(tmp_path / "gpt2")
    monkeypatch.setattr(pretrained, "resolve", lambda address, what: HubId("org/gpt2"))
    monkeypatch.setattr(pretrained, "_source", lambda address: (folder, {}))
    with pytest.raises(BackboneError, match=r"'org/gpt2' is a gpt2.*no AutoModelForMaskedLM for this task"):
        load_backbone("org/gpt2", "AutoModelForMaskedLM", None)
