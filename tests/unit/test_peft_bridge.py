"""Every method of peft's, under peft's name: the same promises as for our own, and the refusals where it can't."""

from __future__ import annotations

import copy
import enum
import itertools
import re
import warnings

import peft
import pytest
import torch
from conftest import CONFIGS, randomize
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

import adapterlab
from adapterlab.adapters import METHODS, peft_bridge
from adapterlab.adapters.peft_method import PeftMethod
from adapterlab.errors import AdapterError, BackboneError, ConfigError
from adapterlab.trainer_hooks import training_state

CORE = ("ia3", "vera", "oft", "loha", "lokr")
EVERY = [name for name, method in METHODS if isinstance(method, PeftMethod)]
SHARING = [name for name in EVERY if name in ("frod", "lily", "pvera", "tinylora", "unilora", "vblora", "vera")]
# the others on Llama: see `test_bf16_on_llama`
CELLS = [(a, m) for a in CONFIGS for m in CORE] + [(a, m) for a in ("bert", "gpt2") for m in EVERY if m not in CORE]
each = pytest.mark.parametrize("method", EVERY)
cells = pytest.mark.parametrize(("architecture", "method"), CELLS)


def refused(architecture, method):
    return architecture == "gpt2" and METHODS.get(method).conv1d is False


def is_as_before(model, state):
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    assert not any(key.startswith("_adapterlab") or key == "peft_config" for key in vars(model))
    assert not any(hook for m in model.modules() for hook in (m._forward_hooks, m._forward_pre_hooks))


def test_those_that_peft_has_are_there():
    known = {info.name: info for info in adapterlab.methods()}
    for name in (*CORE, "boft", "c3a", "fourierft", "hra", "ln_tuning", "miss", "randlora", "road", "shira", "vblora"):
        assert known[name].summary, name
        assert known[name].paper, name
    for name in EVERY:
        METHODS.get(name).Config.model_json_schema()
        assert all(option.help for option in known[name].options), name


@cells
def test_a_whole_life(tiny, logits, train, tmp_path, architecture, method):
    torch.manual_seed(0)
    model = tiny(architecture)
    state = copy.deepcopy(model.state_dict())
    backbone = logits(model)
    if refused(architecture, method):
        with pytest.raises(BackboneError, match=rf"'{method}' can't adapt the Conv1D modules .*can: adalora.*vera"):
            adapterlab.attach(model, method)
        is_as_before(model, state)
        return

    assert adapterlab.attach(model, method) is model
    parameters = METHODS.get(method).parameters(model, "default")
    assert parameters
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert not set(parameters) & set(frozen)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    losses = train(model, steps=4, lr=5e-3)
    assert min(losses[1:]) < losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert any(not torch.equal(p, before[name]) for name, p in parameters.items())

    randomize(model)
    trained = logits(model)
    assert (trained - backbone).abs().max() > 1e-4
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)
    if method in CORE:
        loaded = adapterlab.load(tiny(architecture), adapterlab.save(model, tmp_path))
        assert torch.equal(logits(loaded), trained)
    if METHODS.get(method).merges:
        merged = adapterlab.merge(copy.deepcopy(model))
        assert merged.state_dict().keys() == state.keys()
        torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-5 * trained.abs().max().item())
    twin = copy.deepcopy(model)
    randomize(model, seed=4)
    adapterlab.detach(model)
    is_as_before(model, state)
    assert torch.equal(logits(twin), trained), "a copy must not share anything with its original"


@pytest.mark.parametrize(("method", "reason"), [("lily", "can't be merged: what it adds"), ("beft", "has no bias")])
def test_what_does_not_merge(tiny, logits, method, reason):
    model = adapterlab.attach(tiny("llama"), method)
    randomize(model)
    expected, state = logits(model), copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match=reason):
        adapterlab.merge(model)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("method", ["delora", "hira", "hra", "loha", "miss", "psoft"])
def test_a_rank_larger_than_the_layer(tiny, method):
    model = tiny("bert")
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=r"r: 33 is more than .* 32 at most for features 32 to 32, 32 to 64, 64"):
        adapterlab.attach(model, method, r=33)
    is_as_before(model, state)
    adapterlab.attach(model, method, r=32)


