"""Several adapters, and what a user does wrong: the message helps, the model stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import randomize

import adapterlab
from adapterlab.adapters import LoraConfig


def unchanged(model, state):
    now = model.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[name], state[name]) for name in state)


def test_a_config_object_a_dict_and_an_alias(tiny):
    one = adapterlab.attach(tiny("bert"), "lora", r=4, alpha=8)
    two = adapterlab.attach(tiny("bert"), {"method": "lora", "r": 4, "lora_alpha": 8})
    three = adapterlab.attach(tiny("bert"), LoraConfig(r=4, alpha=8))
    assert str(adapterlab.summary(one)) == str(adapterlab.summary(two)) == str(adapterlab.summary(three))
    assert adapterlab.summary(adapterlab.attach(tiny("bert"), "adapter")).adapters[0].method == "bottleneck"


def test_default_targets_are_all_linears_of_the_layers(tiny):
    model = adapterlab.attach(tiny("bert"), "lora")
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    in_layers = {
        name for name, module in tiny("bert").named_modules()
        if isinstance(module, torch.nn.Linear) and ".layer." in name
    }  # fmt: skip
    assert adapted == in_layers


@pytest.mark.parametrize("method", ["lora", "adalora", "bottleneck"])
def test_layers(tiny, method):
    model = adapterlab.attach(tiny("bert"), method, layers=[-1])
    names = [name for name, p in model.named_parameters() if p.requires_grad and "classifier" not in name]
    assert names
    assert all(".layer.1." in name for name in names)


@pytest.mark.parametrize("model", ["bert-base-uncased", None])
def test_what_is_no_model(model):
    with pytest.raises(adapterlab.AdapterLabError, match=f"transformers model is needed, and {model!r} was.*Load it"):
        adapterlab.attach(model, "lora")


def test_a_width_of_an_mlp_that_is_not_there(tiny, tmp_path):
    with pytest.raises(adapterlab.AdapterLabError, match=r"encoder_hidden_size is the width .* prefix_projection=True"):
        adapterlab.attach(tiny("bert"), "prefix", encoder_hidden_size=8)
    model = adapterlab.attach(tiny("bert"), "prefix", encoder_hidden_size=8, prefix_projection=True)
    adapterlab.load(tiny("bert"), adapterlab.save(model, tmp_path))


@pytest.mark.parametrize("method", ["lora", "adalora", "bottleneck", "vera", "ia3"])
def test_an_adapter_of_some_layers_is_loaded(tiny, logits, tmp_path, method):
    model = adapterlab.attach(tiny("bert"), method, layers=[-1])
    randomize(model)
    adapterlab.save(model, tmp_path)
    again = adapterlab.load(tiny("bert"), tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_two_adapters_side_by_side(tiny, logits):
    model = tiny("bert")
    backbone = logits(model)
    outputs = {}
    for name, method in {"first": "lora", "second": "bottleneck", "third": "prefix", "fourth": "lora"}.items():
        adapterlab.attach(model, method, name)
        randomize(model, seed=len(outputs))
        outputs[name] = logits(model)
    assert [a.active for a in adapterlab.summary(model).adapters] == [False, False, False, True]
    for name, output in outputs.items():
        adapterlab.activate(model, name)
        assert torch.equal(logits(model), output), name
    adapterlab.activate(model, None)
    assert torch.equal(logits(model), backbone)
    adapterlab.activate(model, ["first", "second"])
    both = logits(model)
    assert not any(torch.equal(both, output) for output in outputs.values())
    adapterlab.detach(model, "second")
    adapterlab.activate(model, "first")
    assert torch.equal(logits(model), outputs["first"])
    adapterlab.detach(model)
    assert torch.equal(logits(model), backbone)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2"])
def test_heads_of_different_sizes(tiny, batch, logits, train, tmp_path, architecture):
    model = tiny(architecture)
    backbone = logits(model)
    adapterlab.attach(model, "lora", "topics", labels=["law", "art", "war", "sea", "sky"])
    train(model, steps=3, labels=torch.tensor([4, 3, 2, 0]))
    adapterlab.attach(model, "prefix", "rating", labels=1)
    train(model, steps=3, labels=torch.tensor([0.5, -1.0, 2.0, 0.0]))
    assert model.config.problem_type == "regression"
    rating = logits(model)
    adapterlab.activate(model, "topics")
    assert model.config.id2label[4] == "sky"
    topics = logits(model)
    assert (topics.shape, rating.shape, backbone.shape) == ((4, 5), (4, 1), (4, 3))
    train(model, steps=1, labels=torch.tensor([4, 3, 2, 0]))
    topics = logits(model)
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)
        assert model(**batch).logits.shape == (4, 3)
    for name in ("topics", "rating"):
        adapterlab.save(model, tmp_path / name, name)
    host = tiny(architecture)
    adapterlab.load(host, tmp_path / "rating", "rating")
    adapterlab.load(host, tmp_path / "topics", "topics")
    assert torch.equal(logits(host), topics)
    adapterlab.activate(host, "rating")
    assert torch.equal(logits(host), rating)
    adapterlab.detach(model)
    assert torch.equal(logits(model), backbone)
    assert (model.config.num_labels, model.num_labels, model.config.problem_type) == (3, 3, None)


def test_a_head_of_another_size_that_peft_saved(tiny, logits, tmp_path):
    import peft

    theirs = tiny("bert")
    theirs.classifier = torch.nn.Linear(32, 5)
    theirs.num_labels = 5
    config = peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    theirs = peft.get_peft_model(theirs, config)
    theirs.save_pretrained(tmp_path)
    model = adapterlab.load(tiny("bert"), tmp_path)
    torch.testing.assert_close(logits(model), logits(theirs))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "a"], "a list of different names, or how many there are"),
        (0, "a list of different names"),
        ("ab", "a list of different names"),
        ([], "a list of different names"),
    ],
)
def test_labels_that_cannot_be(tiny, labels, message):
    model = tiny("bert")
    with pytest.raises(adapterlab.AdapterLabError, match=message):
        adapterlab.attach(model, "lora", labels=labels)
    assert adapterlab.summary(model).adapters == ()


def test_labels_without_a_head_for_them(tiny):
    for model in (tiny("bert", "MaskedLM"), tiny("bert").bert):
        with pytest.raises(adapterlab.AdapterLabError, match="no classification head with an output for each label"):
            adapterlab.attach(model, "lora", labels=["a", "b"])
        assert adapterlab.summary(model).adapters == ()


def test_activation_switches_labels_back(tiny):
    model = tiny("bert")
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    adapterlab.attach(model, "lora")
    model.config.id2label = {0: "x", 1: "y", 2: "z"}
    adapterlab.detach(model)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_summary_in_words(tiny):
    model = adapterlab.attach(tiny("bert"), "lora", r=4)
    text = str(adapterlab.summary(model))
    assert "default: lora, active" in text
    assert f"{adapterlab.summary(model).trainable:,}" in text
    assert adapterlab.summary(tiny("bert")).adapters == ()


def test_methods_lists_every_method():
    found = {info.name: info for info in adapterlab.methods()}
    assert {"lora", "adalora", "prefix", "bottleneck"} <= found.keys()
    for info in found.values():
        assert info.summary
        assert info.paper or info.name not in ("lora", "adalora", "prefix", "bottleneck", "prompt", "p_tuning")
        assert all(option.help for option in info.options)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "lroa",
            {},
            "unknown method 'lroa'. Did you mean 'lora'\\?.*adalora, .*adapter, .*bottleneck, .*ia3, .*lora, .*prefix",
        ),
        ("lora", {"rank": 8}, "rank: method 'lora' has no such option.*Known:.* r,"),
        ("lora", {"alpa": 8}, "Did you mean 'alpha'"),
        ("lora", {"r": 0, "dropout": 1.5}, "(?s)dropout: .*r: "),
        ("lora", {"r": 4, "target_modules": ["qery"]}, "'qery'.*Did you mean 'query'"),
        ("lora", {"layers": [0, 7]}, "layers \\[7\\] do not exist.*2 layers, 0 to 1"),
        ("adalora", {"target_r": 8, "init_r": 4}, "init_r \\(4\\) is below target_r \\(8\\)"),
        ("bottleneck", {"reduction_factor": 4, "bottleneck_size": 8}, "both set the size"),
        ("bottleneck", {"activation": "swich"}, "activation 'swich' is unknown"),
        ("bottleneck", {"variant": "hulsby"}, "variant: .*'houlsby'"),
        ("prefix", {"num_virtual_tokens": -3}, "num_virtual_tokens: "),
        ("lora", {"modules_to_save": ["poler"]}, "Did you mean 'pooler'"),
        (7, {}, "7 was given"),
    ],
)
def test_wrong_options(tiny, method, options, message):
    model = tiny("bert")
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(adapterlab.AdapterLabError, match=message):
        adapterlab.attach(model, method, **options)
    assert unchanged(model, state)
    assert adapterlab.summary(model).adapters == ()
    assert all(p.requires_grad for p in model.parameters())
    assert "save_pretrained" not in model.__dict__


def test_attaching_twice_under_one_name(tiny):
    model = adapterlab.attach(tiny("bert"), "lora")
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(adapterlab.AdapterLabError, match=r"an adapter 'default' \(lora\) already.*detach"):
        adapterlab.attach(model, "prefix")
    assert unchanged(model, state)


def test_a_failed_attach_leaves_the_other_adapters_alone(tiny, logits):
    model = adapterlab.attach(tiny("bert"), "lora")
    randomize(model)
    before = logits(model)
    with pytest.raises(adapterlab.AdapterLabError):
        adapterlab.attach(model, "lora", "second", target_modules=["nothing"])
    assert torch.equal(logits(model), before)
    assert [a.name for a in adapterlab.summary(model).adapters] == ["default"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: adapterlab.detach(model), "has no adapter"),
        (lambda model: adapterlab.save(model, "nowhere"), "has no adapter"),
        (lambda model: adapterlab.activate(model, "x"), "has no adapter"),
        (lambda model: adapterlab.attach(model, "lora", "my.name"), "letters, digits"),
    ],
)
def test_calls_on_a_plain_model(tiny, call, message):
    with pytest.raises(adapterlab.AdapterLabError, match=message):
        call(tiny("bert"))


def test_unknown_adapter_names(tiny):
    model = adapterlab.attach(tiny("bert"), "lora", "reviews")
    for call in (adapterlab.activate, adapterlab.detach):
        with pytest.raises(adapterlab.AdapterLabError, match=r"unknown adapter 'review'\. Did you mean 'reviews'"):
            call(model, "review")


def test_what_is_no_backbone(tiny):
    import peft

    with pytest.raises(adapterlab.AdapterLabError, match="a transformers model is needed"):
        adapterlab.attach(torch.nn.Linear(3, 3), "lora")
    wrapped = peft.get_peft_model(tiny("bert"), peft.LoraConfig(target_modules=["query"]))
    for holder in (wrapped, wrapped.get_base_model()):
        with pytest.raises(adapterlab.AdapterLabError, match="unload"):
            adapterlab.attach(holder, "lora")


def test_an_architecture_without_an_entry(tiny, batch):
    """Low-rank methods need only the linears; methods that need to know the layer's inside say so."""
    model = tiny("invented")
    adapterlab.attach(model, "lora")
    model(input_ids=batch["input_ids"]).logits.sum().backward()
    adapterlab.detach(model)
    with pytest.raises(adapterlab.AdapterLabError, match="architecture 'invented' is not among those described"):
        adapterlab.attach(model, "bottleneck", variant="houlsby")


def test_a_prefix_longer_than_the_positions(tiny):
    model = adapterlab.attach(tiny("bert"), "prefix", num_virtual_tokens=60)
    ids = torch.ones(1, 10, dtype=torch.long)
    with pytest.raises(adapterlab.AdapterLabError, match="Truncate to 4 tokens"):
        model(input_ids=ids)
    adapterlab.detach(model)
    adapterlab.attach(model, "prefix", num_virtual_tokens=60, preserve_positions=True)
    model(input_ids=ids)
