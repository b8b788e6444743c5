"""The table: every method on every architecture. What a user may rely on whatever the combination.

So that it takes minutes, `torch.compile`, variants and peft's methods stay on a few architectures (and are attached
everywhere, for the docs); `pytest --every-cell` leaves nothing out.

`docs/methods.md` has the same table for readers; the last test here writes it.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, DECODERS, randomize

import adapterlab

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
INFO = {info.name: info for info in adapterlab.methods()}
# case: method and options; methods that aren't here are taken as they come
OWN = {
    "lora": ("lora", {"r": 4}),
    "lora, DoRA": ("lora", {"r": 4, "use_dora": True}),
    "lora, PiSSA": ("lora", {"r": 4, "init": "pissa"}),
    "adalora": ("adalora", {"target_r": 2, "init_r": 3, "total_step": 10}),
    "prefix": ("prefix", {"num_virtual_tokens": 5}),
    "prefix, MLP": ("prefix", {"num_virtual_tokens": 5, "prefix_projection": True}),
    "prefix, positions kept": ("prefix", {"num_virtual_tokens": 5, "preserve_positions": True}),
    "bottleneck, pfeiffer": ("bottleneck", {"variant": "pfeiffer", "reduction_factor": 4}),
    "bottleneck, houlsby": ("bottleneck", {"variant": "houlsby", "reduction_factor": 4}),
    "bottleneck, parallel": ("bottleneck", {"variant": "parallel"}),
    "bottleneck, scaled parallel": ("bottleneck", {"variant": "scaled_parallel"}),
    "prompt": ("prompt", {"num_virtual_tokens": 5}),
    "p_tuning": ("p_tuning", {"num_virtual_tokens": 5}),
    "full": ("full", {}),
}
VARIANTS = ("lora, DoRA", "lora, PiSSA", "prefix, positions kept", "bottleneck, scaled parallel")  # of a method above
FEW = ("bert", "gpt2", "llama")  # where variants and peft's methods go through everything
SAMPLES = ("pvera",)  # peft draws noise in each training step
UNCACHED = ("lily",)  # peft's router averages over all tokens of a batch, so what is cached would be another answer
MERGES_INTO_BIASES = ("beft",)  # and so not where a linear has none
CASES = OWN | {name: (name, {}) for name in INFO if name not in {method for method, _ in OWN.values()}}


def attach(model, case, **more):
    method, options = CASES[case]
    return adapterlab.attach(model, method, **options, **more)


def attach_or_refusal(model, case):
    """Attach in place; return the words in which it was refused, if it was."""
    try:
        assert attach(model, case) is model
    except adapterlab.AdapterLabError as refusal:
        return " ".join(str(refusal).split())
    return None


def tensors_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def is_as_it_was(model, state, trainable):
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert not any(hook for module in model.modules() for hook in (module._forward_hooks, module._forward_pre_hooks))
    assert adapterlab.summary(model).adapters == ()


def has_biases(model):
    linears = [m.get_base_layer() for m in model.modules() if hasattr(m, "get_base_layer")]
    return all(linear.bias is not None for linear in linears)


def loss_of(model, batch):
    model.eval()
    with torch.no_grad():
        return model(**batch).loss.item()


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for rate in ("dropout", "attention_dropout", "activation_dropout", "dropout_prob"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)


@pytest.fixture
def every_cell(request):
    """Whether nothing is left out: peft's methods go through everything everywhere, and everything is compiled."""
    return request.config.getoption("--every-cell")


def pytest_generate_tests(metafunc):
    """Give each test its cells of the table."""
    if "architecture" not in metafunc.fixturenames:
        return
    everything = metafunc.config.getoption("--every-cell")
    among = DECODERS if metafunc.function is test_generate else CONFIGS
    cells = [(a, c) for a in among for c in CASES if everything or a in FEW or (c in OWN and c not in VARIANTS)]
    metafunc.parametrize(("architecture", "case"), cells)


