"""Merging leaves a plain transformers model; whatever can't be merged leaves everything as it was."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from conftest import randomize

import adapterlab


def is_plain(model):
    ours = ("lora", "adapter", "prefix", "prompt")
    assert not any(part in name for name, _ in model.named_parameters() for part in ours)
    assert not any(isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) for module in model.modules())
    hooks = [
        h for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks, m._load_state_dict_post_hooks)
    ]
    assert not any(hooks)
    assert "save_pretrained" not in vars(model)
    assert adapterlab.summary(model).adapters == ()


def test_several_active_adapters_with_a_head_of_another_size(tiny, logits, tmp_path):
    model = tiny("bert")
    for seed, (name, method) in enumerate({"a": "lora", "b": "adalora"}.items()):
        adapterlab.attach(model, method, name, labels=["x", "y"])
        randomize(model, seed=seed)
    adapterlab.activate(model, ["a", "b"])
    expected = logits(model)
    assert adapterlab.merge(model) is model
    is_plain(model)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.id2label == {0: "x", 1: "y"}
    assert torch.equal(logits(again), logits(model))


def test_the_sum_is_computed_in_fp32_on_a_bf16_backbone(tiny, logits):
    model = tiny("bert").to(torch.bfloat16)
    adapterlab.attach(model, "lora", target_modules=["query"], r=4, alpha=4)
    randomize(model)
    layer = model.bert.encoder.layer[0].attention.self.query
    expected = (layer.base_layer.weight.float() + layer.get_delta_weight("default").float()).to(torch.bfloat16)
    adapterlab.merge(model)
    assert torch.equal(model.bert.encoder.layer[0].attention.self.query.weight, expected)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("architecture", "target"), [("gpt2", "wte"), ("gpt2", "lm_head"), ("bert", "word_embeddings")]
)
def test_a_tied_weight_is_untied_and_its_other_end_kept(tiny, logits, tmp_path, architecture, target):
    model = tiny(architecture, "CausalLM" if architecture == "gpt2" else "MaskedLM")
    before = model.get_input_embeddings().weight.clone()
    adapterlab.attach(model, "lora", target_modules=[target], r=4, dropout=0.0)
    randomize(model)
    expected = logits(model)
    with pytest.warns(UserWarning, match="they are untied now"):
        adapterlab.merge(model)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    other = model.get_input_embeddings() if target == "lm_head" else model.get_output_embeddings()
    assert torch.equal(other.weight, before)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "albert", "deberta-v2"])
def test_a_bias_that_was_tied_along_is_saved_too(tiny, logits, tmp_path, architecture):
    model = tiny(architecture, "MaskedLM")
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    adapterlab.attach(model, "lora", target_modules=["word_embeddings"], r=4)
    randomize(model)
    with pytest.warns(UserWarning, match="they are untied now"):
        adapterlab.merge(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(model))


def test_tied_weights_that_no_adapter_touches_stay_tied(tiny):
    model = adapterlab.attach(tiny("gpt2", "CausalLM"), "lora")
    randomize(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapterlab.merge(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("method", "options"), [("prefix", {}), ("bottleneck", {}), ("bottleneck", {"variant": "parallel"})]
)
def test_what_is_no_change_of_weights(tiny, logits, method, options):
    model = adapterlab.attach(tiny("bert"), method, **options)
    randomize(model)
    before = logits(model)
    with pytest.raises(adapterlab.AdapterLabError, match=rf"'default' \({method}\) can't be merged.*lora"):
        adapterlab.merge(model)
    assert torch.equal(logits(model), before)


def test_values_that_are_not_finite_or_become_so(tiny, logits):
    model = adapterlab.attach(tiny("bert"), "lora")
    randomize(model)
    before = logits(model)
    weight = model.bert.encoder.layer[1].output.dense.lora_B["default"].weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    with pytest.raises(adapterlab.AdapterLabError, match=r"aren't finite, in .*layer.1.output.dense.lora_B"):
        adapterlab.merge(model)
    with torch.no_grad():
        weight.copy_(kept)
        weight[0, :] = 3e38
    with pytest.raises(adapterlab.AdapterLabError, match="merging default failed and was undone"):
        adapterlab.merge(model)
    with torch.no_grad():
        weight.copy_(kept)
    assert torch.equal(logits(model), before)
    adapterlab.merge(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)


def test_an_adapter_that_would_be_lost(tiny):
    model = adapterlab.attach(adapterlab.attach(tiny("bert"), "lora", "a"), "prefix", "b")
    with pytest.raises(adapterlab.AdapterLabError, match=r"would leave b on weights.*detach\(model, 'b'\)"):
        adapterlab.merge(model, "a")
    adapterlab.activate(model, None)
    with pytest.raises(adapterlab.AdapterLabError, match=r"no adapter is active; the model has a, b"):
        adapterlab.merge(model)
    adapterlab.detach(model, "b")
    is_plain(adapterlab.merge(model, "a"))
