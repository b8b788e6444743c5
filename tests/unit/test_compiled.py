"""Layers compiled for training: the same loss and gradients, nothing anew for another length, and no trace after."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import prepared
from safetensors.torch import load_file
from tiny_workshop import furnish
from torch._dynamo.testing import CompileCounterWithBackend

import adapterlab
from adapterlab.guests import need_guests
from adapterlab.speed import compiled as module
from adapterlab.speed.compiled import check_compiler, compiled
from adapterlab.training.callbacks import Narrator

SHAPES = ((4, 10), (4, 13), (2, 7))


def rows(count, length):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, 97, (count, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(count) % 3}


def training(tiny, architecture, method, **options):
    model = prepared(tiny, architecture, method, **options).train()
    model.config.use_cache = False  # as Trainer has it
    return model


def gradients(model, batch, amount=torch.float32):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=amount is torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_near(found, expected, near=1e-5):
    assert found.keys() == expected.keys()
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=near, atol=near * largest, msg=name)


@pytest.mark.parametrize(
    ("architecture", "method"), [("bert", "lora"), ("bert", "prefix"), ("bert", "bottleneck"), ("gpt2", "lora")]
)
def test_the_same_loss_and_gradients_at_any_length(tiny, architecture, method):
    model = training(tiny, architecture, method)
    plain, names = copy.deepcopy(model), list(model.state_dict())
    counter = CompileCounterWithBackend("aot_eager")
    with compiled(model, backend=counter):
        assert list(model.state_dict()) == names
        for number, shape in enumerate(SHAPES):
            assert_near(gradients(model, rows(*shape)), gradients(plain, rows(*shape)))
            if number == 0:
                compiled_once = counter.frame_count
                assert compiled_once > 0
        assert counter.frame_count == compiled_once, "another length, or fewer rows, compile nothing"
        with torch.no_grad():
            evaluated = model.eval()(**rows(4, 11)).logits
        torch.testing.assert_close(evaluated, plain.eval()(**rows(4, 11)).logits, rtol=1e-5, atol=1e-5)
    assert all(part._compiled_call_impl is None for part in model.modules())
    done = counter.frame_count
    assert_near(gradients(model.train(), rows(4, 10)), gradients(plain.train(), rows(4, 10)))
    assert counter.frame_count == done, "outside nothing is compiled"


def test_deep_models_share_what_is_compiled(tiny):
    from transformers import BertConfig, BertForSequenceClassification

    counts = []
    for layers in (3, 12):
        sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 97}
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers, num_labels=3, **sizes))
        counter = CompileCounterWithBackend("eager")
        adapterlab.attach(model.train(), "lora", dropout=0.1)
        with compiled(model, backend=counter):
            gradients(model, rows(4, 10))
        counts.append(counter.frame_count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("amount", [torch.float32, torch.bfloat16])
def test_with_checkpointing_and_autocast(tiny, amount):
    model = training(tiny, "bert", "lora")
    plain = copy.deepcopy(model)
    for host in (model, plain):
        host.gradient_checkpointing_enable({"use_reentrant": False})
    with compiled(model, backend="aot_eager"):
        found = gradients(model, rows(4, 10), amount)
    assert_near(found, gradients(plain, rows(4, 10), amount), 1e-5 if amount is torch.float32 else 5e-2)


def test_dropout_drops_and_rests_in_eval(tiny):
    model = training(tiny, "bert", "lora", dropout=0.5)
    for name, part in model.named_modules():
        if name.endswith("lora_dropout.default"):
            part.p = 0.5
    with compiled(model, backend="aot_eager"):
        assert len({model(**rows(4, 10)).loss.item() for _ in range(4)}) > 1
        model.eval()
        assert len({model(**rows(4, 10)).loss.item() for _ in range(4)}) == 1


def test_after_an_error_nothing_is_compiled(tiny):
    model = training(tiny, "bert", "lora")
    with pytest.raises(ValueError, match="mine"), compiled(model, backend="aot_eager"):
        raise ValueError("mine")
    assert all(part._compiled_call_impl is None for part in model.modules())


def test_a_run_trains_compiled_and_saves_what_others_read(tmp_path, monkeypatch):
    monkeypatch.chdir(furnish(tmp_path))
    seen = set()

    def look(self, args, state, control, model=None, **_):
        layers = [model.get_submodule(path) for path in need_guests(model).backbone.layers]
        seen.update(layer._compiled_call_impl is not None for layer in layers)

    def quick(model, when=True, compile_layers=module.compiled, **options):
        return compile_layers(model, when, backend="aot_eager", **options)

    monkeypatch.setattr(Narrator, "on_step_end", look)
    monkeypatch.setattr("adapterlab.preparing.compiled", quick)
    monkeypatch.setattr("adapterlab.preparing.check_compiler", lambda device: None)
    options = ("optim.epochs=2", "log.plot=false", "model.name=still")
    from transformers import BertModel

    still = BertModel.from_pretrained("model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    still.save_pretrained("still")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "still" / file).write_bytes((tmp_path / "model" / file).read_bytes())
    one = adapterlab.run("tiny.yaml", "run.dir=compiled", "optim.compile=true", *options)
    assert seen == {True}
    two = adapterlab.run("tiny.yaml", "run.dir=plain", *options)
    assert one.metrics == pytest.approx(two.metrics)
    files = [tmp_path / name / "adapter/adapter_model.safetensors" for name in ("compiled", "plain")]
    assert_near(*map(load_file, files), 1e-3)
    from adapterlab.predicting import evaluate

    assert evaluate(tmp_path / "compiled")["accuracy"] == pytest.approx(one.metrics["accuracy"])


def test_without_a_compiler_it_says_what_is_missing(monkeypatch):
    def broken(function):
        def run(*_):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand much more")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(adapterlab.AdapterLabError, match=r"No working C\+\+ compiler found It needs a C\+\+ compiler"):
        check_compiler("cpu")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(adapterlab.AdapterLabError, match=r"optim\.compile: not with FSDP or DeepSpeed"):
        check_compiler("cpu")
