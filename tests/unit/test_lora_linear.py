"""The fast LoRA linear: peft's function and gradients, cheap dropout that is dropout, and where it stands aside."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from conftest import randomize
from peft.tuners.adalora.layer import SVDLinear as PeftSVDLinear
from peft.tuners.lora.layer import Linear as PeftLinear
from torch.utils.checkpoint import checkpoint

import adapterlab
from adapterlab.kernels.lora_linear import lora_linear, reference
from adapterlab.kernels.masks import Mask, shared_mask

ADALORA = {"method": "adalora", "init_r": 4, "target_r": 2, "total_step": 10}


def tensors(*, dtype=torch.float64, rows=(3, 5), bias=True):
    generator = torch.Generator().manual_seed(0)

    def made(*shape, trained=True):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(trained)

    return made(*rows, 8), made(6, 8, trained=False), made(6) if bias else None, made(2, 8), made(6, 2)


def gradients(function, inputs, mask):
    output = function(*inputs, 0.7, mask)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return output, torch.autograd.grad(output, wanted, upstream)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(4,), (3, 5), (2, 3, 2)])
def test_it_is_its_reference(rows, bias, dropout):
    inputs = tensors(rows=rows, bias=bias)
    mask = Mask(inputs[0], dropout) if dropout else None
    for ours, plain in zip(gradients(lora_linear, inputs, mask), gradients(reference, inputs, mask), strict=True):
        for one, other in zip(ours, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_its_gradients_are_those_of_its_function(dropout):
    x, weight, bias, a, b = tensors()
    mask = Mask(x, dropout) if dropout else None

    def function(x, bias, a, b):
        # gradcheck changes x behind autograd's back; a mask that was copied has kept nothing of it
        return lora_linear(x, weight, bias, a, b, 0.7, copy.copy(mask))

    assert torch.autograd.gradcheck(function, (x, bias, a, b))


def test_a_second_derivative_is_refused():
    x, weight, bias, a, b = tensors()
    (first,) = torch.autograd.grad(lora_linear(x, weight, bias, a, b, 1.0).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def pair(tiny, architecture, method="lora", **options):
    """The same model and weights, once as adapterlab runs it and once as peft does."""
    ours = adapterlab.attach(tiny(architecture).double(), method, **options)
    randomize(ours)
    theirs = copy.deepcopy(ours)
    for module in theirs.modules():
        for plain in (PeftLinear, PeftSVDLinear):
            if isinstance(module, plain):
                module.__class__ = plain
    for model in (ours, theirs):
        model.double().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return ours, theirs


def loss_and_gradients(model, batch):
    loss = model(**batch).loss
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return loss, dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@pytest.mark.parametrize("options", [{}, {"layers": [-1]}, {"bias": "all"}, {"use_rslora": True, "r": 3}, ADALORA])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_a_model_trains_as_with_pefts_layers(tiny, batch, architecture, options):
    if architecture == "llama" and "bias" in options:
        pytest.skip("it has no biases")
    ours, theirs = pair(tiny, architecture, **{"dropout": 0.0} | options)
    kind = PeftSVDLinear if "method" in options else PeftLinear
    assert any(type(module) is not kind and isinstance(module, kind) for module in ours.modules())
    (loss, grads), (known, expected) = loss_and_gradients(ours, batch), loss_and_gradients(theirs, batch)
    torch.testing.assert_close(loss, known, rtol=0, atol=1e-10)
    for name, gradient in expected.items():
        torch.testing.assert_close(grads[name], gradient, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_in_bf16_too_the_scale_is_exact_on_average(p):
    x = torch.rand(400, 1000, generator=torch.Generator().manual_seed(2)).bfloat16() + 1
    mask = Mask(x, p)
    kept = mask.values(x.dtype).bool()
    assert (mask.drop(x)[kept].float() / x[kept].float()).mean().item() == pytest.approx(mask.scale, rel=3e-4)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5])
def test_dropout_has_the_mean_and_the_variance_of_dropout(p):
    torch.manual_seed(0)
    x, kept = torch.ones(64, 1000), 1 - p
    draws = torch.stack([Mask(x, p).drop(x) for _ in range(40)])
    assert (draws != 0).float().mean().item() == pytest.approx(kept, abs=1e-3)
    assert draws.mean().item() == pytest.approx(1.0, abs=3e-3)
    assert draws.var().item() == pytest.approx((1 - kept) / kept, rel=0.02, abs=1e-3)
    share_of_places = (draws != 0).float().mean(dim=(0, 1))  # no place is favoured: each has the same chance
    assert (share_of_places - kept).abs().max() < 2e-3 + 6 * (kept * (1 - kept) / (40 * 64)) ** 0.5
    together = ((draws[:, :, :-1] != 0) & (draws[:, :, 1:] != 0)).float().mean().item()
    assert together == pytest.approx(kept**2, abs=5e-3), "neighbours are dropped independently"


def test_masks_come_from_torchs_generator():
    x = torch.ones(7, 9)
    torch.manual_seed(5)
    first, second = Mask(x, 0.3).drop(x), Mask(x, 0.3).drop(x)
    torch.manual_seed(5)
    assert torch.equal(Mask(x, 0.3).drop(x), first)
    assert not torch.equal(first, second)
    mask = Mask(x, 0.3)
    drawn = mask.drop(x)
    Mask(x, 0.3).drop(x)
    assert torch.equal(mask.drop(x), drawn), "backward draws what forward drew"


def test_what_reads_the_same_input_shares_a_mask():
    x, other = torch.ones(4, 8), torch.ones(4, 8)
    mask = shared_mask(x, 0.2)
    assert shared_mask(x, 0.2) is mask
    assert shared_mask(x, 0.3) is not mask
    mask = shared_mask(x, 0.2)
    assert shared_mask(other, 0.2) is not mask
    mask = shared_mask(x, 0.2)
    x.add_(1)
    assert shared_mask(x, 0.2) is not mask, "it isn't the same input any more"


def test_dropout_is_the_same_when_a_checkpoint_computes_it_again():
    x, weight, bias, a, b = tensors()

    def layer(x):
        x = lora_linear(x, weight, bias, a, b, 1.0, shared_mask(x, 0.5))
        return torch.dropout(x, 0.5, True)  # whether the mask was drawn or found decides what is drawn here

    def run(how):
        torch.manual_seed(3)
        return torch.autograd.grad(how(x * 1).square().sum(), (x, a, b))

    expected = run(layer)
    for one, other in zip(run(lambda x: checkpoint(layer, x, use_reentrant=False)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "options", [{"method": "lora"}, {"method": "lora", "target_modules": ["query", "value"]}, ADALORA]
)
def test_a_model_under_checkpointing_learns_what_it_does_without(tiny, batch, options, reentrant, lean):
    """With all kinds of dropout: forward and what backward computes again have to draw the same."""
    model = adapterlab.attach(tiny("bert"), dropout=0.2, **options).train()
    randomize(model, std=0.1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.enable_input_require_grads()

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch).loss.backward()
        return [p.grad.clone() for p in parameters]

    with adapterlab.lean(model) if lean else contextlib.nullcontext():
        expected = gradients()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for one, other in zip(gradients(), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_dropout_trains_and_rests_in_eval(tiny, batch, logits):
    model = adapterlab.attach(tiny("bert"), "lora", dropout=0.5)
    randomize(model)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p != 0.5:
            module.p = 0.0
    torch.manual_seed(0)
    losses = {model(**batch).loss.item() for _ in range(3)}
    assert len(losses) == 3
    assert torch.equal(logits(model), logits(model))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_under_autocast_and_in_bf16(tiny, batch, stored):
    model = adapterlab.attach(tiny("bert").to(stored), "lora", dropout=0.1)
    randomize(model, std=0.05)
    exact = adapterlab.attach(tiny("bert"), "lora", dropout=0.0)
    randomize(exact, std=0.05)
    with torch.autocast("cpu", torch.bfloat16, enabled=stored is torch.float32):
        loss = model.train()(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(exact(**batch).loss.item(), abs=0.3)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.grad.dtype for p in trained} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in trained)


def test_hooks_on_the_linear_itself_are_heard(tiny, batch):
    model = adapterlab.attach(tiny("bert"), "lora")
    heard = []
    linear = model.bert.encoder.layer[0].attention.self.query.base_layer
    linear.register_forward_hook(lambda *_: heard.append(1))
    model.train()(**batch).loss.backward()
    assert heard == [1]


@pytest.mark.parametrize("place", ["base_layer", "lora_A.default", "lora_B.default", "lora_dropout.default"])
def test_hooks_on_the_parts_of_a_layer_are_heard(tiny, batch, place):
    model, heard = adapterlab.attach(tiny("bert"), "lora", dropout=0.1).train(), []
    layer = model.bert.encoder.layer[1].attention.self.query
    layer.get_submodule(place).register_full_backward_pre_hook(lambda *_: heard.append(place))
    model(**batch).loss.backward()
    assert heard == [place]


def test_a_replaced_forward_of_the_linear_is_called(tiny, batch):
    """Accelerate does so with modules whose weights are elsewhere."""
    model, called = adapterlab.attach(tiny("bert"), "lora").train(), []
    linear = model.bert.encoder.layer[0].attention.self.query.base_layer
    forward = linear.forward
    linear.forward = lambda x: called.append(1) or forward(x)
    model(**batch).loss.backward()
    assert called == [1]
    slow = adapterlab.summary(model).adapters[0].slow
    assert slow == "somebody has replaced the linear's forward (1 of 12 linears)"


def test_several_at_once_and_linears_that_are_trained_too(tiny, batch):
    ours = adapterlab.attach(tiny("bert"), "lora", "a", dropout=0.0)
    adapterlab.attach(ours, "lora", "b", dropout=0.0)
    randomize(ours)
    adapterlab.activate(ours, ["a", "b"])
    ours.eval()(**batch).loss.backward()
    assert all(p.grad is not None for name, p in ours.named_parameters() if p.requires_grad and "lora_" in name)
    weight = ours.bert.encoder.layer[1].output.dense.base_layer.weight
    adapterlab.activate(ours, "a")
    weight.requires_grad_(True)
    ours(**batch).loss.backward()
    assert weight.grad.abs().sum() > 0


def test_summary_says_what_is_in_the_way_of_the_fast_one(tiny):
    def told(model):
        return adapterlab.summary(model).adapters[0].slow

    model = adapterlab.attach(tiny("bert"), "lora")
    assert told(model) is None
    assert "fast" not in str(adapterlab.summary(model))
    model.bert.encoder.layer[0].attention.self.query.base_layer.register_forward_hook(lambda *_: None)
    assert told(model) == (
        "somebody has put hooks on the linear itself, or on the adapter's own modules (1 of 12 linears)"
    )
    model = adapterlab.attach(tiny("bert"), "lora", use_dora=True)
    assert "not in the fast way: Dora is more than W + BA (12 of 12 linears)" in str(adapterlab.summary(model))
    model = adapterlab.attach(adapterlab.attach(tiny("bert"), "lora", "a"), "lora", "b")
    adapterlab.activate(model, ["a", "b"])
    assert told(model) == "several adapters are active at once (12 of 12 linears)"
    adapterlab.activate(model, "b")
    assert told(model) is None, "it isn't active"
    assert adapterlab.summary(adapterlab.attach(tiny("bert"), "prefix")).adapters[0].slow is None


@pytest.mark.parametrize(
    ("architecture", "read", "computed"),
    [
        ("bert", "bert.encoder.layer.1.intermediate.dense", "bert.encoder.layer.1.output.dense"),
        ("llama", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"),
    ],
)
def test_what_can_be_computed_again_is_not_kept(tiny, batch, architecture, read, computed):
    """The output of a GELU, the product of a gated FFN. Hooks on what is saved (checkpointing's) aren't disturbed."""
    model = adapterlab.attach(tiny(architecture), "lora", dropout=0.1).train()

    def keeps(path):
        found, storages = set(), set()
        hook = model.get_submodule(path).register_forward_hook(
            lambda module, args, output: found.add(args[0].untyped_storage().data_ptr())
        )
        nodes = [model(**batch).loss.grad_fn]
        hook.remove()
        for node in nodes:
            nodes += [parent for parent, _ in node.next_functions if parent is not None and parent not in nodes]
            storages |= {tensor.untyped_storage().data_ptr() for tensor in getattr(node, "saved_tensors", ())}
        return bool(found & storages)

    assert keeps(read)
    assert not keeps(computed)
    model.gradient_checkpointing_enable()
    model(**batch).loss.backward()
    assert torch.isfinite(model.get_submodule(computed).lora_A["default"].weight.grad).all()


@pytest.mark.parametrize("method", ["lora", "adalora", "bottleneck", "ia3"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_backward_stops_at_the_lowest_adapter(tiny, batch, architecture, method):
    model = adapterlab.attach(tiny(architecture), method, layers=[1]).train()
    states = {}
    for name, module in model.named_modules():
        if name.endswith((".layer.0", ".layer.1", ".h.0", ".h.1")):
            module.register_forward_hook(
                lambda module, args, output, name=name: states.update(
                    {name[-1]: output[0] if isinstance(output, tuple) else output}
                )
            )
    model(**batch).loss.backward()
    assert not states["0"].requires_grad
    assert states["1"].requires_grad
    assert all(p.grad is None for name, p in model.named_parameters() if ".0." in name)
