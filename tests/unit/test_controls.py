"""What a recipe can say of the training itself: rates, decay, schedule, smoothing, checkpointing, loggers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_workshop import furnish

import adapterlab
from adapterlab.errors import ConfigError
from adapterlab.recipe.schema import OptimSection
from adapterlab.training.groups import parameter_groups


@pytest.fixture(scope="module")
def _folder(tmp_path_factory):
    return furnish(tmp_path_factory.mktemp("controls"))


@pytest.fixture
def workshop(_folder, monkeypatch):
    monkeypatch.chdir(_folder)
    return _folder


def train(*changes: str, name: str = "run"):
    return adapterlab.run("tiny.yaml", "optim.epochs=2", *changes, f"run.dir=runs/{name}", replace=True)


def rates(model, **options):
    """What each trained parameter's rate and decay are, by path."""
    paths = {id(p): path for path, p in model.named_parameters()}
    groups = parameter_groups(model, OptimSection(lr=1e-3, weight_decay=0.1, **options))
    return {paths[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def logged(name: str, key: str) -> list[float]:
    from adapterlab.training.callbacks import read_metrics

    return [row[key] for row in read_metrics(Path("runs") / name / "metrics.jsonl") if key in row]


def test_rates_of_head_and_lora_plus(tiny):
    model = adapterlab.attach(tiny("bert"), "lora")
    found = rates(model, head_lr=5e-3, lora_plus=16)
    assert found.keys() == {path for path, p in model.named_parameters() if p.requires_grad}
    for path, (lr, _) in found.items():
        wanted = 16e-3 if "lora_B" in path else 5e-3 if path.startswith("classifier") else 1e-3
        assert lr == pytest.approx(wanted), path


def test_lora_plus_without_b_matrices_is_refused(tiny):
    model = adapterlab.attach(tiny("bert"), "bottleneck")
    with pytest.raises(
        ConfigError, match=r"optim.lora_plus: the adapter \(bottleneck\) has no B matrices.*method=lora"
    ):
        rates(model, lora_plus=4)


@pytest.mark.parametrize(
    ("method", "undecayed"),
    [
        ("lora", {"classifier.bias"}),
        ("adalora", {"lora_E", "classifier.bias"}),
        ("prefix", {"embedding.weight", "classifier.bias"}),
        ("bottleneck", {"down.bias", "up.bias", "classifier.bias"}),
        ("ia3", {"ia3_l", "classifier.bias"}),
    ],
)
def test_decay_is_on_matrices_only(tiny, method, undecayed):
    options = {"total_step": 100} if method == "adalora" else {}
    model = adapterlab.attach(tiny("bert"), method, **options)
    free = {path for path, (_, decay) in rates(model).items() if decay == 0}
    assert free
    assert all(any(path.removesuffix(".default").endswith(name) for name in undecayed) for path in free), free
    assert all(any(path.removesuffix(".default").endswith(name) for path in free) for name in undecayed)


def test_schedule_and_warm_up_steps(workshop):
    train("optim.schedule=polynomial", "optim.warmup_steps=4", "optim.lr=1e-3")
    found = logged("run", "learning_rate")
    assert found.index(max(found)) in (3, 4)
    assert max(found) == pytest.approx(1e-3)
    train("optim.schedule=constant", "optim.warmup_steps=0", "optim.lr=1e-3")
    assert set(logged("run", "learning_rate")) == {1e-3}


def test_label_smoothing_is_of_the_training_loss_alone(workshop):
    train("optim.lr=1e-12", name="plain")
    train("optim.lr=1e-12", "optim.label_smoothing=0.4", name="smooth")
    assert logged("smooth", "eval_loss") == pytest.approx(logged("plain", "eval_loss"))
    assert logged("smooth", "loss") != pytest.approx(logged("plain", "loss"))
    # at a fresh head's logits smoothing changes little: its share is drawn to the loss of even labels
    for plain, smooth in zip(logged("plain", "loss"), logged("smooth", "loss"), strict=True):
        assert abs(smooth - math.log(2)) < abs(plain - math.log(2)) + 0.05


def test_smoothed_loss_is_torchs(tiny, batch):
    from adapterlab.tasks.base import spread_evenly

    logits = torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 1])
    plain = torch.nn.functional.cross_entropy(logits, labels)
    wanted = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.3)
    torch.testing.assert_close(0.7 * plain + 0.3 * spread_evenly(logits), wanted)
    some = torch.tensor([0, -100, 2, -100])
    wanted = torch.nn.functional.cross_entropy(logits, some, label_smoothing=1.0)
    torch.testing.assert_close(spread_evenly(logits, some), wanted)


def test_gradient_checkpointing_trains_the_same_adapter(workshop):
    train("optim.precision=fp32", name="kept")
    train("optim.precision=fp32", "optim.gradient_checkpointing=true", name="recomputed")
    assert logged("recomputed", "loss") == pytest.approx(logged("kept", "loss"), rel=1e-4)


def test_tensorboard_files_stand_in_the_run_folder(workshop):
    train("log.to=[jsonl,tensorboard]")
    assert list(Path("runs/run/tensorboard").glob("events*"))


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_loaded(workshop, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else find(name, *a))
    with pytest.raises(ConfigError, match=r"log.to: mlflow is not installed. Run: pip install 'adapterlab\[mlflow\]'"):
        train("log.to=[jsonl,mlflow]", "model.name=nowhere")


def test_the_state_that_was_best_on_the_eval_rows_is_told(workshop):
    result = train("eval.every=3")
    assert result.eval_metric == "accuracy"
    assert result.eval_best == max(logged("run", "eval_accuracy"))
