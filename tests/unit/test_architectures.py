"""Prefix and bottleneck on every architecture: the arithmetic, the places, and what is refused."""

from __future__ import annotations

import copy
import types

import peft
import pytest
import torch
import transformers
from conftest import CONFIGS, DECODERS, NO_PREFIX, randomize, refused

import adapterlab

BOTH = ["attention", "ffn"]
CASES = {
    "prefix": ("prefix", {"num_virtual_tokens": 5}),
    "prefix-preserve": ("prefix", {"num_virtual_tokens": 5, "preserve_positions": True}),
    "pfeiffer": ("bottleneck", {"variant": "pfeiffer"}),
    "pfeiffer-both": ("bottleneck", {"variant": "pfeiffer", "where": BOTH}),
    "houlsby": ("bottleneck", {"variant": "houlsby"}),
    "parallel-both": ("bottleneck", {"variant": "parallel", "where": BOTH}),
    "scaled-parallel": ("bottleneck", {"variant": "scaled_parallel"}),
}
WITH_PREFIX = sorted(CONFIGS.keys() - set(NO_PREFIX))


def takes(architecture, case):
    method, options = CASES[case]
    whole_layers = options.get("where") is None
    return not refused(architecture, method, options.get("variant")) and (architecture != "invented" or whole_layers)


def cells(*cases):
    each = [(a, c) for a in CONFIGS for c in cases or CASES if takes(a, c)]
    if not cases:  # what stands at both sublayers stands at one
        each = [(a, c) for a, c in each if not (c == "pfeiffer" and takes(a, "pfeiffer-both"))]
    return pytest.mark.parametrize(("architecture", "case"), each)


def attach(model, case, name="default", **options):
    method, given = CASES[case]
    return adapterlab.attach(model, method, name, **(given | options))


def adapters_of(layer, name="default"):
    """The bottlenecks inside a layer, attention's before the FFN's."""
    return [m for path, m in layer.named_modules() if path.endswith(f"bottleneck_adapter.{name}")]


def copy_head(model, plain):
    for head in ("classifier", "score", "head", "pre_classifier", "classification_head", "verdict"):
        if hasattr(plain, head):
            getattr(plain, head).load_state_dict(getattr(model, head).state_dict())


# --- every cell


@cells()
def test_a_guest_everywhere(tiny, logits, train, tmp_path, architecture, case):
    model = tiny(architecture)
    state = copy.deepcopy(model.state_dict())
    backbone = logits(model)
    attach(model, case)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    train(model, steps=2)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    randomize(model)
    trained = logits(model)
    assert not torch.equal(trained, backbone)
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)

    fresh = adapterlab.load(tiny(architecture), adapterlab.save(model, tmp_path))
    assert torch.equal(logits(fresh), trained)

    twin = copy.deepcopy(model)
    adapterlab.detach(model)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), backbone)
    assert torch.equal(logits(twin), trained), "a copy must not share anything with its original"
    with adapterlab.disabled(twin):
        assert torch.equal(logits(twin), backbone)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "albert", "opt", "bart"])
@pytest.mark.parametrize("case", ["houlsby", "parallel-both"])
def test_beside_lora(tiny, logits, architecture, case):
    """Whichever comes first: in OPT, BART and ALBERT both stand at the same linears."""
    results = []
    for first, second in (("lora", case), (case, "lora")):
        model = tiny(architecture)
        for name in (first, second):
            attach(model, case, case) if name == case else adapterlab.attach(model, "lora", "lora")
            randomize(model, seed=len(name), std=0.1)
        alone = logits(adapterlab.activate(model, case))
        adapterlab.activate(model, ["lora", case])
        results.append(logits(model))
        assert not torch.allclose(alone, results[-1])
        adapterlab.activate(adapterlab.detach(model, "lora"), case)
        assert torch.equal(logits(model), alone)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@cells("prefix", "pfeiffer")
@pytest.mark.parametrize("when", ["before", "after"])
def test_bf16(tiny, batch, architecture, case, when):
    model = tiny(architecture)
    if when == "before":
        attach(model.to(torch.bfloat16), case)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    else:
        attach(model, case).to(torch.bfloat16)
    randomize(model)
    model.train()(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("architecture", "case", "layers"),
    [
        ("bert", "prefix", "bert.encoder.layer"),
        ("llama", "prefix", "model.layers"),
        ("bert", "pfeiffer", "bert.encoder.layer"),
        ("gpt2", "houlsby", "transformer.h"),
    ],
)
def test_compile(tiny, batch, architecture, case, layers):
    model = tiny(architecture)
    del model.get_submodule(layers)[1:]  # tracing takes seconds for each
    attach(model, case)
    randomize(model)
    expected = model(**batch)
    expected.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    output = torch.compile(model, backend="eager")(**batch)
    output.loss.backward()
    torch.testing.assert_close(output.logits, expected.logits)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


