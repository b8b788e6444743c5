"""Prompt tuning and P-tuning: virtual tokens in front of the tokens, and nothing of them behind the backbone."""

from __future__ import annotations

import copy
import inspect
import json

import pytest
import torch
import transformers as T
from conftest import CONFIGS, DECODERS, LABELS, VOCABULARY, randomize
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import adapterlab
from adapterlab.errors import AdapterLabError, BackboneError, ConfigError

P = 5
METHODS = {
    "prompt": {"num_virtual_tokens": P},
    "p_tuning": {"num_virtual_tokens": P},
    "p_tuning-lstm": {"num_virtual_tokens": P, "encoder": "lstm", "encoder_hidden_size": 8, "encoder_dropout": 0.3},
}
REFUSED = ("invented",)  # its forward takes no embeddings
SUPPORTED = [architecture for architecture in CONFIGS if architecture not in REFUSED]
everywhere = pytest.mark.parametrize("architecture", SUPPORTED)
both = pytest.mark.parametrize("case", ["prompt", "p_tuning"])


def attach(model, case="prompt", name="default", **options):
    return adapterlab.attach(model, case.split("-")[0], name, **METHODS[case] | options)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def has(architecture, head):
    return type(CONFIGS[architecture]()) in getattr(T, f"AutoModelFor{head}")._model_mapping


def cells(*heads):
    return [
        pytest.param(architecture, head, id=f"{architecture}-{head}")
        for architecture in SUPPORTED
        for head in heads
        if has(architecture, head) and not (head == "CausalLM" and architecture not in DECODERS)
    ]


@everywhere
@both
def test_attach_train_detach(tiny, logits, train, architecture, case):
    model = tiny(architecture)
    state, backbone, kind = copy.deepcopy(model.state_dict()), logits(model), type(model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert attach(model, case) is model
    assert type(model) is kind
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    untrained = {name: p.detach().clone() for name, p in model.named_parameters() if "virtual_tokens" in name}
    losses = train(without_dropout(model), steps=10)
    assert losses[-1] < losses[0]
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in frozen.items())
    assert not any(torch.equal(now[name], p) for name, p in untrained.items()), "all of the prompt must be trained"

    trained = logits(model)
    assert not torch.equal(trained, backbone)
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)
    twin = copy.deepcopy(model)
    randomize(twin)
    assert torch.equal(logits(model), trained), "a copy must not share anything with its original"

    adapterlab.detach(model)
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert torch.equal(logits(model), backbone)
    for module in model.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks"):
            assert not getattr(module, hooks)
            assert not getattr(module, f"{hooks}_with_kwargs")


@everywhere
@pytest.mark.parametrize("case", ["prompt", "p_tuning-lstm"])
def test_save_and_load_give_equal_logits(tiny, logits, tmp_path, architecture, case):
    model = attach(tiny(architecture), case)
    randomize(model)
    adapterlab.save(model, tmp_path)
    loaded = adapterlab.load(tiny(architecture), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    stored = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    assert stored.shape == (P, model.get_input_embeddings().weight.shape[1])
    again = adapterlab.save(loaded, tmp_path / "again")
    assert torch.equal(load_file(again / "adapter_model.safetensors")["prompt_embeddings"], stored)


@pytest.mark.parametrize("architecture", [a for a in SUPPORTED if a != "albert"])  # transformers has none for ALBERT
@both
def test_gradient_checkpointing_gives_the_same_gradients(tiny, batch, architecture, case):
    gradients = []
    for checkpointing in (False, True):
        model = attach(tiny(architecture), case)
        randomize(model)
        if checkpointing:
            model.gradient_checkpointing_enable()
        without_dropout(model.train())(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("architecture", "head"),
    [*cells("CausalLM", "Seq2SeqLM"), pytest.param("gpt2", "CausalLM-lstm", id="gpt2-lstm")],
)
def test_generate(tiny, batch, architecture, head):
    """With and without cache, in beams, with padding on the left or none: the same tokens."""
    head, _, lstm = head.partition("-")
    model = tiny(architecture, head)
    ids = batch["input_ids"][1:, :6]
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    plain = model.generate(ids, **options)
    attach(model, "p_tuning-lstm" if lstm else "prompt")
    randomize(model, std=1.0)
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, **options, use_cache=False), expected)
    beams = model.generate(ids, **options, num_beams=3)
    assert torch.equal(model.generate(ids, **options, num_beams=3, use_cache=False), beams)
    padded = torch.nn.functional.pad(ids, (3, 0))
    mask = options.pop("attention_mask")
    out = model.generate(padded, attention_mask=torch.nn.functional.pad(mask, (3, 0)), **options)
    assert torch.equal(out[:, 3 if head == "CausalLM" else 0 :], expected)
    if head == "CausalLM":
        out = model.generate(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask, **options)
        assert torch.equal(out, expected[:, 6:])
    with adapterlab.disabled(model):
        assert torch.equal(model.generate(ids, attention_mask=mask, **options), plain)
    scores = {"return_dict_in_generate": True, "output_scores": True}
    prompted = model.generate(ids, attention_mask=mask, **options, **scores).scores[0]
    adapterlab.detach(model)
    assert not torch.allclose(model.generate(ids, attention_mask=mask, **options, **scores).scores[0], prompted)