def test_cell(tiny, batch, logits, train, tmp_path, every_cell, architecture, case):
    torch.manual_seed(0)  # an adapter's first values and the dropout, whichever tests ran before
    model = tiny(architecture)
    state, backbone, kind = tensors_of(model), logits(model), type(model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    refusal = attach_or_refusal(model, case)
    if refusal:
        assert len(refusal) > 40, "a refusal says why"
        assert case.split(",")[0] not in ("lora", "adalora"), "these work wherever there is a linear"
        is_as_it_was(model, state, trainable)
        return
    assert type(model) is kind

    # what is trained is the adapter and the head, and nothing else changes
    heads = {"classifier", "pre_classifier", "score", "head", "pooler", "classification_head", "verdict"}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained & state.keys()} <= heads
    assert trained - state.keys()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = loss_of(model, batch)
    train(model, steps=10)
    assert loss_of(model, batch) < before
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert not torch.equal(logits(model), backbone)
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)

    # with random weights, since many an adapter begins as nothing
    randomize(model, std=0.1 if case in OWN else 0.05)  # some of peft's amplify what they are given
    output = logits(model)
    folder = adapterlab.save(model, tmp_path / "adapter")
    files = {file.name for file in folder.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "adapterlab.json"}
    again = adapterlab.load(tiny(architecture), folder)
    torch.testing.assert_close(logits(again), output, rtol=1e-6, atol=2e-6)
    twin, merged = copy.deepcopy(model), copy.deepcopy(model)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    if (case in OWN and architecture in FEW) or architecture == "bert" or every_cell:
        torch._dynamo.reset()
        with torch.no_grad():
            compiled = torch.compile(model, backend="eager")(**inputs).logits
        torch.testing.assert_close(compiled, output, rtol=0, atol=1e-5)

    adapterlab.detach(model)
    is_as_it_was(model, state, trainable)
    assert torch.equal(logits(model), backbone)
    assert torch.equal(logits(twin), output), "a copy shares nothing with its original"

    if case in MERGES_INTO_BIASES and not has_biases(merged):
        with pytest.raises(adapterlab.AdapterLabError, match="failed and was undone"):
            adapterlab.merge(merged)
        assert torch.equal(logits(merged), output)
    elif INFO[CASES[case][0]].merges:
        adapterlab.merge(merged)
        near = 1e-5 * max(1.0, float(output.abs().max()))
        torch.testing.assert_close(logits(merged), output, rtol=0, atol=near)
        assert merged.state_dict().keys() == state.keys()
        merged.save_pretrained(tmp_path / "merged")
        assert torch.equal(logits(kind.from_pretrained(tmp_path / "merged")), logits(merged))
    else:
        with pytest.raises(adapterlab.AdapterLabError, match="can't be merged"):
            adapterlab.merge(merged)


def test_checkpointing_and_bf16(tiny, batch, architecture, case):
    model = tiny(architecture)
    if attach_or_refusal(model, case):
        return  # what is refused, the cell's own test has looked at
    randomize(model, std=0.1)
    without_dropout(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = []
    for checkpointing in (False, True) if model.supports_gradient_checkpointing else (False,):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in trained.items()})
    assert all(gradient is not None for gradient in gradients[0].values())
    # rounding is that of the largest gradients, out of which the small ones come as differences
    near = 1e-4 * max(float(gradient.abs().max()) for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        if case not in SAMPLES:
            torch.testing.assert_close(gradients[-1][name], gradient, rtol=1e-3, atol=max(near, 1e-6), msg=name)

    # a bf16 backbone keeps fp32 adapters; a model may also be cast with its adapters, where they are ours
    host = attach(tiny(architecture).to(torch.bfloat16), case)
    assert {p.dtype for p in host.parameters() if p.requires_grad} == {torch.float32}
    for other in (host, model.to(torch.bfloat16)) if case in OWN else (host,):
        loss = other.train()(**batch).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in other.parameters() if p.grad is not None)


def test_generate(tiny, batch, architecture, case):
    model = tiny(architecture, "CausalLM")
    prompt = {key: batch[key][1:, :-1] for key in ("input_ids", "attention_mask")}
    plain = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    if attach_or_refusal(model, case):
        return
    randomize(model)
    cached = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    uncached = model.generate(**prompt, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, uncached) or case in UNCACHED
    assert not torch.equal(cached, plain) or case not in OWN, "of peft's methods some change too little for that"
    with adapterlab.disabled(model):
        assert torch.equal(model.generate(**prompt, max_new_tokens=6, do_sample=False), plain)


def matrix(tiny):
    """The table in Markdown: a dot for a cell that works, a note for one that is refused."""
    notes: dict[str, int] = {}
    lines = [f"| method | {' | '.join(CONFIGS)} | merges |", "|---" * (len(CONFIGS) + 2) + "|"]
    for case, (method, _) in CASES.items():
        cells = []
        for architecture in CONFIGS:
            refusal = attach_or_refusal(tiny(architecture), case)
            note = (refusal or "").replace(f"'{method}'", "METHOD").replace("These methods can:", "\n").split("\n")[0]
            cells.append(f"[{notes.setdefault(note.strip(), len(notes) + 1)}]" if refusal else "●")
        lines.append(f"| {case} | {' | '.join(cells)} | {'yes' if INFO[method].merges else ''} |")
    explained = [f"{number}. {text}" for text, number in notes.items()]
    about = (
        "# Methods and architectures\n\nWritten by `tests/unit/test_methods.py`, which tries the cells: training, save "
        "and load, merge, detach, copies, casts,\ngradient checkpointing, `torch.compile` and `generate`. ● works; a "
        "number means that `attach` refuses, with the message below.\nAn architecture that isn't here is read by its "
        "shape, like `invented`.\n"
    )
    return "\n".join([about, *lines, "", "Refusals:", "", *explained, ""])


def test_the_documented_table_is_the_real_one(tiny):
    found = matrix(tiny)
    known = DOCS.read_text("utf-8") if DOCS.exists() else ""
    if found != known:
        DOCS.parent.mkdir(exist_ok=True)
        DOCS.write_text(found, "utf-8")
    assert found == known, f"{DOCS.name} was out of date and is written anew: look at the difference and commit it"
