"""LoRA complete: targets, embeddings, biases, DoRA, starts; and what is refused."""

from __future__ import annotations

import copy
import json
import re
import time

import pytest
import torch
import transformers
from conftest import randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import adapterlab
from adapterlab.adapters.patterns import check_pattern, matches

ARCHITECTURES = ("bert", "gpt2", "llama")
EMBEDDING = {"bert": "word_embeddings", "gpt2": "wte", "llama": "embed_tokens"}
QUERY = {"bert": "query", "gpt2": "c_attn", "llama": "q_proj"}
NONZERO = ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga")
VARIANTS = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "r": 4, "alpha": 5},
    "lora-bias": {"lora_bias": True},
    "own-biases": {"bias": "lora_only"},
    "all-biases": {"bias": "all"},
    "dora-biases": {"bias": "all", "use_dora": True},
    "patterns": {"rank_pattern": {"[lh]*.1.**": 3}, "alpha_pattern": {"*.[01].**": 7.0}},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "random": {"init": "random"},
    "eva": {"init": "eva"},
    **{init: {"init": init, "r": 3, "dropout": 0.0} for init in NONZERO},
    "pissa-patterns": {
        "init": "pissa", "use_rslora": True, "rank_pattern": {"**.1.**": 2}, "alpha_pattern": {"**.0.**": 9.0},
    },
    "embedding": {"embedding": True},
    "embedding-dora": {"embedding": True, "use_dora": True},
}  # fmt: skip


ON_BERT = ("rslora", "gaussian", "orthogonal", "random", "pissa_niter_4", "pissa-patterns")  # the same code everywhere


def cells(every=True):
    """Each variant on each architecture where it can differ; or, not `every`, on one of them in turn."""
    for n, (case, options) in enumerate(VARIANTS.items()):
        possible = ARCHITECTURES[:1] if case in ON_BERT else ARCHITECTURES
        if "bias" in case:
            possible = ARCHITECTURES[:2]  # Llama's linears and norms have none
        for architecture in possible if every else [possible[n % len(possible)]]:
            yield pytest.param(architecture, options, id=f"{architecture}-{case}")


@pytest.fixture
def attach(batch):
    """attach(model, architecture, options, name) attaches a LoRA of r 8, with data where the start needs it."""

    def run(model, architecture, options, name="default"):
        options = dict(options)
        if options.pop("embedding", False):
            options["target_modules"] = [EMBEDDING[architecture], QUERY[architecture]]
        if options.get("init") in ("eva", "corda", "lora_ga"):
            options["init_batches"] = [batch, {key: value.flip(0) for key, value in batch.items()}]
        return adapterlab.attach(model, "lora", name, **options)

    return run


def same(model, state):
    now = model.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[name], state[name]) for name in state)


# --- every variant