# --- what is refused


@pytest.mark.parametrize(
    ("architecture", "case", "message"),
    [
        ("deberta-v2", "prefix", "prefix tuning doesn't work on .*'deberta-v2': its disentangled.*Use 'lora'"),
        ("t5", "prefix", "prefix tuning doesn't work on .*'t5': its attention adds a bias.*Use 'lora'"),
        ("bart", "prefix", "prefix tuning doesn't work on .*'bart': an encoder-decoder.*Use 'lora'"),
        ("invented", "prefix", "'invented' is not among those described: albert, .*Use 'lora'.*'pfeiffer'"),
        ("invented", "houlsby", "'invented' is not among those described"),
        ("invented", "parallel-both", "'invented' is not among those described"),
        ("invented", "pfeiffer-both", "'invented' is not among those described"),
    ],
)
def test_refusals_leave_the_model_untouched(tiny, logits, architecture, case, message):
    model = tiny(architecture)
    state, backbone = copy.deepcopy(model.state_dict()), logits(model)
    with pytest.raises(adapterlab.AdapterLabError, match=message):
        attach(model, case)
    assert model.state_dict().keys() == state.keys()
    assert torch.equal(logits(model), backbone)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(hook for module in model.modules() for hook in (module._forward_hooks, module._forward_pre_hooks))


@pytest.mark.parametrize("implementation", ["flex_attention", "flash_attention_2"])
def test_other_attentions_are_refused(tiny, implementation):
    model = tiny("llama")
    model.config._attn_implementation_internal = implementation
    with pytest.raises(adapterlab.AdapterLabError, match=f"'sdpa' or 'eager', and this model uses '{implementation}'"):
        adapterlab.attach(model, "prefix")
    assert not hasattr(model.model, "prefix_encoder")


def test_an_attention_set_later_is_refused(tiny, logits):
    model = adapterlab.attach(tiny("bert"), "prefix")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(adapterlab.AdapterLabError, match="this model uses 'flash_attention_2'"):
        logits(model)


def test_a_class_of_somebody_elses_by_a_known_name(tiny, logits):
    model = tiny("bert")
    for layer in model.bert.encoder.layer:
        layer.feed_forward = layer.intermediate
        del layer.intermediate
    with pytest.raises(adapterlab.AdapterLabError, match="'bert' is built otherwise here"):
        adapterlab.attach(model, "prefix")
    adapterlab.attach(model, "lora")


def test_an_attention_that_does_not_call_the_interface(tiny, monkeypatch):
    monkeypatch.delattr(transformers.models.bert.modeling_bert, "ALL_ATTENTION_FUNCTIONS")
    model = tiny("bert")
    with pytest.raises(adapterlab.AdapterLabError, match="BertSelfAttention doesn't call it"):
        adapterlab.attach(model, "prefix")
    assert not hasattr(model.bert, "prefix_encoder")


def test_the_invented_model_is_a_whole_one(tiny, logits, tmp_path):
    model = tiny("invented")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(model))


def test_a_layer_that_gives_no_hidden_states(tiny, batch):
    model = adapterlab.attach(tiny("invented"), "bottleneck")
    layer = model.tower.storeys[0]
    inner = layer.forward
    layer.forward = lambda *args: {"x": inner(*args)}
    with pytest.raises(adapterlab.AdapterLabError, match="stands behind Storey, which gives a dict"):
        model(**batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction_factor": 0}, "reduction_factor: .*greater than 0"),
        ({"reduction_factor": 33}, "reduction_factor: 33 leaves nothing of this model's hidden size 32"),
        ({"bottleneck_size": 0}, "bottleneck_size: "),
        ({"where": []}, "where: "),
        ({"where": ["atention"]}, "where: .*'attention' or 'ffn'"),
        ({"leave_out": [2]}, "leave_out: layers \\[2\\] do not exist.*2 layers"),
        ({"leave_out": [0, -1]}, "leave_out: \\[0, -1\\] leaves no layer"),
        ({"layers": [1], "leave_out": [1]}, "leaves no layer"),
        ({"activation": "rleu"}, "activation 'rleu' is unknown. Did you mean 'relu'"),
        ({"init": "xavier"}, "init: "),
        ({"dropout": 1.0}, "dropout: "),
    ],
)
def test_bad_options_of_bottleneck(tiny, options, message):
    model = tiny("bert")
    with pytest.raises(adapterlab.AdapterLabError, match=message):
        adapterlab.attach(model, "bottleneck", **options)
    assert model.state_dict().keys() == tiny("bert").state_dict().keys()


