"""Encoders run on the real tokens of a batch: the same answers and gradients, padding not computed."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import DECODERS, VOCABULARY, gradients_of, prepared

import adapterlab
from adapterlab.kernels.unpad import Packing
from adapterlab.speed.first_token import first_token_only
from adapterlab.speed.real_tokens import real_tokens_only

ENCODERS = ["bert", "roberta", "electra", "distilbert", "albert"]
METHODS = ["lora", "adalora", "prefix", "bottleneck", "ia3", "prompt_tuning", "full"]
VARIANTS = [("bottleneck", {"variant": "houlsby"}), ("bottleneck", {"variant": "parallel"})]
LENGTHS = (10, 3, 7, 1)
HEADS = {"SequenceClassification": (len(LENGTHS),), "TokenClassification": (4, 10), "MaskedLM": (4, 10)}


def padded(head="SequenceClassification", **changes):
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[int(place < length) for place in range(max(LENGTHS))] for length in LENGTHS])
    labels = torch.arange(ids.numel()).view(ids.shape) % 3
    labels = labels[:, 0] if head == "SequenceClassification" else labels.masked_fill(mask == 0, -100)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels, **changes}


def outcome(model, batch):
    outputs = model(**batch)
    logits = outputs.logits if outputs.logits.dim() < 3 else outputs.logits[batch["attention_mask"].bool()]
    return outputs.loss, logits, gradients_of(model, outputs.loss)


def same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)
    assert found[2].keys() == expected[2].keys()
    largest = max(float(gradient.abs().max()) for gradient in expected[2].values())
    for name, gradient in expected[2].items():
        torch.testing.assert_close(found[2][name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def watch(model, seen):
    """Note how many places each of the encoder's first FFN products is given."""
    linear = next(m for name, m in model.named_modules() if name.endswith(("intermediate", "ffn.lin1", "ffn")))
    return linear.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:-1].numel()))


@pytest.mark.parametrize(("method", "options"), [*((method, {}) for method in METHODS), *VARIANTS])
@pytest.mark.parametrize("architecture", ENCODERS)
def test_the_same_loss_and_gradients_without_padding(tiny, architecture, method, options):
    model, batch, seen = prepared(tiny, architecture, method, **options), padded(), []
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = outcome(model, batch)
    watch(model, seen)
    random = torch.random.get_rng_state()
    with real_tokens_only(model) as packed:
        assert packed
        assert torch.equal(torch.random.get_rng_state(), random)
        seen.clear()
        found = outcome(model, batch)
    assert seen[0] == sum(LENGTHS) + (4 * 20 if method == "prompt_tuning" else 0)
    same(found, expected)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(outcome(model, batch)[1], expected[1]), "outside, all is as ever"


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ENCODERS)
def test_every_head_and_attention(tiny, architecture, attention, head):
    model, batch = prepared(tiny, architecture, "lora", head), padded(head)
    model.set_attn_implementation(attention)
    expected = outcome(model, batch)
    with real_tokens_only(model) as packed:
        assert packed
        same(outcome(model, batch), expected)
    assert model.config._attn_implementation == attention
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {attention}


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("method", ["lora", "prefix", "bottleneck"])
def test_together_with_the_first_token_of_the_last_layer(tiny, architecture, method):
    model, batch = prepared(tiny, architecture, method), padded()
    expected, seen = outcome(model, batch), []
    layer = next(m for name, m in model.named_modules() if name.endswith("encoder.layer.1"))
    layer.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[:2])))
    with real_tokens_only(model) as packed, first_token_only(model) as narrow:
        assert packed
        assert narrow
        seen.clear()
        same(outcome(model, batch), expected)
    assert seen == [(1, len(LENGTHS))]