@pytest.mark.parametrize(("architecture", "options"), cells())
def test_a_variant_is_a_guest(tiny, batch, logits, train, tmp_path, attach, architecture, options):
    model = tiny(architecture)
    state, backbone = copy.deepcopy(model.state_dict()), logits(model)
    attach(model, architecture, options)
    begun = logits(model)
    if options.get("init") not in ("random", "orthogonal"):
        torch.testing.assert_close(begun, backbone, rtol=1e-4, atol=1e-5)
    assert all(p.dtype == torch.float32 for p in model.parameters())

    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    losses = train(model, steps=6, lr=3e-3)
    assert losses[-1] < losses[0]
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert not any(torch.equal(now[name], value) for name, value in before.items()), "everything trained has moved"
    trained = logits(model)
    assert not torch.equal(trained, backbone)

    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), trained)

    randomize(model, std=0.1)
    wild = logits(model)
    fresh = adapterlab.load(tiny(architecture), adapterlab.save(model, tmp_path))
    if options.get("init") in NONZERO:  # the same sums, in another order
        torch.testing.assert_close(logits(fresh), wild, rtol=1e-5, atol=2e-6)
    else:
        assert torch.equal(logits(fresh), wild)

    merged = adapterlab.merge(copy.deepcopy(model))
    torch.testing.assert_close(logits(merged), wild, rtol=1e-5, atol=1e-5)
    assert set(merged.state_dict()) == set(state)

    adapterlab.detach(model)
    assert same(model, state)
    assert torch.equal(logits(model), backbone)
    assert torch.equal(logits(twin), trained), "a copy must not share anything with its original"
    assert not any(hook for m in model.modules() for hook in (m._forward_hooks, m._forward_pre_hooks))
    assert not any("bias" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize(("architecture", "options"), cells(every=False))
def test_a_variant_on_a_bf16_backbone(tiny, batch, logits, tmp_path, attach, architecture, options):
    model = tiny(architecture).bfloat16()
    backbone = logits(model)
    attach(model, architecture, options)
    own = [p for p in model.parameters() if p.requires_grad]
    assert own
    assert all(p.dtype == torch.float32 for p in own)
    if options.get("init") not in ("random", "orthogonal"):
        torch.testing.assert_close(logits(model).float(), backbone.float(), rtol=0.05, atol=0.02)
    model.train()(**batch).loss.backward()
    assert all(p.grad is not None for p in own)
    model.zero_grad()
    randomize(model, std=0.1)
    fresh = adapterlab.load(tiny(architecture).bfloat16(), adapterlab.save(model, tmp_path))
    torch.testing.assert_close(logits(fresh), logits(model), rtol=0.02, atol=0.02)
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)
    adapterlab.detach(model)
    assert torch.equal(logits(model), backbone)


@pytest.mark.parametrize(
    "options", [{"use_dora": True, "bias": "all"}, {"init": "pissa"}], ids=["dora-biases", "pissa"]
)
def test_a_variant_checkpointed_compiled_and_side_by_side(tiny, batch, logits, options):
    model = tiny("bert")
    backbone = logits(model)
    adapterlab.attach(model, "lora", "plain")
    randomize(model, seed=1)
    plain = logits(model)
    adapterlab.attach(model, "lora", "special", dropout=0.0, **options)
    randomize(model, seed=2)
    special = logits(model)
    assert not torch.equal(special, plain)
    part, x = model.bert.encoder.layer[0].intermediate, torch.randn(2, 3, 32)
    # not in one graph where peft's DoRA asks for the name of a weight's class, which not every torch traces
    whole = not options.get("use_dora")
    torch.testing.assert_close(torch.compile(part, backend="eager", fullgraph=whole)(x), part(x))

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model.train()(**batch).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)

    adapterlab.activate(model, "plain")
    assert torch.equal(logits(model), plain)
    adapterlab.activate(model, ["plain", "special"])
    both = logits(model)
    assert not torch.equal(both, plain)
    assert not torch.equal(both, special)
    adapterlab.detach(model, "plain")
    assert torch.equal(logits(model), special)
    twin = copy.deepcopy(model).bfloat16()
    torch.testing.assert_close(logits(twin).float(), special, rtol=0.1, atol=0.1)
    assert torch.equal(logits(adapterlab.detach(twin)), logits(tiny("bert").bfloat16()))
    adapterlab.detach(model)
    assert torch.equal(logits(model), backbone)


# --- targets


def adapted(model):
    """Return the paths of the modules with an A."""
    found = (re.match(r"(.*)\.lora_(?:embedding_)?A\.", name) for name, _ in model.named_parameters())
    return {match[1] for match in found if match}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("layer.*.attention.self.[qv]*", {f"layer.{n}.attention.self.{p}" for n in (0, 1) for p in ("query", "value")}),
        ("layer.1.**.dense", {f"layer.1.{p}.dense" for p in ("attention.output", "intermediate", "output")}),
        (["que?y", "layer.[!0].output.dense"], {"layer.0.attention.self.query", "layer.1.attention.self.query",
                                                 "layer.1.output.dense"}),
        (["self.[j-r]*"], {f"layer.{n}.attention.self.{p}" for n in (0, 1) for p in ("query", "key")}),
        (["word_embeddings"], {"embeddings.word_embeddings"}),
        (["*_embeddings", "pooler.dense"], {"embeddings.word_embeddings", "embeddings.position_embeddings",
                                            "embeddings.token_type_embeddings", "pooler.dense"}),
    ],
)  # fmt: skip
def test_globs_and_names(tiny, logits, wanted, expected):
    model = tiny("bert")
    backbone = logits(model)
    adapterlab.attach(model, "lora", target_modules=wanted, r=2)
    found = {path.removeprefix("bert.").removeprefix("encoder.") for path in adapted(model)}
    assert found == expected
    randomize(model)
    assert not torch.equal(logits(model), backbone)