@pytest.mark.parametrize(
    ("architecture", "head"), cells("TokenClassification", "QuestionAnswering", "CausalLM", "MaskedLM", "Seq2SeqLM")
)
def test_heads_of_tokens_need_no_other_labels(tiny, batch, architecture, head):
    """Logits, losses and hidden states are those of the tokens, and the virtual tokens act on them."""
    model = without_dropout(attach(tiny(architecture, head)))
    randomize(model)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    if head == "TokenClassification":
        labels = labels.where(labels < 0, labels % LABELS)
    targets = {"labels": labels}
    if head == "QuestionAnswering":
        targets = {"start_positions": torch.tensor([1, 2, 3, 9]), "end_positions": torch.tensor([2, 2, 5, 9])}
    out = model(**inputs, **targets, output_hidden_states=True)
    if head == "QuestionAnswering":
        assert out.start_logits.shape == (4, 10)
        expected = (
            cross_entropy(out.start_logits, targets["start_positions"])
            + cross_entropy(out.end_logits, targets["end_positions"])
        ) / 2
    else:
        assert out.logits.shape[:2] == (4, 10)
        shift = 1 if head == "CausalLM" else 0
        expected = cross_entropy(out.logits[:, : 10 - shift].flatten(0, 1), labels[:, shift:].flatten())
    torch.testing.assert_close(out.loss, expected)
    states = out.decoder_hidden_states if hasattr(out, "decoder_hidden_states") else out.hidden_states
    assert all(state.shape[1] == 10 for state in states)
    out.loss.backward()
    prompt = next(p for name, p in model.named_parameters() if "virtual_tokens" in name)
    assert (prompt.grad.abs().sum(dim=1) > 0).all(), "every virtual token is seen"


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_what_the_model_would_fill_in_may_be_given(tiny, batch, architecture):
    """Token types, positions and embeddings given as the model has them by default change nothing."""
    model = attach(tiny(architecture))
    randomize(model)
    ids = batch["input_ids"][1:]
    expected = model(input_ids=ids).logits
    accepted = inspect.signature(type(model).forward).parameters
    torch.testing.assert_close(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, expected)
    if "position_ids" in accepted:
        first = 1 if architecture == "roberta" else 0
        positions = torch.arange(first, first + 10).expand(3, -1)
        torch.testing.assert_close(model(input_ids=ids, position_ids=positions).logits, expected)
    if "token_type_ids" in accepted and architecture != "gpt2":  # which adds the embedding of token 0
        torch.testing.assert_close(model(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits, expected)
    if not model.config.is_encoder_decoder and architecture not in DECODERS:
        torch.testing.assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, expected)