@each
def test_two_adapters_of_one_method(tiny, logits, tmp_path, method):
    model = tiny("bert")
    state = copy.deepcopy(model.state_dict())
    expected = {}
    for seed, name in enumerate("ab"):
        adapterlab.attach(model, method, name)
        randomize(model, seed=seed, std=0.1)
        expected[name] = logits(model)
    for name in "ab":
        adapterlab.activate(model, name)
        assert torch.equal(logits(model), expected[name])
    fresh = adapterlab.load(tiny("bert"), adapterlab.save(model, tmp_path, "a"))
    assert torch.equal(logits(fresh), expected["a"])
    if METHODS.get(method).known.alone:
        with pytest.raises(AdapterError, match=f"only one '{method}' can be active"):
            adapterlab.activate(model, ["a", "b"])
        assert torch.equal(logits(model), expected["b"]), "and what was active is active still"
    else:
        adapterlab.activate(model, ["a", "b"])
        both = logits(model)
        assert not torch.equal(both, expected["a"])
        assert not torch.equal(both, expected["b"])
        if METHODS.get(method).known.merges_alone:
            with pytest.raises(AdapterError, match="which is active there too: only one of them can be merged"):
                adapterlab.merge(model)
            assert torch.equal(logits(model), both)
        elif METHODS.get(method).merges:
            merged = adapterlab.merge(copy.deepcopy(model))
            torch.testing.assert_close(logits(merged), both, rtol=1e-5, atol=1e-5)
    adapterlab.activate(model, "b")
    adapterlab.detach(model, "a")
    assert torch.equal(logits(model), expected["b"])
    adapterlab.detach(model)
    is_as_before(model, state)


@pytest.mark.parametrize(
    ("method", "lora_first"), [(method, True) for method in EVERY] + [(method, False) for method in (*CORE, "hra")]
)
def test_beside_lora(tiny, logits, tmp_path, method, lora_first):
    model = tiny("bert")
    state = copy.deepcopy(model.state_dict())
    expected = {}
    for seed, other in enumerate(sorted([method, "lora"], key=lambda name: (name == "lora") != lora_first)):
        adapterlab.attach(model, other, other)
        randomize(model, seed=seed, std=0.1)
        expected[other] = logits(model)
    for name, alone in expected.items():
        adapterlab.activate(model, name)
        assert torch.equal(logits(model), alone)
    fresh = adapterlab.load(tiny("bert"), adapterlab.save(model, tmp_path, method))
    assert torch.equal(logits(fresh), expected[method])
    adapterlab.activate(model, [method, "lora"])
    both = logits(model)
    assert all((both - alone).abs().max() > 1e-6 for alone in expected.values()), "both have a say"
    if METHODS.get(method).known.merges_alone:
        with pytest.raises(AdapterError, match=r"depends on lora, which is active there too"):
            adapterlab.merge(model)
        assert torch.equal(logits(model), both)
    elif METHODS.get(method).merges:
        merged = adapterlab.merge(copy.deepcopy(model))
        torch.testing.assert_close(logits(merged), both, rtol=1e-5, atol=1e-5)
    adapterlab.detach(model, "lora")
    assert torch.equal(logits(model), expected[method])
    adapterlab.detach(model)
    is_as_before(model, state)


def test_a_weight_that_another_method_computes_with_itself(tiny, logits):
    model = adapterlab.attach(tiny("bert"), "hra", "turned")
    before = logits(model)
    with pytest.raises(BackboneError, match=r"computes with the weight itself and would pass over 'vera'.*before it"):
        adapterlab.attach(model, "vera", "other")
    assert torch.equal(logits(model), before)
    assert list(adapterlab.summary(model).adapters) == list(adapterlab.summary(model).adapters[:1])
    model = adapterlab.attach(adapterlab.attach(tiny("bert"), "vera", "other"), "hra", "turned")
    randomize(model)
    alone = logits(model)
    adapterlab.activate(model, ["other", "turned"])
    randomize(model)
    assert not torch.equal(logits(model), alone)


@each
def test_bf16_on_llama(tiny, batch, logits, method):
    model = tiny("llama").to(torch.bfloat16)
    state, backbone = copy.deepcopy(model.state_dict()), logits(model)
    adapterlab.attach(model, method)
    own = METHODS.get(method).parameters(model, "default")
    assert {parameter.dtype for parameter in own.values()} == {torch.float32}
    randomize(model, std=0.1)
    model(**batch).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in own.values())
    assert not torch.equal(logits(model), backbone)
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)
    adapterlab.detach(model)
    is_as_before(model, state)