def test_globs_serve_adalora(tiny):
    model = adapterlab.attach(tiny("bert"), "adalora", target_modules="layer.*.attention.self.[qv]*", total_step=9)
    assert len(adapted(model)) == 4


def test_ranks_and_alphas_by_glob_and_name(tiny, tmp_path):
    model = adapterlab.attach(
        tiny("bert"), "lora", r=8, alpha=16,
        rank_pattern={"layer.0.**": 2, "query": 3}, alpha_pattern={"output.dense": 4, "layer.1.attention.self.*": 5},
    )  # fmt: skip
    layers = {path: module for path, module in model.named_modules() if hasattr(module, "lora_A")}
    for path, layer in layers.items():
        assert layer.r["default"] == (2 if "layer.0." in path else 3 if path.endswith("query") else 8)
        alpha = 4 if path.endswith("output.dense") else 5 if "layer.1.attention.self" in path else 16
        assert layer.scaling["default"] == alpha / layer.r["default"]
    fields = json.loads((adapterlab.save(model, tmp_path) / "adapter_config.json").read_text())
    assert not any("*" in key for key in [*fields["rank_pattern"], *fields["target_modules"]])
    simple = adapterlab.attach(tiny("bert"), "lora", rank_pattern={"query": 3})
    fields = json.loads((adapterlab.save(simple, tmp_path) / "adapter_config.json").read_text())
    assert fields["rank_pattern"] == {"query": 3}


def test_embeddings_are_no_linears(tiny):
    assert not any("embed" in path for path in adapted(adapterlab.attach(tiny("bert"), "lora")))


