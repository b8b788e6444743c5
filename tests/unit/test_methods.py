"""Every method on every architecture: what a user may rely on whatever the combination."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import CONFIGS, DECODERS, randomize

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
}
NAMES = {"prefix-mlp": "prefix", "pfeiffer": "bottleneck", "houlsby": "bottleneck", "parallel": "bottleneck",
         "scaled-parallel": "adapter"}  # fmt: skip
everywhere = pytest.mark.parametrize("architecture", CONFIGS)
each_method = pytest.mark.parametrize("case", METHODS)


def attach(model, case, **options):
    return adapterlab.attach(model, NAMES.get(case, case), **METHODS[case], **options)


@everywhere
@each_method
def test_attach_train_detach(tiny, batch, logits, train, architecture, case):
    model = tiny(architecture)
    state = copy.deepcopy(model.state_dict())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    backbone = logits(model)
    kind = type(model)

    assert attach(model, case) is model
    assert type(model) is kind
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    losses = train(model, steps=10)
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert not torch.equal(logits(model), backbone)

    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)
    trained = logits(model)
    assert not torch.equal(trained, backbone)

    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), trained)

    assert adapterlab.detach(model) is model
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert torch.equal(logits(model), backbone)
    assert torch.equal(logits(twin), trained), "a copy must not share anything with its original"
    assert not any(hook for module in model.modules() for hook in (module._forward_hooks, module._forward_pre_hooks))


@everywhere
@each_method
def test_only_adapter_and_head_are_trained(tiny, architecture, case):
    model = tiny(architecture)
    pristine = set(tiny(architecture).state_dict())
    attach(model, case)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    heads = {"classifier", "pre_classifier", "score"}
    old = {name for name in trained if name in pristine}
    assert old, "the head must be trained"
    assert {name.split(".")[0] for name in old} <= heads
    assert trained - pristine, "the adapter must be trained"
    summary = adapterlab.summary(model)
    assert summary.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert summary.adapters[0].parameters + summary.adapters[0].head_parameters == summary.trainable


@everywhere
@each_method
def test_save_and_load_give_equal_logits(tiny, logits, tmp_path, architecture, case):
    model = tiny(architecture)
    model.config.id2label = {0: "bad", 1: "so-so", 2: "good"}
    attach(model, case)
    randomize(model)
    folder = adapterlab.save(model, tmp_path / "adapter")
    names = {file.name for file in folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "adapterlab.json"}
    fresh = tiny(architecture)
    assert adapterlab.load(fresh, folder) is fresh
    assert torch.equal(logits(fresh), logits(model))
    assert fresh.config.id2label == {0: "bad", 1: "so-so", 2: "good"}


@everywhere
@each_method
def test_gradient_checkpointing_gives_the_same_gradients(tiny, batch, architecture, case):
    gradients = []
    for checkpointing in (False, True):
        model = tiny(architecture)
        attach(model, case, **({} if "prefix" in case else {"dropout": 0.0}))
        randomize(model)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
                module.attention_dropout = 0.0
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("architecture", DECODERS)
@each_method
def test_generate_with_and_without_cache(tiny, batch, architecture, case):
    model = tiny(architecture, "CausalLM")
    plain = model.generate(batch["input_ids"][1:], max_new_tokens=8, do_sample=False)
    attach(model, case)
    randomize(model)
    prompt = {"input_ids": batch["input_ids"][1:], "attention_mask": batch["attention_mask"][1:]}
    for options in ({"num_beams": 1}, {"num_beams": 3}):
        cached = model.generate(**prompt, max_new_tokens=8, do_sample=False, **options)
        uncached = model.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=False, **options)
        assert torch.equal(cached, uncached)
    assert not torch.equal(model.generate(**prompt, max_new_tokens=8, do_sample=False), plain)
    with adapterlab.disabled(model):
        assert torch.equal(model.generate(**prompt, max_new_tokens=8, do_sample=False), plain)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", CONFIGS)
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
