"""The last layer computes only the token that the head reads: the same logits and gradients, where that is exact."""

from __future__ import annotations

import pytest
import torch
from conftest import gradients_of, prepared

import adapterlab
from adapterlab.speed.first_token import first_token_only

METHODS = ["lora", "adalora", "prefix", "bottleneck", "ia3", "prompt_tuning", "full"]
VARIANTS = [("bottleneck", {"variant": "houlsby"}), ("bottleneck", {"variant": "parallel"})]


def outcome(model, batch):
    outputs = model(**batch)
    return outputs.logits, gradients_of(model, outputs.loss)


@pytest.mark.parametrize(("method", "options"), [*((method, {}) for method in METHODS), *VARIANTS])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
def test_the_same_logits_and_gradients_from_one_token(tiny, batch, architecture, method, options):
    model = prepared(tiny, architecture, method, **options)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected, known = outcome(model, batch)
    layer = next(m for name, m in model.named_modules() if name.endswith("encoder.layer.1"))
    seen = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    random = torch.random.get_rng_state()
    with first_token_only(model) as narrow:
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(torch.random.get_rng_state(), random)
        seen.clear()
        logits, gradients = outcome(model, batch)
    handle.remove()
    assert narrow
    assert seen == [1]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == known.keys()
    largest = max(float(gradient.abs().max()) for gradient in known.values())
    for name, gradient in known.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)
    again, _ = outcome(model, batch)
    assert torch.equal(again, expected), "outside, all is as ever"


@pytest.mark.parametrize("architecture", ["gpt2", "distilbert", "albert", "t5", "invented"])
def test_where_it_cant_be_done_nothing_changes(tiny, batch, architecture):
    model = prepared(tiny, architecture, "lora")
    expected, _ = outcome(model, batch)
    with first_token_only(model) as narrow:
        assert not narrow
        assert not any(m._forward_pre_hooks for m in model.modules() if type(m).__name__.endswith("SelfOutput"))
        assert torch.equal(outcome(model, batch)[0], expected)


def test_a_head_that_reads_every_token_is_left_alone(tiny, batch):
    model = prepared(tiny, "bert", "lora")
    pooled = model.bert.pooler.forward
    model.bert.pooler.forward = lambda states: pooled(states.mean(1, keepdim=True))
    with first_token_only(model) as narrow:
        assert not narrow
    for task in ("TokenClassification", "MaskedLM"):
        with first_token_only(adapterlab.attach(tiny("bert", task), "lora")) as narrow:
            assert not narrow


def test_a_run_trains_so_and_measures_with_the_whole_layer(tmp_path, monkeypatch):
    from tiny_workshop import furnish
    from transformers.models.bert.modeling_bert import BertPooler

    seen, pooled = [], BertPooler.forward

    def watched(self, states):
        seen.append((self.training, states.shape[1]))
        return pooled(self, states)

    monkeypatch.chdir(furnish(tmp_path))
    monkeypatch.setattr(BertPooler, "forward", watched)
    adapterlab.run("tiny.yaml", "optim.epochs=1", "log.plot=false")
    assert {length for training, length in seen if training} == {1}
    assert seen[-1][1] > 1


@pytest.mark.parametrize("length", [10, 4])
def test_who_asks_for_the_states_gets_all_of_them(tiny, batch, length):
    batch["attention_mask"][1:, length:] = 0
    model = prepared(tiny, "bert", "lora")
    states = model(**batch, output_hidden_states=True).hidden_states[-1]
    pooled = model.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    logits, real = model(**batch).logits, batch["attention_mask"].bool()
    with adapterlab.lean(model):
        seen = model(**batch, output_hidden_states=True)
        alone = model.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        torch.testing.assert_close(seen.hidden_states[-1], states)
        torch.testing.assert_close(alone[real], pooled[real])
        for found in (seen.logits, model(**batch).logits):
            torch.testing.assert_close(found, logits)