def test_a_tied_embedding_is_adapted_at_its_own_end_only(tiny, batch, logits):
    model = tiny("gpt2", "CausalLM")
    adapterlab.attach(model, "lora", target_modules=["wte"])
    hidden = model.transformer(batch["input_ids"]).last_hidden_state
    randomize(model)
    assert model.lm_head.weight is model.transformer.wte.base_layer.weight
    assert not torch.equal(model.transformer(batch["input_ids"]).last_hidden_state, hidden)
    expected = logits(model)
    with pytest.warns(UserWarning, match="tied"):
        adapterlab.merge(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


# --- the matcher


def slowly(pattern, path):
    """Match by trying everything, on the whole path."""

    def characters(glob, name):
        if not glob:
            return not name
        if glob[0] == "*":
            return any(characters(glob[1:], name[n:]) for n in range(len(name) + 1))
        if glob[0] == "[":
            inside, _, rest = glob[1:].partition("]")
            wanted = not inside.startswith("!")
            return bool(name) and (name[0] in inside.removeprefix("!")) == wanted and characters(rest, name[1:])
        return bool(name) and glob[0] in ("?", name[0]) and characters(glob[1:], name[1:])

    def parts(globs, names):
        if not globs:
            return not names
        if globs[0] == "**":
            return any(parts(globs[1:], names[n:]) for n in range(len(names) + 1))
        return bool(names) and characters(globs[0], names[0]) and parts(globs[1:], names[1:])

    names = path.split(".")
    return any(parts(pattern.split("."), names[n:]) for n in range(len(names)))


PART = st.lists(st.sampled_from(["a", "b", "c", "*", "?", "[ab]", "[!a]"]), min_size=1, max_size=4).map("".join)
NAME = st.text("abc", min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(PART | st.just("**"), min_size=1, max_size=4).map(".".join),
    st.lists(NAME, min_size=1, max_size=4).map(".".join),
)
def test_globs_match_what_a_slow_matcher_does(pattern, path):
    check_pattern(pattern)
    assert matches(pattern, path) == slowly(pattern, path)


@pytest.mark.parametrize("pattern", ["a*" * 149 + "b", "**.a*." * 49 + "b", "?*" * 150])
def test_no_glob_runs_away(pattern):
    begun = time.process_time()
    matches(check_pattern(pattern), ".".join(["a" * 30] * 30))
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("target_modules", "parts"),
    [
        ("(a+)+$", ["regular expression", "run away", "['q_proj', 'v_proj']", "layer.*.attention.self.[qv]*"]),
        (r".*\.(q|v)_proj$", ["regular expression", "glob"]),
        ([r"(x+x+)+y"], ["regular expression", "'(x+x+)+y'"]),
        (".*query", ["empty part", "glob"]),
        ("layer.[qv", ["'['", "closed"]),
        ("[!]", ["'['"]),
        ("*" * 301, ["301 characters", "300 are allowed"]),
        ("quer?é", ["ASCII"]),
        ("query", ["for instance ['query']", "all-linear"]),
        ("*.quary", ["'*.quary'", "Linear, Conv1D or Embedding"]),
        (["quary"], ["'quary'", "Did you mean 'query'?"]),
        (
            ["LayerNorm"],
            ["(bert.embeddings.LayerNorm) is of kind LayerNorm", "Linear, Conv1D and Embedding", "modules_to_save"],
        ),
        (["attention"], ["BertAttention", "attention.self.query"]),
        ([], ["empty"]),
    ],
)
def test_targets_that_cannot_be(tiny, target_modules, parts):
    model = tiny("bert")
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(adapterlab.AdapterLabError) as caught:
        adapterlab.attach(model, "lora", target_modules=target_modules)
    for part in parts:
        assert part in str(caught.value)
    assert same(model, state)
    assert adapterlab.summary(model).adapters == ()


def test_an_embedding_that_is_more_than_a_lookup_is_no_target(tiny):
    with pytest.raises(adapterlab.AdapterLabError, match=r"OPTLearnedPositionalEmbedding.*can't be adapted"):
        adapterlab.attach(tiny("opt"), "lora", target_modules=["embed_positions"])
    with pytest.raises(adapterlab.AdapterLabError, match=r"word_embeddings\) is of kind Embedding.*Linear and Conv1D"):
        adapterlab.attach(tiny("bert"), "adalora", target_modules=["word_embeddings"])


