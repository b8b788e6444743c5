"""Full fine-tuning as a guest: the numbers of plain full fine-tuning, and the backbone back whenever it is wanted."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import randomize
from safetensors.torch import load_file
from tiny_workshop import furnish

import adapterlab

HEADS = {"bert": "SequenceClassification", "gpt2": "CausalLM", "t5": "Seq2SeqLM"}


def batch_for(head):
    ids = torch.randint(3, 97, (4, 8), generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 2, 1]) if head == "SequenceClassification" else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def train(model, batch, steps=5):
    """Train in eval mode, so that dropout is no difference."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model.eval()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("architecture", HEADS)
def test_it_is_full_fine_tuning(tiny, architecture):
    head = HEADS[architecture]
    plain = tiny(architecture, head)
    guest = adapterlab.attach(copy.deepcopy(plain), "full")
    train(plain, batch_for(head))
    train(guest, batch_for(head))
    adapterlab.merge(guest)
    assert guest.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(guest.state_dict()[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_tied_weights_stay_tied(tiny, tmp_path, recwarn):
    model = adapterlab.attach(tiny("gpt2", "CausalLM"), "full")
    total = sum(p.numel() for p in tiny("gpt2", "CausalLM").parameters())
    assert adapterlab.summary(model).trainable == total
    train(model, batch_for("CausalLM"))
    assert model.get_input_embeddings().weight is model.lm_head.weight
    output = model(**batch_for("CausalLM")).logits
    adapterlab.merge(model)
    assert model.get_input_embeddings().weight is model.lm_head.weight
    assert not [w for w in recwarn if "untied" in str(w.message)]
    torch.testing.assert_close(model(**batch_for("CausalLM")).logits, output, rtol=0, atol=0)


def test_the_file_is_a_whole_checkpoint(tiny, logits, tmp_path):
    model = adapterlab.attach(tiny("bert"), "full")
    randomize(model)
    adapterlab.save(model, tmp_path)
    file = load_file(tmp_path / "adapter_model.safetensors")
    saved = {key.removeprefix("base_model.model."): tensor for key, tensor in file.items()}
    plain = tiny("bert")
    assert saved.keys() == {name for name, _ in plain.named_parameters()}
    plain.load_state_dict(saved, strict=False)
    assert torch.equal(logits(plain), logits(model))


def test_a_bf16_backbone_is_trained_in_fp32(tiny, logits):
    model = adapterlab.attach(tiny("bert").to(torch.bfloat16), "full")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model).dtype == torch.float32
    with adapterlab.disabled(model):
        assert logits(model).dtype == torch.bfloat16
    adapterlab.merge(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_two_of_them_take_turns(tiny, logits):
    model = tiny("bert")
    outputs = {}
    for name, seed in (("a", 1), ("b", 2)):
        adapterlab.attach(model, "full", name)
        randomize(model, seed)
        outputs[name] = logits(model)
    assert not torch.equal(outputs["a"], outputs["b"])
    adapterlab.activate(model, "a")
    assert torch.equal(logits(model), outputs["a"])
    with pytest.raises(adapterlab.AdapterLabError, match="a, b each stand in the place of all weights"):
        adapterlab.activate(model, ["a", "b"])
    assert torch.equal(logits(model), outputs["a"]), "what was refused changed nothing"
    adapterlab.detach(model, "a")
    adapterlab.activate(model, "b")
    assert torch.equal(logits(model), outputs["b"])


@pytest.mark.parametrize("order", [["whole", "lora"], ["lora", "whole"]])
@pytest.mark.parametrize("first", ["whole", "lora"])
def test_it_and_lora_add_up_and_merge_together(tiny, logits, first, order):
    model = tiny("bert")
    for name in (first, *{"whole", "lora"} - {first}):
        adapterlab.attach(model, "full" if name == "whole" else "lora", name)
        randomize(model, std=0.05)
    outputs = {}
    for names in (["whole"], ["lora"], order):
        adapterlab.activate(model, names)
        outputs[tuple(names)] = logits(model)
    assert not torch.equal(outputs[tuple(order)], outputs["whole",])
    assert not torch.equal(outputs[tuple(order)], outputs["lora",])
    adapterlab.merge(model)
    torch.testing.assert_close(logits(model), outputs[tuple(order)], rtol=0, atol=1e-5)


def test_a_merge_that_fails_leaves_it_as_it_was(tiny, logits):
    model = adapterlab.attach(tiny("bert"), "full")
    randomize(model)
    before = logits(model)
    bias = model.bert.pooler.dense.full_weights["default"]["bias"]
    value = bias[0].item()
    with torch.no_grad():
        bias[0] = float("nan")
    with pytest.raises(adapterlab.AdapterLabError, match="aren't finite"):
        adapterlab.merge(model)
    with torch.no_grad():
        bias[0] = value
    assert torch.equal(logits(model), before)
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), logits(tiny("bert")))


def test_it_brings_new_tokens(tiny, tmp_path):
    model = adapterlab.attach(tiny("gpt2", "CausalLM"), "full", new_tokens={"<a>": [5, 6]})
    batch = batch_for("CausalLM")
    batch["input_ids"][0, 0] = 97
    train(model, batch)
    output = model(**batch).logits
    assert output.shape[-1] == 98
    again = adapterlab.load(tiny("gpt2", "CausalLM"), adapterlab.save(model, tmp_path))
    torch.testing.assert_close(again(**batch).logits, output)
    adapterlab.merge(model)
    torch.testing.assert_close(model(**batch).logits, output, rtol=0, atol=1e-5)


def test_fsdp_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(furnish(tmp_path))
    assert adapterlab.run("tiny.yaml", "adapter={method: full}", dry_run=True) is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(adapterlab.AdapterLabError, match=r"\(full\) can't be trained under FSDP"):
        adapterlab.run("tiny.yaml", "adapter={method: full}", dry_run=True)