def test_attentions_and_tuples(tiny, batch):
    model = attach(tiny("bert", "TokenClassification"))
    model.set_attn_implementation("eager")
    out = model(batch["input_ids"], batch["attention_mask"], output_attentions=True, output_hidden_states=True)
    assert out.attentions[0].shape == (4, 4, 10, 10 + P)
    torch.testing.assert_close(out.attentions[0].sum(dim=-1), torch.ones(4, 4, 10))
    flat = model.bert(batch["input_ids"], batch["attention_mask"], return_dict=False, output_hidden_states=True)
    assert torch.equal(flat[0], out.hidden_states[-1])
    assert all(torch.equal(a, b) for a, b in zip(flat[-1], out.hidden_states, strict=True))


def test_a_bare_encoder_and_multiple_choice(tiny, batch):
    bare = attach(tiny("bert").bert)
    assert bare(batch["input_ids"]).last_hidden_state.shape[1] == 10
    model = attach(tiny("bert", "MultipleChoice"))
    randomize(model)
    pairs = {key: batch[key].view(2, 2, -1) for key in ("input_ids", "attention_mask")}
    one_by_one = model(**{key: value.view(4, 1, -1) for key, value in pairs.items()}).logits
    torch.testing.assert_close(model(**pairs).logits, one_by_one.view(2, 2))


def with_prompt(tiny, weight):
    model = attach(tiny("gpt2", "CausalLM"), "prompt", num_virtual_tokens=len(weight))
    with torch.no_grad():
        model.transformer.virtual_tokens["default"].embedding.weight.copy_(weight)
    return model


def saved(model, name, folder):
    return load_file(adapterlab.save(model, folder / name, name) / "adapter_model.safetensors")["prompt_embeddings"]


@both
def test_several_prompts_stand_one_behind_the_other(tiny, logits, tmp_path, case):
    model = attach(tiny("gpt2", "CausalLM"), case, "one")
    randomize(model, 1)
    attach(model, "prompt", "two", num_virtual_tokens=2)
    randomize(model, 2)
    one, two = saved(model, "one", tmp_path), saved(model, "two", tmp_path)
    adapterlab.activate(model, ["two", "one"])
    assert all(p.requires_grad for name, p in model.named_parameters() if "virtual_tokens" in name)
    # the order is that of the names; those of P-tuning come before those of prompt tuning
    expected = logits(with_prompt(tiny, torch.cat([two, one] if case == "prompt" else [one, two])))
    torch.testing.assert_close(logits(model), expected)
    adapterlab.activate(model, ["one", "two"])
    torch.testing.assert_close(logits(model), logits(with_prompt(tiny, torch.cat([one, two]))))
    adapterlab.detach(model, "one")
    assert torch.equal(logits(model), logits(with_prompt(tiny, two)))


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_together_with_lora(tiny, logits, train, architecture):
    model = tiny(architecture)
    backbone = logits(model)
    adapterlab.attach(model, "lora", "low", r=2)
    randomize(model, 1, std=0.1)
    low = logits(model)
    attach(model, "prompt", "soft")
    randomize(model, 2)
    soft = logits(model)
    adapterlab.activate(model, ["low", "soft"])
    together = logits(model)
    assert not torch.equal(together, low)
    assert not torch.equal(together, soft)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert all(any(part in name for name in before) for part in ("virtual_tokens", "lora_A", "lora_B"))
    train(model, steps=2)
    unchanged = [name for name, p in model.named_parameters() if name in before and torch.equal(p, before[name])]
    assert not unchanged
    adapterlab.activate(model, None)
    assert torch.equal(logits(model), backbone)
    adapterlab.detach(model)
    assert torch.equal(logits(model), backbone)


@pytest.mark.parametrize(("architecture", "case"), [("distilbert", "prompt"), ("gpt2", "p_tuning")])
def test_compiled(tiny, logits, architecture, case):
    model = attach(tiny(architecture), case)
    randomize(model)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(logits(compiled), logits(model))