# --- impossible options


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {"r": 33}, r"r: rank 33 is larger than the smaller side of 'bert.*query' \(32 x 32\): 32 at most"),
        ("lora", {"rank_pattern": {"key": 40}}, r"r: rank 40 .*key"),
        ("lora", {"r": 33, "target_modules": ["word_embeddings"]}, r"word_embeddings' \(97 x 32\)"),
        ("lora", {"r": 33, "init": "pissa", "oversized_rank": True}, "rank 33"),
        ("adalora", {"target_r": 30, "init_r": 33}, "init_r: rank 33 .*32 at most"),
        ("lora", {"rank_pattern": {"(a|b)": 4}}, "rank_pattern: .*regular expression"),
        ("lora", {"alpha_pattern": {"quary": 4}}, "alpha_pattern: no target's name ends with 'quary'.*'query'"),
        ("lora", {"alpha_pattern": {"query": 0}}, "alpha_pattern: "),
        ("lora", {"init": "pisa"}, "init: 'pisa' is none of .*Did you mean 'pissa'"),
        ("lora", {"init": "pissa_niter_x"}, "init: 'pissa_niter_x'"),
        ("lora", {"init": "16"}, "init: '16'"),
        ("lora", {"init": 3}, "init: the name of a start"),
        ("lora", {"init": "loftq"}, "init: 'loftq' makes up for the loss of a quantized backbone"),
        ("lora", {"init": "orthogonal", "r": 3}, "even rank, and '.*' has rank 3"),
        ("lora", {"init": "eva"}, "init 'eva' starts from data: give init_batches"),
        ("lora", {"init_batches": [{}]}, "init_batches are for init eva, corda, lora_ga"),
        ("lora", {"init": "eva", "init_batches": [3]}, "a list of mappings"),
        ("lora", {"init": "corda", "init_batches": [{"input_idz": 3}]}, "can't run a batch of input_idz"),
        ("lora", {"init": "lora_ga", "init_batches": [{"input_ids": torch.ones(1, 3).long()}]}, "no loss.*labels"),
        ("lora", {"init": "eva", "init_batches": [{"input_ids": torch.ones(1, 3).long()}]}, "3 tokens, and rank 8"),
        ("lora", {"init": "lora_ga", "r": 17, "init_batches": [{"input_ids": torch.ones(1, 3).long(),
                                                               "labels": torch.zeros(1).long()}]}, "34 singular"),
        ("lora", {"init": "pissa", "target_modules": ["word_embeddings"]}, "is an embedding, which init 'pissa'"),
        ("lora", {"lora_bias": True, "target_modules": ["word_embeddings"]}, "is an embedding, which lora_bias"),
        ("lora", {"lora_bias": True, "use_dora": True}, "lora_bias and use_dora don't go together"),
        ("lora", {"lora_bias": True, "init": "gaussian"}, "lora_bias goes with init 'default' or 'random'"),
        ("lora", {"use_dora": True, "init": "olora"}, "use_dora .* init 'olora'"),
        ("lora", {"bias": "some"}, "bias: .*'lora_only'"),
        ("lora", {"bias": "lora_only", "target_modules": ["word_embeddings"]}, "no target of this model has one"),
        ("lora", {"target_modules": ["pooler.dense"], "layers": [0]}, "outside the chosen layers"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(tiny, method, options, message):
    model = tiny("bert")
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(adapterlab.AdapterLabError, match=message):
        adapterlab.attach(model, method, **options)
    assert same(model, state)
    assert adapterlab.summary(model).adapters == ()
    assert all(p.requires_grad for p in model.parameters())
    assert not any(hook for m in model.modules() for hook in (m._forward_hooks, m._forward_pre_hooks))


def test_biases_that_a_model_does_not_have(tiny):
    with pytest.raises(adapterlab.AdapterLabError, match="no module of this model has one"):
        adapterlab.attach(tiny("llama"), "lora", bias="all")
    model = adapterlab.attach(tiny("llama"), "lora", lora_bias=True)
    randomize(model)
    with pytest.raises(adapterlab.AdapterLabError, match=r"lora_bias can't be merged: '.*q_proj' has no bias"):
        adapterlab.merge(model)


# --- biases


def test_which_biases_are_trained(tiny, tmp_path):
    counts = {}
    for bias in ("none", "lora_only", "all"):
        model = adapterlab.attach(tiny("bert"), "lora", bias=bias, target_modules=["query"])
        counts[bias] = adapterlab.summary(model).adapters[0].parameters
    backbone = [name for name in tiny("bert").state_dict() if name.endswith(".bias") and "classifier" not in name]
    of_all = sum(tiny("bert").state_dict()[name].numel() for name in backbone)
    assert counts["lora_only"] - counts["none"] == 2 * 32
    assert counts["all"] - counts["none"] == of_all
    adapterlab.save(model, tmp_path)
    written = {key for key in load_file(tmp_path / "adapter_model.safetensors") if key.endswith(".bias")}
    assert {key.removeprefix("base_model.model.").replace(".base_layer", "") for key in written} == {
        *backbone, "classifier.bias",
    }  # fmt: skip


def test_of_several_biases_the_last_ones_count(tiny, logits):
    model = tiny("bert")
    backbone = logits(model)
    single = {}
    for name, bias in (("a", "all"), ("b", "lora_only"), ("c", "none")):
        adapterlab.attach(model, "lora", name, bias=bias, target_modules=["query", "dense"])
        randomize(model, seed=ord(name))
        single[name] = logits(model)
    for name, expected in single.items():
        adapterlab.activate(model, name)
        assert torch.equal(logits(model), expected)
    bias = {}

    def note(module, args):
        bias["read"] = module.bias

    module = model.bert.encoder.layer[0].attention.self.query.get_base_layer()
    handle = module.register_forward_pre_hook(note)
    for names in (["a", "b"], ["b", "a"], ["b", "c"]):
        adapterlab.activate(model, names)
        logits(model)
        last = [name for name in names if name != "c"][-1]
        assert torch.equal(bias["read"], module.lora_biases[last])
    handle.remove()
    adapterlab.detach(model, "a")
    adapterlab.activate(model, "b")
    assert torch.equal(logits(model), single["b"])
    adapterlab.detach(model)
    assert torch.equal(logits(model), backbone)
    assert not any("lora_" in name for name, _ in model.named_modules())


def test_a_bias_that_is_tied_stays_tied(tiny, logits, tmp_path):
    model = tiny("bert", "MaskedLM")
    assert model.cls.predictions.bias is model.cls.predictions.decoder.bias
    adapterlab.attach(model, "lora", bias="all")
    randomize(model)
    expected = logits(model)
    assert torch.equal(logits(adapterlab.load(tiny("bert", "MaskedLM"), adapterlab.save(model, tmp_path))), expected)
    adapterlab.merge(model)
    assert model.cls.predictions.bias is model.cls.predictions.decoder.bias
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


def test_a_forward_pass_that_fails_leaves_no_bias_behind(tiny, logits):
    model = tiny("bert")
    backbone = logits(model)
    adapterlab.attach(model, "lora", bias="all")
    randomize(model)
    with pytest.raises(RuntimeError):
        model.bert.encoder.layer[0].intermediate(torch.ones(1, 1, 5))
    assert not any("bias" in module.__dict__ for module in model.modules())
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)