def test_several_choices_a_row(tiny):
    model, batch = prepared(tiny, "bert", "lora", "MultipleChoice"), padded()
    choices = {name: batch[name].view(2, 2, -1) for name in ("input_ids", "attention_mask")}
    choices["labels"] = torch.tensor([0, 1])
    expected = outcome(model, choices)
    with real_tokens_only(model) as packed:
        assert packed
        same(outcome(model, choices), expected)


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_under_gradient_checkpointing_each_batch_has_its_own_padding(tiny, architecture):
    model, first = prepared(tiny, architecture, "lora").train(), padded()
    second = {name: tensor.flip(0) for name, tensor in first.items()}
    second["attention_mask"] = second["attention_mask"].roll(1, 0)
    expected = [outcome(model, batch) for batch in (first, second)]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with real_tokens_only(model) as packed:
        assert packed
        losses = [model(**batch).loss for batch in (first, second)]
        for loss, known in zip(losses, expected, strict=True):  # recomputed when both have been through
            trained = [p for name, p in model.named_parameters() if name in known[2]]
            gradients = dict(zip(known[2], torch.autograd.grad(loss, trained), strict=True))
            same((loss, known[1], gradients), known)


def test_under_autocast(tiny):
    model, batch = prepared(tiny, "bert", "lora"), padded()
    with torch.autocast("cpu", torch.bfloat16):
        expected = outcome(model, batch)
        with real_tokens_only(model) as packed:
            assert packed
            found = outcome(model, batch)
    torch.testing.assert_close(found[1].float(), expected[1].float(), rtol=2e-2, atol=2e-2)


def places(model, batch, **options):
    seen = []
    handle = watch(model, seen)
    with torch.no_grad():
        outputs = model(**batch, **options)
    handle.remove()
    return seen[0], outputs


def test_batches_that_stay_as_they_are(tiny):
    model = prepared(tiny, "bert", "lora")
    rows, whole = padded(), padded()["input_ids"].numel()
    left = {name: tensor.flip(1) if tensor.dim() > 1 else tensor for name, tensor in rows.items()}
    full = rows | {"attention_mask": torch.ones_like(rows["attention_mask"])}
    little = rows | {"attention_mask": torch.ones_like(rows["attention_mask"])}
    little["attention_mask"][0, -2:] = 0
    block = torch.ones(10, 10).tril().bool().expand(4, 1, 10, 10)  # each token sees something else
    with real_tokens_only(model) as packed:
        assert packed
        assert places(model, rows)[0] == sum(LENGTHS)
        for batch in (left, full, little, rows | {"attention_mask": block}):
            expected = model(**batch).logits
            count, outputs = places(model, batch)
            assert count == whole
            assert torch.equal(outputs.logits, expected)
        count, outputs = places(model, rows, output_hidden_states=True)
        assert count == whole
        assert {states.shape[:2] for states in outputs.hidden_states} == {(4, 10)}
        assert places(model, rows)[0] == sum(LENGTHS)


@pytest.mark.parametrize("architecture", [*DECODERS, "deberta-v2", "modernbert", "t5", "bart", "invented"])
def test_where_it_cant_be_done_nothing_changes(tiny, architecture):
    model, batch = prepared(tiny, architecture, "lora"), padded()
    batch["input_ids"][:, -1], batch["attention_mask"][:, -1] = 2, 1  # T5 and BART classify by the end of the text
    expected = outcome(model, batch)[1]
    with real_tokens_only(model) as packed:
        assert not packed
        assert torch.equal(outcome(model, batch)[1], expected)


def test_answers_are_weighed_against_padding(tiny):
    with real_tokens_only(prepared(tiny, "bert", "lora", "QuestionAnswering")) as packed:
        assert not packed


def test_packing_is_undone_by_unpacking():
    real = padded()["attention_mask"].bool()
    packing = Packing(real)
    states = torch.randn(*real.shape, 5, dtype=torch.float64, requires_grad=True)
    packed = packing.pack(states)
    assert torch.equal(packed[0], states[real])
    assert torch.equal(packing.unpack(packed)[real], states[real])
    assert torch.autograd.gradcheck(packing.pack, states)
    gradient = torch.autograd.grad((packing.unpack(packed) * real[..., None]).sum(), states)[0]
    assert torch.equal(gradient, real[..., None].expand_as(states).double())


