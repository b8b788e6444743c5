"""An adapter belongs to the backbone it was trained on."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from conftest import CONFIGS, randomize

import adapterlab


@pytest.fixture
def saved(tiny, tmp_path):
    model = adapterlab.attach(tiny("bert"), "lora")
    randomize(model)
    return adapterlab.save(model, tmp_path / "adapter")


def other(seed=77):
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(CONFIGS["bert"]()).eval()


def test_another_backbone_is_refused_by_both_names(saved):
    model = other()
    model.config._name_or_path = "some/other-bert"
    fields = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps(fields | {"base_model_name_or_path": "the/right-bert"}))
    with pytest.raises(adapterlab.AdapterLabError, match=r"the/right-bert \(bert, 2 layers.*some/other-bert \(bert, 2"):
        adapterlab.load(model, saved)
    assert adapterlab.summary(model).adapters == ()
    adapterlab.load(model, saved, allow_mismatch=True)
    assert adapterlab.summary(model).adapters[0].active


def test_one_layer_of_other_weights_is_another_backbone(tiny, saved):
    model = tiny("bert")
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.mul_(1.01)
    with pytest.raises(adapterlab.AdapterLabError, match="on other weights it means nothing"):
        adapterlab.load(model, saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casts_keep_it(tiny, saved, dtype):
    adapterlab.load(tiny("bert").to(dtype), saved)
    with pytest.raises(adapterlab.AdapterLabError, match="trained on"):
        adapterlab.load(other().to(dtype), saved)


def test_heads_and_new_words_do_not_count(tiny, saved):
    model = tiny("bert")
    torch.nn.init.normal_(model.classifier.weight)
    torch.nn.init.normal_(model.bert.pooler.dense.weight)
    adapterlab.load(model, saved)
    adapterlab.attach(model, "prefix", "second")
    adapterlab.save(model, saved.parent / "second", "second")
    adapterlab.load(tiny("bert"), saved.parent / "second")


def test_a_second_adapter_is_checked_as_well(tiny, saved):
    model = adapterlab.attach(other(), "lora", "mine")
    with pytest.raises(adapterlab.AdapterLabError, match="trained on"):
        adapterlab.load(model, saved, "theirs")
    assert [a.name for a in adapterlab.summary(model).adapters] == ["mine"]
