"""What we save, plain peft loads, and the other way round, with equal logits."""

from __future__ import annotations

import json
import warnings

import peft
import pytest
import torch
from conftest import CONFIGS, DECODERS, NO_PREFIX, randomize

import adapterlab

CASES = {
    "lora": {"r": 4, "alpha": 12, "use_rslora": True},
    "lora-qv": {"r": 4, "target_modules": ["query", "value"]},
    "adalora": {"target_r": 2, "init_r": 3, "total_step": 10},
    "prefix": {"num_virtual_tokens": 5},
    "prefix-mlp": {"num_virtual_tokens": 5, "prefix_projection": True},
}
NO_CACHE = ("distilbert", "albert", "modernbert")  # peft puts its prefix into the cache, which these don't have


pytestmark = pytest.mark.usefixtures("peft_finds_the_cache")


def cells():
    for architecture in CONFIGS:
        for case in CASES:
            if case == "lora-qv" and architecture not in ("bert", "roberta"):
                continue  # their names for it
            if "prefix" in case and architecture in (*NO_PREFIX, *NO_CACHE):
                continue
            for head in ("SequenceClassification", *(("CausalLM",) if architecture in DECODERS else ())):
                yield pytest.param(architecture, case, head, id=f"{architecture}-{case}-{head}")


def attached(tiny, architecture, case, head):
    model = tiny(architecture, head)
    adapterlab.attach(model, case.split("-")[0], **CASES[case])
    randomize(model)
    return model


@pytest.mark.parametrize(("architecture", "case", "head"), cells())
def test_peft_reads_ours_and_we_read_pefts(tiny, logits, tmp_path, architecture, case, head):
    model = attached(tiny, architecture, case, head)
    expected = logits(model)
    adapterlab.save(model, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        theirs = peft.PeftModel.from_pretrained(tiny(architecture, head), tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=2e-6)

    theirs.save_pretrained(tmp_path / "theirs")
    back = adapterlab.load(tiny(architecture, head), tmp_path / "theirs")
    torch.testing.assert_close(logits(back), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("architecture", "case", "head"), [c for c in cells() if "adalora" not in c.id])
def test_keys_are_pefts(tiny, tmp_path, architecture, case, head):
    from safetensors.torch import load_file

    adapterlab.save(attached(tiny, architecture, case, head), tmp_path / "ours")
    peft.PeftModel.from_pretrained(tiny(architecture, head), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    ours = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_pruned_adalora(tiny, logits, train, tmp_path, architecture):
    model = tiny(architecture)
    adapterlab.attach(model, "adalora", target_r=1, init_r=4, total_step=12, tinit=1, tfinal=2)
    train(model, steps=12)
    adapterlab.save(model, tmp_path / "ours")
    fields = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    kept = [sum(pattern) for pattern in fields["rank_pattern"].values()]
    assert sum(kept) == len(kept), "one triplet per matrix on average"
    assert min(kept) == 0, "some matrix is pruned away altogether"
    theirs = peft.PeftModel.from_pretrained(tiny(architecture), tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), logits(model), rtol=0, atol=2e-6)
    back = adapterlab.load(tiny(architecture), tmp_path / "ours")
    assert torch.equal(logits(back), logits(model))


def test_an_adapter_that_peft_trained(tiny, logits, train, tmp_path):
    config = peft.LoraConfig(
        r=3, target_modules=["query", "dense"], modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    theirs = peft.get_peft_model(tiny("bert"), config)
    train(theirs, steps=3)
    theirs.save_pretrained(tmp_path)
    ours = adapterlab.load(tiny("bert"), tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=2e-6)
