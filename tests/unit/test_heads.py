"""Methods under other heads than classification, under both attentions, and at the papers' sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import CONFIGS, NO_PREFIX, randomize

import adapterlab

METHODS = {
    "lora": {"r": 4},
    "adalora": {"target_r": 2, "init_r": 3, "total_step": 10},
    "prefix": {"num_virtual_tokens": 5},
    "prefix-mlp": {"num_virtual_tokens": 5, "prefix_projection": True},
    "pfeiffer": {"variant": "pfeiffer", "reduction_factor": 4},
    "houlsby": {"variant": "houlsby", "reduction_factor": 4},
    "parallel": {"variant": "parallel"},
    "scaled-parallel": {"variant": "scaled_parallel"},
    "prompt": {"num_virtual_tokens": 5},
    "p_tuning": {"num_virtual_tokens": 5},
}
NAMES = {"prefix-mlp": "prefix", "pfeiffer": "bottleneck", "houlsby": "bottleneck", "parallel": "bottleneck",
         "scaled-parallel": "adapter"}  # fmt: skip
each_method = pytest.mark.parametrize("case", METHODS)


def attach(model, case, **options):
    return adapterlab.attach(model, NAMES.get(case, case), **METHODS[case], **options)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", sorted(CONFIGS.keys() - set(NO_PREFIX)))
def test_prefix_is_the_same_for_every_attention(tiny, logits, architecture, implementation):
    model = tiny(architecture)
    model.set_attn_implementation("sdpa")
    attach(model, "prefix")
    randomize(model)
    expected = logits(model)
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering", "MultipleChoice", "MaskedLM"])
@each_method
def test_other_heads_of_bert(tiny, batch, head, case):
    model = tiny("bert", head)
    attach(model, case)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    inputs = {"input_ids": ids, "attention_mask": mask}
    if head == "MultipleChoice":
        inputs = {key: value.view(2, 2, -1) for key, value in inputs.items()}
    output = model(**inputs)
    output[0].float().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    head_is_trained = any(name.startswith(("classifier", "qa_outputs")) for name in trained)
    assert head_is_trained == (head != "MaskedLM"), "a pretrained language-model head stays frozen"
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@each_method
def test_a_bare_encoder_has_no_head(tiny, case):
    model = tiny("bert").bert
    attach(model, case)
    assert adapterlab.summary(model).adapters[0].head_parameters == 0
    adapterlab.detach(model)


def test_defaults_are_the_papers():
    """Bottleneck sizes on BERT-base, all layers, as the papers and the adapters library count them."""
    import transformers

    with torch.device("meta"):
        base = transformers.BertModel(transformers.BertConfig())
    for variant, count in {"pfeiffer": 894_528, "houlsby": 1_789_056, "parallel": 7_091_712}.items():
        model = copy.deepcopy(base)
        adapterlab.attach(model, "bottleneck", variant=variant)
        assert adapterlab.summary(model).trainable == count