@pytest.mark.parametrize("case", METHODS)
@pytest.mark.parametrize("architecture", ["roberta", "llama"])
def test_a_backbone_in_bf16(tiny, train, architecture, case):
    model = attach(tiny(architecture).to(torch.bfloat16), case)
    own = [p for name, p in model.named_parameters() if "virtual_tokens" in name]
    assert {p.dtype for p in own} == {torch.float32}
    losses = train(without_dropout(model), steps=10)
    assert losses[-1] < losses[0]


def test_starts_of_a_prompt(tiny):
    def start(**options):
        model = attach(tiny("electra"), **options)
        return model.virtual_tokens["default"].embedding.weight.detach(), model.get_input_embeddings().weight

    prompt, words = start(init_ids=[7, 8, 9])
    assert torch.equal(prompt, words[[7, 8, 9, 7, 8]])
    prompt, words = start(init_ids=list(range(3, 20)))
    assert torch.equal(prompt, words[3:8])
    prompt, words = start()
    assert all(any(torch.equal(row, word) for word in words) for row in prompt)
    assert not torch.equal(prompt, start()[0]), "drawn at random"
    prompt, words = start(prompt_tuning_init="RANDOM", num_virtual_tokens=40)
    assert prompt.std() == pytest.approx(1, abs=0.2)
    assert words.std() < 0.1


def test_what_p_tuning_saves_is_the_prompt_it_makes_in_evaluation(tiny, logits, tmp_path):
    model = attach(tiny("gpt2"), "p_tuning-lstm")
    randomize(model)
    model.train()
    adapterlab.save(model, tmp_path)
    assert all(module.training for module in model.modules()), "saving leaves the mode alone"
    options = json.loads((tmp_path / "adapterlab.json").read_text())["options"]
    assert options["encoder"] == "lstm"
    loaded = adapterlab.load(tiny("gpt2"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert adapterlab.summary(loaded).adapters[0].options["encoder"] == "none"


def test_a_checkpoint_holds_the_network_too(tiny, train):
    from adapterlab.trainer_hooks import training_state

    model = attach(tiny("bert"), "p_tuning-lstm")
    train(model, steps=2)
    stored = {path: tensor.clone() for path, tensor in training_state(model).items()}
    assert any("lstm" in path for path in stored)
    other = attach(tiny("bert"), "p_tuning-lstm")
    other.load_state_dict(stored, strict=False)
    assert all(torch.equal(tensor, training_state(model)[path]) for path, tensor in training_state(other).items())


def test_modules_inside_may_be_trained_in_full_and_those_with_hooks_not(tiny, logits, tmp_path):
    model = tiny("gpt2")
    attach(model, modules_to_save=["h.1", "wte"])
    randomize(model, std=0.1)
    adapterlab.save(model, tmp_path)
    assert torch.equal(logits(adapterlab.load(tiny("gpt2"), tmp_path)), logits(model))
    for architecture, head, ending in (
        ("gpt2", "CausalLM", "transformer"),
        ("opt", "CausalLM", "decoder"),
        ("opt", "CausalLM", "model"),
        ("t5", "Seq2SeqLM", "decoder"),
        ("t5", "Seq2SeqLM", "encoder"),
    ):
        model = tiny(architecture, head)
        with pytest.raises(BackboneError, match=f"modules_to_save: '.*{ending}' can't be trained in full"):
            attach(model, modules_to_save=[ending])
        assert not hasattr(model, "_adapterlab_guests")


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "opt", "bart"])
def test_the_position_table_is_never_left(tiny, architecture):
    model = tiny(architecture)
    ids = torch.full((1, 64), 5)
    ids[0, -1] = 2
    rows = 63 if architecture == "roberta" else 64
    for length in (rows, rows + 1):
        with pytest.raises(BackboneError, match=rf"num_virtual_tokens: {length} fill all of the backbone's {rows}"):
            attach(model, num_virtual_tokens=length)
    attach(model)
    model(ids[:, P + 64 - rows :])
    with pytest.raises(BackboneError, match=rf"{rows - P + 1} tokens behind {P} virtual .* to {rows - P} tokens"):
        model(ids[:, P + 63 - rows :])