@pytest.mark.parametrize("method", [*CORE, *(name for name in SHARING if name not in CORE)])
def test_a_checkpoint_holds_what_training_needs(tiny, logits, tmp_path, method):
    model = adapterlab.attach(tiny("bert"), method)
    randomize(model)
    tensors = training_state(model)
    save_file({path: tensor.contiguous() for path, tensor in tensors.items()}, tmp_path / "state.safetensors")
    fresh = adapterlab.attach(tiny("bert"), method)
    assert not torch.equal(logits(fresh), logits(model))
    assert not fresh.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=False).unexpected_keys
    assert torch.equal(logits(fresh), logits(model))


@pytest.mark.parametrize("method", CORE)
def test_gradient_checkpointing_gives_the_same_gradients(tiny, batch, method):
    gradients = []
    for checkpointing in (False, True):
        model = adapterlab.attach(tiny("llama"), method)
        randomize(model)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("method", [*CORE, "ln_tuning", "pvera", "c3a", "hra"])  # not lily: its router sees all tokens
def test_generate_with_and_without_cache(tiny, batch, method):
    model = tiny("llama", "CausalLM")
    prompt = {"input_ids": batch["input_ids"][1:], "max_new_tokens": 4, "do_sample": False}
    plain = model.generate(**prompt)
    adapterlab.attach(model, method)
    randomize(model)
    changed = model.generate(**prompt)
    assert torch.equal(changed, model.generate(**prompt, use_cache=False))
    with adapterlab.disabled(model):
        assert torch.equal(model.generate(**prompt), plain)


@pytest.mark.parametrize(
    ("architecture", "targets", "feedforward"),
    [
        ("bert", {"key", "value", "output.dense"}, {"output.dense"}),
        ("distilbert", {"k_lin", "v_lin", "lin2"}, {"lin2"}),
        ("gpt2", {"c_attn", "mlp.c_proj"}, {"mlp.c_proj"}),
        ("llama", {"k_proj", "v_proj", "down_proj"}, {"down_proj"}),
        ("modernbert", {"Wqkv", "mlp.Wo"}, {"mlp.Wo"}),
        ("invented", {"look", "tell", "widen", "narrow"}, {"narrow"}),
    ],
)
def test_ia3_scales_keys_values_and_inner_activations(tiny, architecture, targets, feedforward):
    model = adapterlab.attach(tiny(architecture), "ia3")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    assert all(name.endswith(tuple(targets)) for name in layers)
    assert not any("attention.output.dense" in name for name in layers)
    assert len(layers) == 2 * len(targets)
    inner = {name for name, layer in layers.items() if layer.is_feedforward}
    assert inner == {name for name in layers if name.endswith(tuple(feedforward))}


def test_ia3_as_told(tiny):
    model = adapterlab.attach(tiny("bert"), "ia3", target_modules=["query", "dense"], feedforward_modules=["query"])
    inner = [name for name, layer in model.named_modules() if getattr(layer, "is_feedforward", False)]
    assert len(inner) == 2
    assert all(name.endswith("query") for name in inner)
    with pytest.raises(BackboneError, match=r"feedforward_modules: \['qurey'\] are not among .*Did you mean 'query'"):
        adapterlab.attach(tiny("bert"), "ia3", target_modules=["query"], feedforward_modules=["qurey"])


def test_norms_that_another_adapter_hooks_into(tiny, logits):
    results = []
    for names in (("ln_tuning", "bottleneck"), ("bottleneck", "ln_tuning")):
        model = tiny("bert")
        state = copy.deepcopy(model.state_dict())
        expected = {}
        for name in names:
            adapterlab.attach(model, name, name)
            randomize(model, seed=len(name))
        for active in ("ln_tuning", "bottleneck", ["ln_tuning", "bottleneck"]):
            adapterlab.activate(model, active)
            expected[str(active)] = logits(model)
        assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(expected.values(), 2))
        assert torch.equal(logits(copy.deepcopy(model)), logits(model))
        adapterlab.activate(model, "bottleneck")
        adapterlab.detach(model, "ln_tuning")
        assert torch.equal(logits(model), expected["bottleneck"])
        adapterlab.detach(model)
        is_as_before(model, state)
        results.append(expected)
    for case, value in results[0].items():
        assert torch.equal(results[1][case], value), "the order doesn't matter"