def test_a_run_trains_so(tmp_path, monkeypatch):
    from tiny_workshop import furnish
    from transformers.models.bert.modeling_bert import BertIntermediate

    seen, plain = [], BertIntermediate.forward

    def watched(self, states):
        seen.append((self.training, tuple(states.shape[:2])))
        return plain(self, states)

    monkeypatch.chdir(furnish(tmp_path))
    monkeypatch.setattr(BertIntermediate, "forward", watched)
    adapterlab.run("tiny.yaml", "optim.epochs=1", "log.plot=false")
    assert any(shape[0] == 1 and shape[1] > 8 for training, shape in seen if training)


def test_other_loops_train_so_too(tiny):
    from adapterlab.errors import BackboneError

    model, batch = prepared(tiny, "bert", "lora"), padded()
    expected = outcome(model, batch)
    with adapterlab.lean(model):
        assert places(model, batch)[0] == sum(LENGTHS)
        same(outcome(model, batch), expected)
    assert places(model, batch)[0] == batch["input_ids"].numel()
    with pytest.raises(BackboneError, match=r"Linear\."), adapterlab.lean(torch.nn.Linear(2, 2)):
        pass


def test_every_module_keeps_its_own_mode(tiny):
    model = prepared(tiny, "bert", "lora").train()
    model.bert.eval()
    before = [module.training for module in model.modules()]
    with adapterlab.lean(model):
        assert [module.training for module in model.modules()] == before
    assert [module.training for module in model.modules()] == before


def test_a_prefix_may_be_switched_and_taken_out_inside(tiny, batch, logits):
    model = prepared(tiny, "bert", "prefix")
    expected, state = logits(model), tiny("bert").state_dict()
    with adapterlab.lean(model):
        torch.testing.assert_close(logits(model), expected)
        with adapterlab.disabled(model):
            torch.testing.assert_close(logits(model), logits(tiny("bert")))
        torch.testing.assert_close(logits(model), expected)
    torch.testing.assert_close(logits(model), expected)
    with adapterlab.lean(model):
        adapterlab.detach(model)
    torch.testing.assert_close(logits(model), logits(tiny("bert")))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_blocks_within_blocks_copies_and_files(tiny, batch, logits, tmp_path):
    model = prepared(tiny, "bert", "lora")
    expected = logits(model)
    with adapterlab.lean(model):
        twin = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        with adapterlab.lean(model), adapterlab.lean(twin):
            torch.testing.assert_close(logits(model), expected)
            torch.testing.assert_close(logits(twin), expected)
        torch.testing.assert_close(logits(model), expected)
    for other in (model, twin, torch.load(tmp_path / "model.pt", weights_only=False)):
        torch.testing.assert_close(logits(other), expected)
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not any(getattr(module, each) for module in model.bert.encoder.modules() for each in hooks)


def test_a_backbone_that_wants_other_lengths_is_left_as_it_is(tiny, batch, logits):
    model = tiny("bert")
    for module in model.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 5
    adapterlab.attach(model, "lora")
    expected = logits(model)
    with adapterlab.lean(model):
        torch.testing.assert_close(logits(model), expected)


def test_in_bf16_too_what_is_within_its_rounding_is_the_same(tiny):
    model = prepared(tiny, "bert", "lora").to(torch.bfloat16)
    with real_tokens_only(model) as packed, first_token_only(model) as narrow:
        assert packed
        assert narrow


def test_a_model_that_is_to_be_sharded_is_left_whole(tiny, monkeypatch):
    model, batch = prepared(tiny, "bert", "lora"), padded()
    every = batch["input_ids"].numel()
    with adapterlab.lean(model):
        assert places(model, batch)[0] < every
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with adapterlab.lean(model):
        assert places(model, batch)[0] == every