def test_generation_stops_at_the_position_table(tiny):
    model = attach(tiny("gpt2", "CausalLM"))
    model.generation_config.eos_token_id = None
    with pytest.raises(BackboneError, match="more than the backbone's 64 positions"):
        model.generate(torch.full((1, 55), 5), max_new_tokens=10, do_sample=False)


@pytest.mark.parametrize("architecture", REFUSED)
@both
def test_a_backbone_that_takes_no_embeddings_is_refused(tiny, logits, architecture, case):
    model = tiny(architecture)
    before = logits(model)
    with pytest.raises(BackboneError, match=r"takes no 'inputs_embeds' in forward\. Use 'lora'"):
        attach(model, case)
    assert torch.equal(logits(model), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_architecture_that_isnt_described(batch, train, logits):
    """MPNet is known by its shape only."""
    config = T.MPNetConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        num_labels=LABELS, pad_token_id=0,
    )  # fmt: skip
    model = T.MPNetForSequenceClassification(config)
    before = logits(model)
    attach(model)
    losses = train(without_dropout(model))
    assert losses[-1] < losses[0]
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), before)


def test_states_of_fixed_size_are_refused():
    config = T.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2)
    with pytest.raises(BackboneError, match="state of fixed size"):
        attach(T.MambaForCausalLM(config))


def test_inputs_that_cant_be_lengthened_are_refused(tiny, batch):
    model = attach(tiny("gpt2", "CausalLM"))
    ids = batch["input_ids"][1:]
    with pytest.raises(BackboneError, match="attention mask of shape"):
        model(ids, attention_mask=torch.ones(3, 1, 10, 10))
    with pytest.raises(BackboneError, match="static cache"):
        model.generate(ids, max_new_tokens=3, cache_implementation="static")
    with pytest.raises(BackboneError, match=r"'moods' of shape \[3, 10\] has an entry for each token"):
        model.transformer(ids, moods=torch.ones(3, 10))
    with adapterlab.disabled(model):
        cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(BackboneError, match="A cache must begin with the active prompts"):
        model(ids[:, :1], attention_mask=torch.ones(3, 11), past_key_values=cache)


BAD = {
    "both starts": ("prompt", {"init": "random", "init_ids": [1]}, "two starts"),
    "no ids": ("prompt", {"init_ids": []}, "init_ids"),
    "unknown start": ("prompt", {"init": "text"}, "'vocabulary' or 'random'"),
    "no tokens": ("prompt", {"num_virtual_tokens": 0}, "num_virtual_tokens"),
    "unknown id": ("prompt", {"init_ids": [3, 97]}, r"\[97\] are no tokens: the vocabulary has 97, 0 to 96"),
    "negative id": ("prompt", {"init_ids": [-1]}, r"\[-1\] are no tokens"),
    "misspelt": ("prompt_tuning", {"num_virtual_token": 3}, "Did you mean 'num_virtual_tokens'"),
    "unknown network": ("p_tuning", {"encoder": "gru"}, "'mlp', 'lstm' or 'none'"),
    "idle options": ("p-tuning", {"encoder_num_layers": 3, "encoder_dropout": 0.1}, "only encoder='lstm' has it"),
    "idle dropout": ("p_tuning", {"encoder": "LSTM", "encoder_num_layers": 1, "encoder_dropout": 0.1}, "is 1"),
    "full dropout": ("p_tuning", {"encoder": "lstm", "encoder_dropout": 1.0}, "encoder_dropout"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_options(tiny, logits, bad):
    method, options, message = BAD[bad]
    model = tiny("bert")
    before = logits(model)
    with pytest.raises((ConfigError, BackboneError), match=message) as caught:
        adapterlab.attach(model, method, **options)
    assert isinstance(caught.value, AdapterLabError)
    assert torch.equal(logits(model), before)
    assert not hasattr(model, "virtual_tokens")
