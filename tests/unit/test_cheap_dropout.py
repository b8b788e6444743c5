"""Dropout by bytes: rate, mean and variance are dropout's, masks are independent, gradients go where values go."""

from __future__ import annotations

import pytest
import torch
from conftest import randomize
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import adapterlab
from adapterlab.kernels.attention import attention
from adapterlab.kernels.dropout import dropout
from adapterlab.speed.cheap_dropout import cheap_dropout


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_the_rate_is_p_and_every_masks_mean_is_one(p):
    torch.manual_seed(0)
    drawn = [dropout(torch.ones(20_000, dtype=torch.float64), p) for _ in range(200)]
    rate = torch.stack([(values == 0).double().mean() for values in drawn]).mean()
    assert abs(rate - p) < 4 * (p * (1 - p) / (200 * 20_000)) ** 0.5 + 4 / 256 / 2 / 200**0.5
    means = torch.stack([values.mean() for values in drawn])
    assert abs(means.mean() - 1) < 4 * (p / (1 - p) / (200 * 20_000)) ** 0.5
    variance = torch.stack([values.var() for values in drawn]).mean()
    assert variance == pytest.approx(p / (1 - p), rel=0.05, abs=0.002)


def test_masks_are_independent_of_each_other_and_of_their_neighbours():
    torch.manual_seed(0)
    masks = torch.stack([dropout(torch.ones(64, 512), 0.3).flatten() for _ in range(40)])
    standard = (masks - masks.mean()) / masks.std()
    between = standard @ standard.T / standard.shape[1]
    noise = 5 / standard.shape[1] ** 0.5
    assert between.fill_diagonal_(0).abs().max() < noise
    for lag in (1, 2, 4, 7, 8, 16, 64, 512):
        assert abs(float((standard[:, lag:] * standard[:, :-lag]).mean())) < 5 / standard.numel() ** 0.5, lag
    places = standard.mean(0)
    assert abs(float(places.var()) * len(masks) - 1) < 0.1, "each place is dropped as often as any other"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_go_where_values_go(dtype):
    torch.manual_seed(0)
    x = torch.randn(7, 33, dtype=dtype).T.requires_grad_()  # not contiguous
    y = dropout(x, 0.4)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    kept = y != 0
    assert 0 < int(kept.sum()) < kept.numel()
    assert torch.equal(gradient != 0, kept)
    torch.testing.assert_close(y[kept], (x * gradient)[kept])
    assert gradient[kept].unique().numel() == 1


def test_at_the_ends():
    x = torch.randn(50)
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 1.0), torch.zeros_like(x))


def test_torchs_seed_and_checkpoints_draw_the_same_again():
    x = torch.randn(40, 40, requires_grad=True)
    torch.manual_seed(3)
    one = dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), one)
    y = checkpoint(lambda x: dropout(dropout(x, 0.5), 0.5), x, use_reentrant=False)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient != 0, y != 0)


def are_alike(found, expected, inputs):
    """Whether two computations give the same, and the same gradients."""
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for one, other in zip(*(torch.autograd.grad(out, inputs, upstream) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_attention_is_torchs_on_average(kind):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=generator, requires_grad=True) for _ in range(3))
    real = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None].expand(2, 1, 5, 5)
    mask = {"none": None, "bool": real, "float": torch.zeros(2, 1, 5, 5).masked_fill(~real, -1e9)}[kind]
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    found = attention(query, key, value, mask, 0.3, 0.0)
    are_alike(found, expected, (query, key, value))
    torch.manual_seed(0)
    many = torch.stack([attention(query, key, value, mask, 0.3, 0.2).detach() for _ in range(3000)])
    theirs = torch.stack([F.scaled_dot_product_attention(query, key, value, mask, 0.2, scale=0.3) for _ in range(3000)])
    torch.testing.assert_close(many.mean(0), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(many.std(0), theirs.std(0).detach(), rtol=0.15, atol=0.01)


@pytest.mark.parametrize("masked", ["none", "all heads", "each head"])
def test_attention_that_is_cut_into_heads_is_the_same(masked):
    generator = torch.Generator().manual_seed(0)
    sizes = (2, 5, 600, 4), (2, 5, 400, 4), (2, 5, 400, 4)  # too many scores for one piece
    query, key, value = (torch.randn(size, generator=generator, requires_grad=True) for size in sizes)
    real = torch.rand(2, 5 if masked == "each head" else 1, 1, 400, generator=generator) < 0.7
    mask = None if masked == "none" else real
    found = attention(query, key, value, mask, 0.5, 0.0)
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.5)
    are_alike(found, expected, (query, key, value))


def test_attentions_gradients_are_those_of_what_was_dropped():
    def drawn_alike(*inputs):
        torch.manual_seed(0)
        return attention(*inputs, None, 0.7, 0.3)

    inputs = [torch.randn(2, 3, size, 4, dtype=torch.float64, requires_grad=True) for size in (4, 5, 5)]
    assert torch.autograd.gradcheck(drawn_alike, inputs)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_model_drops_so_while_it_trains(tiny, batch, architecture):
    model = adapterlab.attach(tiny(architecture), "lora", dropout=0.0)
    randomize(model, std=0.1)
    expected = model(**batch).logits
    with cheap_dropout(model) as count:
        assert count > 3
        assert torch.equal(model(**batch).logits, expected), "in eval nothing is dropped"
        with torch.random.fork_rng():
            model.train()
            torch.manual_seed(1)
            one, plain = model(**batch).loss, model.eval()(**batch).loss
            torch.manual_seed(1)
            again = model.train()(**batch).loss
        assert torch.equal(one, again)
        assert not torch.equal(one, plain)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_lean_has_attention_drop_so_too(tiny, batch, monkeypatch):
    from adapterlab.kernels import attention as module

    model, seen = adapterlab.attach(tiny("bert"), "lora").train(), []
    monkeypatch.setattr(module, "attention", lambda *args: seen.append(args) or attention(*args))
    with adapterlab.lean(model, byte_dropout=False):
        model(**batch).loss.backward()
        assert not seen, "torch's draws are asked for"
    with adapterlab.lean(model):
        model(**batch).loss.backward()
        assert len(seen) == 2, "one for each layer"
        model.eval()(**batch)
    assert len(seen) == 2


def test_a_recipe_does_so_unless_it_wants_torchs_draws(tmp_path, monkeypatch):
    from tiny_workshop import furnish

    from adapterlab.kernels import attention as module

    seen = []
    monkeypatch.chdir(furnish(tmp_path))
    monkeypatch.setattr(module, "attention", lambda *args: seen.append(args) or attention(*args))
    for asked in (["optim.byte_dropout=false"], []):
        assert not seen
        adapterlab.run("tiny.yaml", "optim.epochs=1", "log.plot=false", f"run.dir=run{len(asked)}", *asked)
    assert len(seen) >= 2 * 5, "in each of two layers, for each batch"