# --- the bottleneck's formulas, computed again without hooks


def term(adapter, x, activation, scale):
    """scale * up(f(down(x))) from the tensors alone."""
    tensors = dict(adapter.named_parameters())
    hidden = activation(x @ tensors["down.weight"].T + tensors["down.bias"])
    return tensors.get("scaling", scale) * (hidden @ tensors["up.weight"].T + tensors["up.bias"])


class Formula:
    """A variant's published formula at one sublayer: s + r + the adapter's term, through the norm if there is one."""

    def __init__(self, variant, adapter):
        activation = torch.nn.functional.silu if variant == "houlsby" else torch.relu
        scale = 4.0 if variant == "parallel" else 1.0
        self.variant = variant
        self.term = lambda x: 0 if adapter is None else term(adapter, x, activation, scale)

    def extra(self, s, r, total, norm=None):
        if self.variant == "houlsby":
            return self.term(s)
        if self.variant == "pfeiffer":
            return self.term(total if norm is None else norm(total))
        return self.term(r)

    def __call__(self, s, r, norm=None):
        out = s + r + self.extra(s, r, s + r, norm)
        return out if norm is None else norm(out)


def bert(layer, attention, ffn):
    def forward(x, mask=None, *rest, **kwargs):
        s = layer.attention.output.dense(layer.attention.self(x, attention_mask=mask)[0])
        x = attention(s, x, layer.attention.output.LayerNorm)
        return ffn(layer.output.dense(layer.intermediate(x)), x, layer.output.LayerNorm)

    return forward


def gpt2(layer, attention, ffn):
    def forward(x, cache=None, mask=None, *rest, **kwargs):
        x = attention(layer.attn(layer.ln_1(x), attention_mask=mask)[0], x)
        return ffn(layer.mlp(layer.ln_2(x)), x)

    return forward


def gpt_neox(layer, attention, ffn):
    def forward(x, attention_mask=None, position_embeddings=None, **kwargs):
        normed = layer.input_layernorm(x)
        a = layer.attention(normed, attention_mask=attention_mask, position_embeddings=position_embeddings)[0]
        m = layer.mlp(layer.post_attention_layernorm(x))
        a_total = x + a + attention.extra(a, x, x + a)
        return a_total + m + ffn.extra(m, x, a_total + m)

    return forward


def t5(layer, attention, ffn):
    def forward(x, mask, bias, states=None, states_mask=None, states_bias=None, past_key_values=None, **kwargs):
        own = layer.layer[0]
        s, bias, _ = own.SelfAttention(own.layer_norm(x), mask=mask, position_bias=bias)
        x = attention(s, x)
        if states is not None:
            x, states_bias, _ = layer.layer[1](x, states, attention_mask=states_mask, position_bias=states_bias)
        return ffn(layer.layer[-1].DenseReluDense(layer.layer[-1].layer_norm(x)), x), bias, states_bias

    return forward


def opt_350m(layer, attention, ffn):
    def forward(x, attention_mask=None, **kwargs):
        s = layer.self_attn(x, attention_mask=attention_mask)[0]
        x = attention(s, x, layer.self_attn_layer_norm)
        return ffn(layer.fc2(layer.activation_fn(layer.fc1(x))), x, layer.final_layer_norm)

    return forward


REFERENCES = {
    "bert": (bert, "bert.encoder.layer"),
    "gpt2": (gpt2, "transformer.h"),
    "gpt_neox": (gpt_neox, "gpt_neox.layers"),
    "t5": (t5, "transformer.encoder.block", "transformer.decoder.block"),
    "opt-350m": (opt_350m, "model.decoder.layers"),
}


def build(tiny, architecture):
    if architecture != "opt-350m":
        return tiny(architecture)
    torch.manual_seed(0)
    config = CONFIGS["opt"]()
    config.do_layer_norm_before = False
    return transformers.OPTForSequenceClassification(config).eval()