def test_norms_by_name_and_layer(tiny):
    model = adapterlab.attach(tiny("llama"), "ln_tuning")
    assert adapterlab.summary(model).adapters[0].parameters == 5 * 32  # two in each layer, one at the end
    model = adapterlab.attach(tiny("llama"), "ln_tuning", target_modules=["input_layernorm"], layers=[-1])
    assert [n for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)] == ["model.layers.1.input_layernorm"]
    with pytest.raises(BackboneError, match=r"\['nrom'\] match no norm of this llama. Did you mean 'norm'"):
        adapterlab.attach(tiny("llama"), "ln_tuning", target_modules=["nrom"])


@pytest.mark.parametrize("layers", [None, [0, 1]])
def test_lily_shares_across_layers(tiny, layers):
    model = adapterlab.attach(tiny("bert"), "lily", layers=layers, stride_A=2)
    first, second = (layer.attention.self.query for layer in model.bert.encoder.layer)
    assert first.lily_B["default"] is second.lily_B["default"]
    assert first.lily_A["default"] is second.lily_A["default"]
    assert first.lily_B["default"] is not model.bert.encoder.layer[0].attention.self.key.lily_B["default"]


@pytest.mark.skipif("osf" not in EVERY, reason="this peft has no OSF")
def test_osf_keeps_out_of_the_large_directions_in_a_copy_too(tiny, batch):
    model = copy.deepcopy(adapterlab.attach(tiny("bert"), "osf"))
    weight = model.bert.encoder.layer[0].intermediate.dense.base_layer.weight
    large = torch.linalg.svd(weight.detach())[0][:, :16]
    own = METHODS.get("osf").parameters(model, "default")
    [u] = [p for path, p in own.items() if "layer.0.intermediate" in path and path.endswith("U_low")]
    before = u.detach().clone()
    optimizer = torch.optim.SGD(own.values(), lr=100.0)
    model.train()
    model(**batch).loss.backward()
    gradient = u.grad.clone()
    assert (large.T @ gradient).abs().max() > 1e-6, "a copy has none of peft's hooks"
    optimizer.step()
    moved = (u.detach() - before) / 100
    assert moved.abs().max() > 1e-6
    assert (large.T @ moved).abs().max() < 1e-2 * (large.T @ gradient).abs().max()


def test_options_fit_the_layers(tiny, tmp_path):
    import json

    def written(method, **options):
        model = adapterlab.attach(tiny("llama"), method, **options)  # widths 32, 64 and 16
        return json.loads((adapterlab.save(model, tmp_path / method) / "adapter_config.json").read_text())

    assert written("c3a")["block_size"] == 16
    assert written("vblora", vector_length=8)["vector_length"] == 8
    assert written("road")["group_size"] == 16
    assert written("oft")["oft_block_size"] == 32, "only what goes in counts"
    assert (written("oft", r=4)["r"], written("oft", r=4)["oft_block_size"]) == (4, 0)
    assert written("miss")["r"] == 16
    assert written("waveft")["n_frequency"] == 512
    assert written("lokr", rank_pattern={"layers.0.*.q_proj": 3})["rank_pattern"] == {
        "model.layers.0.self_attn.q_proj": 3
    }


def test_short_names(tiny):
    model = adapterlab.attach(tiny("bert"), "vera", r=8, dropout=0.2, layers=[0])
    assert adapterlab.summary(model).adapters[0].options["vera_dropout"] == 0.2
    with pytest.raises(ConfigError, match="vera_dropout and dropout: two names of one option"):
        adapterlab.attach(tiny("bert"), "vera", dropout=0.2, vera_dropout=0.1)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("vera", {"r": 0}, "r: Input should be greater than or equal to 1"),
        ("vera", {"dropout": 1.0}, "dropout: Input should be less than 1"),
        ("vera", {"rank": 4}, "rank: method 'vera' has no such option"),
        ("oft", {"block_size": 7}, "block_size: 7 doesn't divide the widths .* 32, 64. It may be 1, 2, 4, 8, 16, 32"),
        ("oft", {"r": 4, "block_size": 8}, "oft: You can only specify either r"),
        ("vblora", {"vector_length": 5}, "vector_length: 5 doesn't divide"),
        ("vblora", {"topk": 300}, "'vblora' can't be attached .*out of range"),
        ("road", {"variant": "road_3"}, "variant: Input should be 'road_1', 'road_2' or 'road_4'"),
        ("lokr", {"rank_pattern": {"(a+)+": 2}}, "is a regular expression, which could run away"),
        ("lokr", {"rank_pattern": {"qurey": 2}}, "rank_pattern: no target's name ends with 'qurey'.*'query'"),
        ("lokr", {"rank_pattern": {"query": 0}}, "'query' must be given a number above 0"),
        ("lokr", {"rank_pattern": {"query": 1.5}}, "rank_pattern: Input should be a valid integer"),
        ("miss", {"r": 99}, "r: 99 is more than the layers to adapt allow, 32 at most"),
        ("shira", {"r": 99}, "r: 99 is more than the layers to adapt allow, 16 at most"),
        ("gralora", {"gralora_k": 3}, "gralora: r should be divisible by gralora_k"),
        ("waveft", {"wavelet_family": "none"}, "waveft: Wavelet family none not supported"),
        ("loha", {"target_modules": ["qurey"]}, r"\['qurey'\] match no .*Did you mean 'query'"),
        ("loha", {"layers": [2]}, r"layers \[2\] do not exist"),
    ],
)
def test_options_out_of_range(tiny, method, options, message):
    model = tiny("bert")
    state = copy.deepcopy(model.state_dict())
    with pytest.raises((ConfigError, BackboneError), match=message):
        adapterlab.attach(model, method, **options)
    is_as_before(model, state)


