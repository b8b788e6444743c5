"""int8: near the fp32 model in every architecture, ties kept, what can't be done refused with the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import CONFIGS, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import adapterlab
from adapterlab.kernels.int8 import Int8Embedding, Int8Linear, rounded
from adapterlab.serving.quantizing import places


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), size=st.integers(1, 17), power=st.floats(-20, 20), seed=st.integers(0, 99))
def test_rounding_is_off_by_half_a_step_at_most(rows, size, power, seed):
    weight = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 10**power
    weight[0] = 0
    whole, scale = rounded(weight)
    assert whole.dtype == torch.int8
    assert whole.abs().max() <= 127
    assert (scale > 0).all()
    apart = (whole * scale[:, None] - weight).abs()
    assert (apart <= 0.501 * scale[:, None]).all()
    assert torch.equal(rounded(-weight)[0], -whole)


def test_a_linear_is_what_its_numbers_say():
    torch.manual_seed(0)
    plain = nn.Linear(64, 48)
    whole, scale = rounded(plain.weight)
    layer = Int8Linear(whole, scale, plain.bias.detach())
    x = torch.randn(5, 7, 64)
    by_hand = F.linear(x, whole * scale[:, None], plain.bias)
    step = (x.max() - x.min()) / (255 if torch.cpu._is_vnni_supported() else 127)
    most = float(step / 2 * (whole * scale[:, None]).abs().sum(1).max()) + 1e-4
    assert (layer(x) - by_hand).abs().max() <= most, "what x's own rounding may do"
    assert (layer(x) - plain(x)).abs().mean() < 0.02 * plain(x).abs().mean()
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer(x[:0]).shape == (0, 7, 48)
    again = copy.deepcopy(layer)
    assert torch.equal(again(x), layer(x))


def test_without_kernels_it_computes_the_same_in_floats(monkeypatch):
    torch.manual_seed(0)
    plain = nn.Linear(32, 16)
    whole, scale = rounded(plain.weight)
    layer = Int8Linear(whole, scale, plain.bias.detach())
    x = torch.randn(3, 32)
    monkeypatch.setattr("adapterlab.kernels.int8.has_kernels", lambda: False)
    torch.testing.assert_close(layer(x), F.linear(x, whole * scale[:, None], plain.bias).detach())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_architecture_stays_near_its_logits(tiny, logits, architecture):
    model = tiny(architecture)
    expected = logits(model)
    before = sum(t.nbytes for t in model.state_dict().values())
    assert adapterlab.quantize(model) is model
    found = logits(model)
    assert (found - expected).norm() < 0.1 * expected.norm()
    assert not torch.equal(found, expected)
    assert sum(t.nbytes for t in model.state_dict().values()) < 0.6 * before
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_an_output_layer_that_is_tied_stays_so(tiny, batch, architecture):
    model = tiny(architecture, "MaskedLM" if architecture == "bert" else "CausalLM").eval()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    expected = model(**inputs).logits
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    adapterlab.quantize(model)
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, Int8Embedding)
    assert isinstance(output, Int8Linear)
    assert (output.weight.data_ptr() == embedding.weight.data_ptr()) is tied
    found = model(**inputs).logits
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_generate_works(tiny, batch):
    model = adapterlab.quantize(tiny("gpt2", "CausalLM"))
    found = model.generate(input_ids=batch["input_ids"][:, :3], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert found.shape == (len(batch["input_ids"]), 7)


def test_an_adapter_is_merged_first(tiny, logits):
    model = tiny("bert")
    adapterlab.attach(model, "lora", target_modules="all-linear")
    randomize(model, std=0.1)
    expected = logits(model)
    named = [place.path for place in places(model)]
    adapterlab.quantize(model)
    assert (logits(model) - expected).norm() < 0.1 * expected.norm()
    assert adapterlab.summary(model).adapters == ()
    kept = {path for path, module in model.named_modules() if isinstance(module, Int8Linear | Int8Embedding)}
    assert kept == set(named)


def test_what_is_skipped_stays_as_it_is(tiny, logits):
    model = tiny("bert")
    everything = copy.deepcopy(model)
    adapterlab.quantize(model, skip=["*.query", "bert.encoder.layer.1", "bert.embeddings.word_embeddings"])
    layers = model.bert.encoder.layer
    assert type(layers[0].attention.self.query) is nn.Linear
    assert type(layers[0].attention.self.key) is Int8Linear
    assert not any(isinstance(module, Int8Linear) for module in layers[1].modules())
    assert type(model.bert.embeddings.word_embeddings) is nn.Embedding
    plain = logits(everything)
    assert (logits(model) - plain).norm() < (logits(adapterlab.quantize(everything)) - plain).norm()


def is_as_it_was(model, state):
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(isinstance(module, Int8Linear | Int8Embedding) for module in model.modules())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheme": "int4"}, ["unknown scheme 'int4'", "int8"]),
        ({"skip": ["*.qury"]}, ["'*.qury' is no module", "Did you mean 'query'", "patterns"]),
        ({"skip": ["*.query", "nothing"]}, ["'nothing' is no module"]),
        ({"skip": ["*"]}, ["all of it is skipped"]),
    ],
)
def test_bad_options_are_refused_and_the_adapter_kept(tiny, logits, options, words):
    model = adapterlab.attach(tiny("bert"), "lora")
    randomize(model)
    state, expected = copy.deepcopy(model.state_dict()), logits(model)
    with pytest.raises(adapterlab.AdapterLabError) as refusal:
        adapterlab.quantize(model, **options)
    for word in words:
        assert word in str(refusal.value)
    is_as_it_was(model, state)
    assert torch.equal(logits(model), expected)
    assert adapterlab.summary(model).adapters


def test_what_cant_be_merged_or_is_in_int8_already_is_refused(tiny, logits):
    model = adapterlab.attach(tiny("bert"), "prefix")
    expected = logits(model)
    with pytest.raises(adapterlab.AdapterLabError, match="can't be merged"):
        adapterlab.quantize(model)
    assert torch.equal(logits(model), expected)
    small = adapterlab.quantize(tiny("bert"))
    with pytest.raises(adapterlab.AdapterLabError, match="in int8 already"):
        adapterlab.quantize(small)
    with pytest.raises(adapterlab.AdapterLabError, match="has no adapter"):
        adapterlab.merge(small)


def test_weights_that_arent_finite_are_refused(tiny):
    model = tiny("bert")
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.key.weight[0, 0] = float("nan")
    with pytest.raises(adapterlab.AdapterLabError, match=r"attention\.self\.key has weights that aren't finite"):
        adapterlab.quantize(model)
    assert not any(isinstance(module, Int8Linear) for module in model.modules())


@pytest.mark.parametrize(("architecture", "head"), [("bert", "SequenceClassification"), ("llama", "CausalLM")])
def test_a_model_in_bf16_is_served_with_fp32_beside_int8(tiny, batch, architecture, head):
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    expected = tiny(architecture, head).eval()(**inputs).logits
    found = adapterlab.quantize(tiny(architecture, head).to(torch.bfloat16))(**inputs).logits
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("skip", ["*.wte", "lm_head"])
def test_weights_that_are_tied_become_int8_together_or_not_at_all(tiny, batch, tmp_path, skip):
    model = adapterlab.quantize(tiny("gpt2", "CausalLM"), skip=[skip])
    assert type(model.lm_head) is nn.Linear
    assert type(model.transformer.wte) is nn.Embedding
    assert model.lm_head.weight is model.transformer.wte.weight
    adapterlab.save_deployed(model, tmp_path / "out")
    again = adapterlab.load_deployed(tmp_path / "out")
    assert again.lm_head.weight is again.transformer.wte.weight
    assert torch.equal(again(batch["input_ids"]).logits, model(batch["input_ids"]).logits)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_encoder_decoders_load_as_they_were(tiny, tmp_path, name):
    model = tiny(name, "Seq2SeqLM")
    adapterlab.quantize(model)
    ids = torch.tensor([[5, 6, 7, 2], [8, 9, 10, 2]])
    expected = model(input_ids=ids, decoder_input_ids=ids).logits
    adapterlab.save_deployed(model, tmp_path / "out")
    assert torch.equal(
        adapterlab.load_deployed(tmp_path / "out")(input_ids=ids, decoder_input_ids=ids).logits, expected
    )


def test_a_model_that_reads_weights_past_their_modules_is_refused_and_stays_in_fp32():
    from transformers import MobileBertConfig, MobileBertForMaskedLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}
    model = MobileBertForMaskedLM(MobileBertConfig(**sizes)).eval()
    ids = torch.arange(5, 13)[None]
    expected = model(ids).logits
    with pytest.raises(adapterlab.AdapterLabError, match="reads some of its weights by itself"):
        adapterlab.quantize(model)
    assert torch.equal(model(ids).logits, expected)


def test_positions_that_are_counted_from_padding_are_still(tiny, batch):
    model = tiny("roberta", "MaskedLM")
    padding = model.get_input_embeddings().padding_idx
    assert adapterlab.quantize(model).get_input_embeddings().padding_idx == padding is not None


def test_gradients_pass_through_to_what_stands_before(tiny, batch):
    model = adapterlab.quantize(tiny("bert"))
    embedded = model.get_input_embeddings()(batch["input_ids"]).requires_grad_()
    model(inputs_embeds=embedded, labels=batch["labels"]).loss.backward()
    assert embedded.grad.abs().sum() > 0