@pytest.mark.parametrize("architecture", REFERENCES)
@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "parallel", "scaled_parallel"])
@pytest.mark.parametrize("where", [None, ["attention"], BOTH])
def test_bottlenecks_compute_what_was_published(tiny, logits, architecture, variant, where):
    model = build(tiny, architecture)
    plain = copy.deepcopy(model)
    adapterlab.attach(model, "bottleneck", variant=variant, where=where)
    randomize(model, std=0.5)
    actual = logits(model)
    rule, *stacks = REFERENCES[architecture]
    places = where or (BOTH if variant == "houlsby" else ["ffn"])
    for stack in stacks:
        for layer, adapted in zip(plain.get_submodule(stack), model.get_submodule(stack), strict=True):
            adapters = dict(zip(places, adapters_of(adapted), strict=True))
            layer.forward = rule(layer, *(Formula(variant, adapters.get(place)) for place in BOTH))
    copy_head(model, plain)
    torch.testing.assert_close(logits(plain), actual, rtol=1e-5, atol=1e-5)


def test_encoder_decoders_are_adapted_on_both_sides(tiny):
    for architecture, stack in (("t5", "transformer.{}.block"), ("bart", "model.{}.layers")):
        model = adapterlab.attach(tiny(architecture), "bottleneck", variant="houlsby", layers=[1, 2])
        for side, counts in (("encoder", [0, 2]), ("decoder", [2, 0])):
            assert [len(adapters_of(layer)) for layer in model.get_submodule(stack.format(side))] == counts
        assert not any("EncDecAttention" in n or "encoder_attn" in n for n, p in model.named_parameters() if
                       p.requires_grad)  # fmt: skip
    with pytest.raises(adapterlab.AdapterLabError, match=r"4 layers, 0 to 3 .*encoder's before decoder's"):
        adapterlab.attach(tiny("t5"), "bottleneck", layers=[4])


def test_alberts_layers_share_one_adapter_that_works_at_each_turn(tiny, logits):
    model = adapterlab.attach(tiny("albert"), "bottleneck")
    randomize(model)
    assert len(adapters_of(model)) == 1
    calls = []
    adapters_of(model)[0].register_forward_hook(lambda *_: calls.append(1))
    logits(model)
    assert len(calls) == model.config.num_hidden_layers == 2
    with pytest.raises(adapterlab.AdapterLabError, match="layers \\[1\\] do not exist: this albert has 1 layers"):
        adapterlab.attach(tiny("albert"), "bottleneck", layers=[1])


def test_leave_out_drops_layers(tiny, logits, batch, tmp_path):
    model = adapterlab.attach(tiny("bert"), "bottleneck", leave_out=[0])
    assert [len(adapters_of(layer)) for layer in model.bert.encoder.layer] == [0, 1]
    randomize(model)
    model(**batch).loss.backward()
    other = adapterlab.attach(tiny("bert"), "bottleneck", layers=[-1])
    randomize(other)
    assert torch.equal(logits(model), logits(other))
    fresh = adapterlab.load(tiny("bert"), adapterlab.save(model, tmp_path))
    assert torch.equal(logits(fresh), logits(model))


def test_sizes_and_activations(tiny):
    for options, size in (
        ({"bottleneck_size": 5}, 5), ({"reduction_factor": 8}, 4), ({"reduction_factor": 0.5}, 64), ({}, 2),
        ({"variant": "parallel"}, 16),
    ):  # fmt: skip
        model = adapterlab.attach(tiny("bert"), "bottleneck", activation="gelu", **options)
        assert [a.down.out_features for a in adapters_of(model)] == [size, size]
        assert type(adapters_of(model)[0].activation) is type(transformers.activations.ACT2FN["gelu"])
    model = adapterlab.attach(tiny("bert"), "bottleneck", variant="scaled_parallel")
    assert adapters_of(model)[0].scaling.item() == 4


def test_the_order_of_variants_does_not_matter(tiny, logits):
    for architecture in ("bert", "gpt2"):
        results = []
        for order in (("houlsby", "parallel-both", "pfeiffer-both"), ("pfeiffer-both", "parallel-both", "houlsby")):
            model = tiny(architecture)
            for case in order:
                attach(model, case, case)
                randomize(model, seed=len(case))
            for names in (["houlsby", "parallel-both", "pfeiffer-both"], ["parallel-both", "houlsby"]):
                adapterlab.activate(model, names)
                results.append(logits(model))
        torch.testing.assert_close(results[0], results[2])
        torch.testing.assert_close(results[1], results[3])
        assert not torch.allclose(results[0], results[1])


