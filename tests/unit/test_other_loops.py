"""Adapters inside other people's training loops: transformers.Trainer, accelerate, a plain loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import transformers
from conftest import VOCABULARY
from datasets import Dataset
from safetensors.torch import load_file

import adapterlab

METHODS = {
    "lora": {},
    "adalora": {"target_r": 4},
    "prefix": {"num_virtual_tokens": 4, "prefix_projection": True},
    "bottleneck": {"variant": "houlsby"},
}


@pytest.fixture
def rows():
    ids = torch.randint(3, VOCABULARY, (48, 8), generator=torch.Generator().manual_seed(4))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids[:, 0] % 3).tolist()})


def trainer_for(model, rows, folder, **options):
    settings = {
        "per_device_train_batch_size": 8, "num_train_epochs": 3, "learning_rate": 2e-2, "eval_strategy": "epoch",
        "save_strategy": "epoch", "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no",
    }  # fmt: skip
    arguments = transformers.TrainingArguments(str(folder), **(settings | options))
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows.select(range(16)))


@pytest.fixture(params=METHODS)
def make(request, tiny):
    def build(architecture="bert"):
        transformers.set_seed(7)
        return adapterlab.attach(tiny(architecture), request.param, **METHODS[request.param])

    build.method = request.param
    return build


def test_checkpoints_hold_the_adapter_not_the_backbone(make, rows, tmp_path, logits):
    model = make()
    trainer = trainer_for(model, rows, tmp_path, num_train_epochs=1)
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    [checkpoint] = tmp_path.glob("checkpoint-*")
    plain = adapterlab.detach(copy.deepcopy(model))
    backbone = {name for name in plain.state_dict() if "classifier" not in name}
    assert (checkpoint / "adapter_config.json").is_file()
    for file in checkpoint.glob("*.safetensors"):
        names = {name.removeprefix("base_model.").removeprefix("model.") for name in load_file(file)}
        assert names, file
        assert not names & backbone, file
    reloaded = adapterlab.load(plain, checkpoint)
    assert torch.equal(logits(reloaded), logits(model))


def test_resume_gives_what_one_run_gives(make, rows, tmp_path):
    whole = make()
    trainer_for(whole, rows, tmp_path).train()
    resumed = make()
    transformers.set_seed(99)
    trainer_for(resumed, rows, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    expected, actual = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_the_best_model_comes_back(make, rows, tmp_path, logits):
    """With the highest loss called best it is an early state, not the last one, that must be there at the end."""
    model = make()
    options = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = trainer_for(model, rows, tmp_path, **options)
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert losses[-1] < max(losses), "the test needs a run whose last state isn't the one called best"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), rel=1e-4)


def test_save_pretrained_writes_the_adapter_folder(make, tmp_path, logits):
    model = make()
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "adapterlab.json",
    }  # fmt: skip
    adapterlab.detach(model)
    model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").is_file()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_adalora_needs_no_line_of_its_own_in_the_trainer(tiny, rows, tmp_path, accumulate):
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=2, init_r=5)
    trainer_for(model, rows, tmp_path, num_train_epochs=4, gradient_accumulation_steps=accumulate).train()
    singular_values = [p for name, p in model.named_parameters() if ".lora_E." in name]
    alive = sum(int((values != 0).sum()) for values in singular_values)
    assert alive == 2 * len(singular_values), "exactly target_r per matrix must be left"


def test_adalora_under_accelerate(tiny, rows):
    from accelerate import Accelerator

    model = adapterlab.attach(tiny("bert"), "adalora", target_r=2, init_r=5, total_step=12)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = torch.utils.data.DataLoader(rows.with_format("torch"), batch_size=4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = 0
    model.train()
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                optimizer.step()
                optimizer.zero_grad()
                steps += accelerator.sync_gradients
    assert steps == 12
    singular_values = [p for name, p in model.named_parameters() if ".lora_E." in name]
    assert sum(int((values != 0).sum()) for values in singular_values) == 2 * len(singular_values)


def test_adalora_in_a_plain_loop_wants_to_know_its_length(tiny, train):
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=2, init_r=5)
    with pytest.raises(adapterlab.AdapterLabError, match=r"set_total_step\(model, N\)"):
        train(model, steps=1)
    adapterlab.set_total_step(model, 8)
    train(model, steps=8)
    singular_values = [p for name, p in model.named_parameters() if ".lora_E." in name]
    assert sum(int((values != 0).sum()) for values in singular_values) == 2 * len(singular_values)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_adalora_keeps_its_vectors_orthogonal_whoever_computes_the_loss(tiny, batch, weight):
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=3, total_step=60, orth_reg_weight=weight)
    with adapterlab.disabled(model):
        plain = model.eval()(**batch).loss
    torch.testing.assert_close(model.eval()(**batch).loss, plain)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    model.train()
    for _ in range(60):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    off = [
        torch.linalg.norm(q @ q.T - torch.eye(len(q))).item()
        for name, q in model.named_parameters() if ".lora_A." in name
    ]  # fmt: skip
    assert (max(off) < 0.5) == (weight > 0)


def test_adalora_gradient_of_the_orthogonality_term(tiny):
    """The closed form against autograd's gradient of gamma times the mean norm over all P and Q."""
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=2, total_step=9, orth_reg_weight=0.3)
    from conftest import randomize

    randomize(model)
    pq = [p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name]
    norms = [torch.linalg.norm((w @ w.T if w.shape[0] < w.shape[1] else w.T @ w) - torch.eye(min(w.shape))) for w in pq]
    expected = torch.autograd.grad(0.3 * torch.stack(norms).mean(), pq)
    optimizer = torch.optim.SGD(pq, lr=0.0)
    for p in pq:
        p.grad = torch.zeros_like(p)
    model.train()(input_ids=torch.ones(1, 4, dtype=torch.long))
    optimizer.step()
    for p, gradient in zip(pq, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_a_schedule_that_cannot_fit(tiny):
    with pytest.raises(adapterlab.AdapterLabError, match="tinit 6 \\+ tfinal 5 = 11 of 10 steps"):
        adapterlab.attach(tiny("bert"), "adalora", total_step=10, tinit=6, tfinal=5)


def test_autocast_and_bf16_backbones(tiny, batch):
    for method, options in METHODS.items():
        model = adapterlab.attach(tiny("bert").bfloat16(), method, **options)
        own = {p.dtype for p in model.parameters() if p.requires_grad}
        assert own == {torch.float32}, f"{method}: adapters stay in fp32"
        for autocast in (True, False):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                model(**batch).loss.backward()
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad), method


def test_adalora_keeps_its_budget_when_an_early_state_was_best(tiny, rows, tmp_path):
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=2, init_r=5)
    options = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer_for(model, rows, tmp_path, **options).train()
    singular_values = [p for name, p in model.named_parameters() if ".lora_E." in name]
    assert sum(int((values != 0).sum()) for values in singular_values) <= 2 * len(singular_values)


def test_several_active_adapters_resume_and_come_back(tiny, rows, tmp_path):
    def build():
        transformers.set_seed(7)
        model = adapterlab.attach(tiny("bert"), "lora", "a")
        adapterlab.attach(model, "bottleneck", "b")
        return adapterlab.activate(model, ["a", "b"])

    options = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    whole = build()
    trainer = trainer_for(whole, rows, tmp_path, **options)
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), rel=1e-4)
    assert (tmp_path / "checkpoint-6" / "b" / "adapter_config.json").is_file()
    resumed = build()
    trainer_for(resumed, rows, tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert all(torch.equal(whole.state_dict()[name], tensor) for name, tensor in resumed.state_dict().items())