# VeRA's random matrices may be wider than a layer (r 1024 on 768 in the paper), and to LoKr a rank above its factors'
# size says that they are to be full.
ANY_RANK = {"vera", "pvera", "lokr"}


@pytest.mark.parametrize("method", [m.name for m in adapterlab.methods() if any(o.name == "r" for o in m.options)])
def test_a_rank_above_the_layer(tiny, method):
    model = tiny("bert")
    if method in ANY_RANK:
        adapterlab.attach(model, method, r=33)
        return
    options = {"gralora_k": 3} if method == "gralora" else {}
    with pytest.raises(ConfigError, match=r"(?s)r: (rank )?33 (is larger|is more|doesn't divide).* 32"):
        adapterlab.attach(model, method, r=33, **options)


def test_a_second_adapter_that_does_not_fit_leaves_the_first_alone(tiny, logits):
    model = adapterlab.attach(tiny("bert"), "vera", "a", r=8, layers=[0], target_modules=["query"])
    randomize(model)
    before, state = logits(model), copy.deepcopy(model.state_dict())
    for options in ({"r": 16}, {"r": 8, "target_modules": ["intermediate.dense"]}, {"r": 8, "projection_prng_key": 9}):
        with pytest.raises(BackboneError, match="'vera' can't be attached"):
            adapterlab.attach(model, "vera", "b", **options)
        assert torch.equal(logits(model), before)
        assert model.state_dict().keys() == state.keys()
    adapterlab.attach(model, "vera", "b", r=8, target_modules=["value"])
    adapterlab.activate(model, "a")
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", ["xlora", "poly", "adaption_prompt", "trainable_tokens", "prefix_tuning"])
def test_why_a_method_of_pefts_is_not_there(tiny, name):
    with pytest.raises(ConfigError, match=f"unknown method '{name}'.*peft's '{name}' is not among them: "):
        adapterlab.attach(tiny("bert"), name)


def test_a_peft_that_knows_other_methods(tiny, logits, monkeypatch):
    """A method that we haven't heard of works; one that can't be read is named and breaks nothing."""
    new, odd = enum.Enum("Kind", {"NEW": "NEWVERA", "ODD": "ODD"})
    for mapping in (peft_bridge.PEFT_TYPE_TO_TUNER_MAPPING, peft_bridge.PEFT_TYPE_TO_PREFIX_MAPPING):
        vera = next(value for kind, value in mapping.items() if kind.value == "VERA")
        monkeypatch.setitem(mapping, new, vera)
        monkeypatch.setitem(mapping, odd, vera)
    monkeypatch.setitem(peft_bridge.PEFT_TYPE_TO_CONFIG_MAPPING, new, peft.VeraConfig)
    monkeypatch.setitem(peft_bridge.PEFT_TYPE_TO_CONFIG_MAPPING, odd, object)
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    monkeypatch.setattr(METHODS, "failures", {})
    peft_bridge._register()
    assert list(METHODS.failures) == ["peft odd"]
    [info] = [info for info in adapterlab.methods() if info.name == "newvera"]
    assert re.match("VeraModel of peft", info.summary)
    model = tiny("gpt2")
    backbone = logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapterlab.attach(model, "newvera", r=4)
    randomize(model)
    assert not torch.equal(logits(model), backbone)
    adapterlab.detach(model)
    assert torch.equal(logits(model), backbone)