def test_a_place_that_was_left_keeps_no_activations(tiny, batch):
    model = tiny("bert")
    adapterlab.attach(model, "bottleneck", "low", variant="parallel", layers=[0])
    adapterlab.attach(model, "bottleneck", "high", variant="parallel", layers=[1])
    adapterlab.activate(model, ["low", "high"])
    adapterlab.detach(model, "low")
    assert sum(len(m._forward_pre_hooks) for m in model.bert.modules()) == 1
    model.bert.encoder.layer[1].output.dropout.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # between the two halves of the place
        model.train()(**batch)
    copy.deepcopy(model)


def test_recorded_hidden_states_are_those_that_the_next_layer_reads(tiny, batch):
    model = tiny("gpt2")
    inputs = {"input_ids": batch["input_ids"], "output_hidden_states": True}
    model(**inputs)  # transformers puts its recording hooks in here, before ours
    adapterlab.attach(model, "bottleneck")
    randomize(model)
    read = []
    model.transformer.h[1].register_forward_pre_hook(lambda module, args: read.append(args[0]))
    assert torch.equal(model(**inputs).hidden_states[1], read[0])


def test_pfeiffer_stands_behind_the_layers_of_an_unknown_architecture(tiny, logits):
    model = tiny("invented")
    plain = copy.deepcopy(model)
    adapterlab.attach(model, "bottleneck")
    randomize(model)
    for layer, adapted in zip(plain.tower.storeys, model.tower.storeys, strict=True):
        [adapter] = adapters_of(adapted)

        def forward(self, x, mask, adapter=adapter):
            [y] = type(self).forward(self, x, mask)
            return (y + term(adapter, y, torch.relu, 1.0),)

        layer.forward = types.MethodType(forward, layer)
    copy_head(model, plain)
    torch.testing.assert_close(logits(plain), logits(model))


# --- prefix tuning


def prefix_of(model):
    return next(p for name, p in model.named_parameters() if "prefix_encoder" in name or "prompt_encoder" in name)


PEFT_CELLS = [
    (architecture, head)
    for architecture in ("bert", "roberta", "electra", *DECODERS)
    for head in ("SequenceClassification", *(["CausalLM"] if architecture in DECODERS else []))
]


