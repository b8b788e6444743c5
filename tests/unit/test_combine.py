"""Weighted sums of LoRAs as new adapters, and several methods active at once."""

from __future__ import annotations

import pytest
import torch
from conftest import randomize

import adapterlab


@pytest.fixture
def pair(tiny):
    """pair(architecture) has the LoRAs 'a' and 'b', of other ranks and targets, with random weights."""

    def build(architecture, head="SequenceClassification", **options):
        model = tiny(architecture, head)
        for seed, name in enumerate(("a", "b"), start=5):
            adapterlab.attach(model, "lora", name, **{"r": seed - 3, "alpha": 7 * seed, "dropout": 0.0, **options})
            randomize(model, seed=seed, std=0.1)
        return model

    return build


def updates(model, name, inputs):
    """What one adapter alone adds to each adapted linear's output."""
    adapterlab.activate(model, name)
    layers = {path: m for path, m in model.named_modules() if hasattr(m, "lora_A") and name in m.lora_A}
    return {path: m(inputs(m)) - m.base_layer(inputs(m)) for path, m in layers.items()}


def inputs(layer):
    width = layer.in_features
    return torch.linspace(-1, 1, 3 * width).reshape(3, width).sin()


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("how", ["cat", "svd"])
def test_the_sum_of_the_updates(pair, architecture, how):
    model = pair(architecture)
    adapterlab.combine(model, {"a": 0.7, "b": -0.4}, "mix", how=how, **({"r": 5} if how == "svd" else {}))
    assert [a.active for a in adapterlab.summary(model).adapters] == [False, False, True]
    a, b, mix = (updates(model, name, inputs) for name in ("a", "b", "mix"))
    assert mix
    for path, update in mix.items():
        torch.testing.assert_close(update, 0.7 * a[path] - 0.4 * b[path], rtol=1e-4, atol=1e-5)


def test_adapters_on_different_modules(pair):
    model = pair("bert")
    adapterlab.attach(model, "lora", "c", target_modules=["query"], r=3)
    randomize(model, seed=9)
    adapterlab.combine(model, {"c": 0.5, "b": 2.0}, "mix")
    b, c, mix = (updates(model, name, inputs) for name in ("b", "c", "mix"))
    assert len(c) < len(b) == len(mix)
    for path, update in mix.items():
        torch.testing.assert_close(update, 2 * b[path] + 0.5 * c.get(path, torch.zeros(())), rtol=1e-4, atol=1e-5)


def test_svd_is_the_best_of_its_rank(pair):
    model = pair("bert", r=4, alpha=4)
    adapterlab.combine(model, ["a", "b"], "exact", how="cat")
    adapterlab.combine(model, ["a", "b"], "near", how="svd", r=2)
    layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
    exact, near = (layer.get_delta_weight(name) for name in ("exact", "near"))
    _, s, _ = torch.linalg.svd(exact.double())
    torch.testing.assert_close((exact - near).double().norm(), s[2:].norm(), rtol=1e-4, atol=1e-6)


def test_linear_is_pefts(pair, tiny, tmp_path):
    import peft

    model = pair("bert", "MaskedLM", r=4, alpha=6)
    for name in ("a", "b"):
        adapterlab.save(model, tmp_path / name, name)
    theirs = peft.PeftModel.from_pretrained(tiny("bert", "MaskedLM"), tmp_path / "a", adapter_name="a")
    theirs.load_adapter(tmp_path / "b", "b")
    theirs.add_weighted_adapter(["a", "b"], [0.6, -0.3], "mix", combination_type="linear")
    adapterlab.combine(model, {"a": 0.6, "b": -0.3}, "mix", how="linear")
    layers = {path: m for path, m in theirs.base_model.model.named_modules() if hasattr(m, "lora_A")}
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            torch.testing.assert_close(module.get_delta_weight("mix"), layers[path].get_delta_weight("mix"))


def test_the_new_adapter_is_one_like_any_other(pair, tiny, logits, train, tmp_path):
    model = pair("bert")
    a, b = (dict(model._adapterlab_guests.adapters[n].heads["classifier"].named_parameters()) for n in "ab")
    adapterlab.combine(model, {"a": 3.0, "b": 1.0}, "mix")
    torch.testing.assert_close(model.classifier.weight, 0.75 * a["weight"] + 0.25 * b["weight"])
    adapterlab.save(model, tmp_path, "mix")
    assert torch.equal(logits(adapterlab.load(tiny("bert"), tmp_path)), logits(model))
    assert train(model)[-1] < train(model, steps=1)[0] + 1


def test_heads_that_differ(tiny, logits):
    model = tiny("bert")
    for name, labels in {"a": ["x", "y"], "b": ["p", "q", "r"]}.items():
        adapterlab.attach(model, "lora", name, labels=labels)
        randomize(model)
    with pytest.raises(adapterlab.AdapterLabError, match=r"labels differ. Say whose .*head='a'"):
        adapterlab.combine(model, ["a", "b"], "mix")
    adapterlab.combine(model, ["a", "b"], "mix", head="b")
    assert logits(model).shape == (4, 3)
    assert model.config.id2label == {0: "p", 1: "q", 2: "r"}


@pytest.mark.parametrize(
    ("adapters", "options", "message"),
    [
        (["a", "c"], {}, r"unknown adapter 'c'.*Known: a, b, pre"),
        ({"a": float("nan")}, {}, "weight of 'a' must be a finite number"),
        (["a", "b"], {"how": "svdd"}, "'svdd' is none of linear, cat, svd. Did you mean 'svd'"),
        (["a", "b"], {"how": "cat", "r": 4}, "which alone takes one"),
        (["a", "b"], {"how": "linear"}, r"needs equal ranks, and these are \[2, 3\]"),
        (["a", "pre"], {}, r"different methods can't be summed \('a' is lora, 'pre' is prefix\). Activate them"),
        (["pre"], {}, r"method 'prefix' have no weighted sum"),
        ([], {}, "at least one"),
        (["a", "b"], {"name": "a"}, "has an adapter 'a'"),
    ],
)
def test_what_cannot_be_combined(pair, logits, adapters, options, message):
    model = pair("bert")
    adapterlab.attach(model, "prefix", "pre", num_virtual_tokens=3)
    adapterlab.activate(model, "a")
    before = logits(model)
    with pytest.raises(adapterlab.AdapterLabError, match=message):
        adapterlab.combine(model, adapters, **options)
    assert [a.name for a in adapterlab.summary(model).adapters] == ["a", "b", "pre"]
    assert torch.equal(logits(model), before)