# --- starts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pissa_takes_the_largest_singular_values(tiny, attach, architecture):
    model = attach(tiny(architecture), architecture, {"init": "pissa", "r": 4, "alpha": 6, "use_rslora": True})
    for layer in (module for module in model.modules() if hasattr(module, "lora_start")):
        weight = layer.get_base_layer().weight.detach()
        weight = weight.T if architecture == "gpt2" else weight
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(update, (u[:, :4] * s[:4]) @ vh[:4], rtol=1e-4, atol=1e-5)


def test_a_few_iterations_of_pissa_come_close(tiny):
    torch.manual_seed(0)
    models = [adapterlab.attach(tiny("bert"), "lora", init=init, r=4) for init in ("pissa", "pissa_niter_16")]
    exact, near = ([m for m in model.modules() if hasattr(m, "lora_start")] for model in models)
    for one, other in zip(exact, near, strict=True):
        norms = [(layer.lora_B["default"].weight @ layer.lora_A["default"].weight).norm() for layer in (one, other)]
        assert 0.95 * norms[0] < norms[1] <= norms[0] * 1.0001


def test_eva_takes_the_directions_of_most_variance(tiny, batch):
    model = adapterlab.attach(tiny("bert"), "lora", r=4, init="eva", init_batches=[batch])
    seen = []
    query = model.bert.encoder.layer[1].attention.self.query
    handle = query.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with adapterlab.disabled(model), torch.no_grad():
        model.eval()(**batch)
    handle.remove()
    rows = seen[0][batch["attention_mask"].bool()]
    _, _, vh = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    cosines = (query.lora_A["default"].weight * vh[:4]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(4), rtol=1e-3, atol=1e-3)
    assert not query.lora_B["default"].weight.any()