@pytest.mark.usefixtures("peft_finds_the_cache")
@pytest.mark.parametrize(("architecture", "head"), PEFT_CELLS)
def test_prefix_is_pefts(tiny, logits, batch, tmp_path, architecture, head):
    task = "SEQ_CLS" if head == "SequenceClassification" else "CAUSAL_LM"
    config = peft.PrefixTuningConfig(num_virtual_tokens=5, task_type=task)
    theirs = peft.get_peft_model(tiny(architecture, head), config)
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    ours = adapterlab.load(tiny(architecture, head), tmp_path)
    assert torch.equal(prefix_of(ours), prefix_of(theirs))
    with torch.no_grad():
        expected = theirs.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    actual = logits(ours)
    if head == "CausalLM":  # what a model says at padding is nobody's business
        expected, actual = (x[batch["attention_mask"].bool()] for x in (expected, actual))
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("peft_finds_the_cache")
@pytest.mark.parametrize("architecture", ["bert", "electra", *DECODERS])
def test_preserve_positions_leaves_tokens_where_they_are(tiny, batch, tmp_path, architecture):
    """peft moves given positions by the length of the prefix, so positions from -P on must give the same."""
    model = adapterlab.attach(tiny(architecture), "prefix", num_virtual_tokens=5, preserve_positions=True)
    randomize(model)
    inputs = {key: batch[key][1:] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        actual = model(**inputs).logits
        theirs = peft.PeftModel.from_pretrained(tiny(architecture), adapterlab.save(model, tmp_path)).eval()
        expected = theirs(**inputs, position_ids=torch.arange(10).expand(3, -1) - 5).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


def attention_with_prefix(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """softmax([q p_k, q k]) [p_v; v], in plain words; `module.prefix` is (p_k, p_v), each (heads, P, head size)."""
    p_k, p_v = module.prefix
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    weights = torch.cat([query @ p_k.transpose(-1, -2) * scaling, scores], dim=-1).softmax(dim=-1)
    length = p_k.shape[1]
    return (weights[..., :length] @ p_v + weights[..., length:] @ value).transpose(1, 2), None


transformers.AttentionInterface.register("with_prefix", attention_with_prefix)
transformers.AttentionMaskInterface.register("with_prefix", transformers.masking_utils.sdpa_mask)


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize(
    ("architecture", "attentions"),
    [
        ("bert", "bert.encoder.layer.{}.attention.self"),
        ("distilbert", "distilbert.transformer.layer.{}.attention"),
        ("albert", "albert.encoder.albert_layer_groups.{}.albert_layers.0.attention"),
        ("modernbert", "model.layers.{}.attn"),
    ],
)
def test_prefix_is_what_it_says(tiny, batch, logits, architecture, attentions, preserve):
    """Where peft has no prefix, and on BERT for comparison; one of ModernBERT's layers sees only near tokens."""
    model = tiny(architecture)
    plain = copy.deepcopy(model)
    adapterlab.attach(model, "prefix", num_virtual_tokens=5, preserve_positions=preserve)
    randomize(model)
    layers = 1 if architecture == "albert" else 2
    plain.config._attn_implementation_internal = "with_prefix"
    for layer, flat in enumerate(prefix_of(model).view(5, layers, 2, 4, 8).permute(1, 2, 3, 0, 4)):
        plain.get_submodule(attentions.format(layer)).prefix = (flat[0], flat[1])
    copy_head(model, plain)
    positions = torch.arange(10)[None] + (0 if preserve else 5)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = plain(**inputs, position_ids=positions).logits
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("case", ["prefix", "prefix-preserve"])
def test_generate(tiny, batch, architecture, case):
    """Cached or not, with a beam, padded on the left, into a cache of fixed size: the same tokens."""
    model = attach(tiny(architecture, "CausalLM"), case)
    randomize(model)
    prompt = {key: batch[key][:, :-1].flip(1) for key in ("input_ids", "attention_mask")}
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**prompt, **greedy)
    assert torch.equal(model.generate(**prompt, **greedy, use_cache=False), cached)
    assert torch.equal(model.generate(**prompt, **greedy, cache_implementation="static"), cached)
    whole = {key: value[1:] for key, value in prompt.items()}
    torch.testing.assert_close(model.generate(**whole, **greedy), cached[1:])
    beams = model.generate(**prompt, **greedy, num_beams=3)
    assert torch.equal(model.generate(**prompt, **greedy, num_beams=3, use_cache=False), beams)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_generate_past_the_last_position(tiny, batch, architecture):
    model = adapterlab.attach(tiny(architecture, "CausalLM"), "prefix", num_virtual_tokens=20)
    prompt = {key: batch[key][1:] for key in ("input_ids", "attention_mask")}
    longer = {"do_sample": False, "eos_token_id": None}
    assert model.generate(**prompt, **longer, max_new_tokens=35).shape[1] == 45  # the last token isn't read
    for cache in (True, False):
        with pytest.raises(
            adapterlab.AdapterLabError,
            match=r"45 tokens behind a prefix of 20 are more than the backbone's 64 positions\. Truncate to 44 tokens",
        ):
            model.generate(**prompt, **longer, max_new_tokens=40, use_cache=cache)
    adapterlab.detach(model)
    adapterlab.attach(model, "prefix", num_virtual_tokens=20, preserve_positions=True)
    assert model.generate(**prompt, **longer, max_new_tokens=54).shape[1] == 64


def test_packed_rows_are_measured_by_their_positions(tiny):
    model = adapterlab.attach(tiny("gpt2"), "prefix", num_virtual_tokens=20)
    ids = torch.full((1, 60), 7)
    model(input_ids=ids, position_ids=torch.arange(30).repeat(2)[None])
    with pytest.raises(adapterlab.AdapterLabError, match="60 tokens behind a prefix of 20"):
        model(input_ids=ids)


def test_heads_of_other_tasks(tiny):
    """A pretrained language-model head stays frozen, however many modules it has; T5's answers are learned."""
    for architecture in ("bert", "distilbert", "electra", "modernbert", "albert", "deberta-v2"):
        model = adapterlab.attach(tiny(architecture, "MaskedLM"), "bottleneck")
        assert adapterlab.summary(model).adapters[0].head_parameters == 0, architecture
    model = adapterlab.attach(tiny("t5", "QuestionAnswering"), "bottleneck")
    heads = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert heads == {"encoder", "decoder", "qa_outputs"}
    model = adapterlab.attach(transformers.T5EncoderModel(CONFIGS["t5"]()), "bottleneck")
    assert len(adapters_of(model)) == 2