def test_a_start_from_data_sees_the_backbone_alone(tiny, batch, logits):
    alone = adapterlab.attach(tiny("bert"), "lora", "new", init="corda", init_batches=[batch])
    model = tiny("bert")
    for name, method in (("other", "lora"), ("third", "bottleneck")):
        adapterlab.attach(model, method, name)
        randomize(model)
    third = logits(model)
    with pytest.raises(adapterlab.AdapterLabError, match="init_batches"):
        adapterlab.attach(model, "lora", "new", init="corda", init_batches=[{"nothing": 0}])
    assert torch.equal(logits(model), third), "a start that fails leaves the others active"
    model.train()
    adapterlab.attach(model, "lora", "new", init="corda", init_batches=[batch])
    assert all(module.training for module in model.modules())
    ours = dict(model.named_parameters())
    for name, parameter in alone.named_parameters():
        if ".lora_" in name:
            torch.testing.assert_close(ours[name], parameter)


def test_batches_are_not_saved(tiny, batch, tmp_path):
    model = adapterlab.attach(tiny("bert"), "lora", init="corda", init_batches=[batch])
    adapterlab.save(model, tmp_path)
    assert "init_batches" not in (tmp_path / "adapterlab.json").read_text()
    assert "init_batches" not in adapterlab.summary(model).adapters[0].options
    adapterlab.load(tiny("bert"), tmp_path)


@pytest.mark.parametrize("init", NONZERO)
def test_a_start_is_saved_as_a_plain_lora_of_twice_the_rank(tiny, batch, tmp_path, attach, init):
    model = attach(tiny("bert"), "bert", {"init": init, "r": 3, "use_rslora": True, "rank_pattern": {"key": 2}})
    randomize(model)
    adapterlab.save(model, tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (fields["init_lora_weights"], fields["r"], fields["rank_pattern"]) == (True, 6, {"key": 4})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    query = next(tensor for key, tensor in tensors.items() if "query.lora_A" in key)
    assert query.shape == (6, 32)
    again = adapterlab.load(tiny("bert"), tmp_path)
    adapterlab.save(again, tmp_path / "again")
    once_more = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(once_more[key], tensor) for key, tensor in tensors.items())


def test_a_start_of_a_rank_that_is_oversized_when_doubled(tiny, logits, tmp_path):
    model = adapterlab.attach(tiny("bert"), "lora", init="pissa", r=20)
    randomize(model)
    fresh = adapterlab.load(tiny("bert"), adapterlab.save(model, tmp_path))
    torch.testing.assert_close(logits(fresh), logits(model), rtol=1e-5, atol=2e-6)


def test_training_goes_on_exactly_from_a_checkpoint(tiny, batch, tmp_path):
    def trainer(steps, seed):
        torch.manual_seed(seed)  # of the start, which the checkpoint must replace
        model = adapterlab.attach(tiny("bert"), "lora", init="pissa_niter_2", bias="all")
        arguments = transformers.TrainingArguments(
            tmp_path, max_steps=steps, save_steps=2, per_device_train_batch_size=2, report_to=[], seed=7,
            disable_tqdm=True, use_cpu=True, lr_scheduler_type="constant",
        )  # fmt: skip
        rows = [{key: value[n] for key, value in batch.items()} for n in range(4)]
        return transformers.Trainer(model, arguments, train_dataset=rows)

    whole = trainer(4, 5)
    whole.train()
    resumed = trainer(4, 6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    theirs = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_combining_a_start_with_a_plain_lora(tiny, logits):
    model = tiny("bert")
    adapterlab.attach(model, "lora", "started", init="pissa", r=2)
    randomize(model, seed=1)
    adapterlab.attach(model, "lora", "plain", r=3)
    randomize(model, seed=2)
    adapterlab.activate(model, ["started", "plain"])
    both = logits(model)
    adapterlab.combine(model, ["started", "plain"], "sum", head="plain")
    torch.testing.assert_close(logits(model), both, rtol=1e-5, atol=1e-5)


# --- merging AdaLoRA


def test_merging_an_adalora_with_matrices_pruned_away(tiny, train, logits):
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=1, init_r=4, total_step=12, tinit=1, tfinal=2)
    train(model, steps=12)
    alive = [int((p != 0).sum()) for name, p in model.named_parameters() if ".lora_E." in name]
    assert min(alive) == 0
    expected = logits(model)
    torch.testing.assert_close(logits(adapterlab.merge(model)), expected, rtol=1e-5, atol=1e-5)
