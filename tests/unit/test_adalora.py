"""AdaLoRA: the paper's equations, peft's allocator, the schedule in every loop, and what happens after training."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
import transformers
from conftest import CONFIGS, VOCABULARY, randomize
from datasets import Dataset

import adapterlab
from adapterlab.adapters import METHODS
from adapterlab.trainer_hooks import training_state


def values(model, kind):
    """Λ (E), P (B) or Q (A) of every matrix, by the matrix's path."""
    return {n.split(".lora_")[0]: p for n, p in model.named_parameters() if f".lora_{kind}." in n}


def alive(model):
    """How many singular values aren't zero."""
    return sum(int((e != 0).sum()) for e in values(model, "E").values())


def step(model, optimizer, batch):
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.zero_grad()
    return loss.item(), gradients


def optimizer_of(model, kind=torch.optim.AdamW, lr=1e-2):
    return kind([p for p in model.parameters() if p.requires_grad], lr=lr)


def pattern(folder):
    return json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]


def report(model):
    return METHODS.get("adalora").report(model, "default", adapterlab.adapters.AdaLoraConfig())


# --- the paper


@pytest.mark.parametrize(("tinit", "tfinal", "delta_t"), [(0, 0, 1), (5, 8, 3), (6, 10, 50)])
def test_the_budget_of_every_step_is_equation_12(tiny, batch, tinit, tfinal, delta_t):
    total, init_r, target_r = 30, 5, 2
    model = adapterlab.attach(
        tiny("bert"), "adalora", target_r=target_r, init_r=init_r, total_step=total, tinit=tinit, tfinal=tfinal,
        delta_t=delta_t,
    ).train()  # fmt: skip
    optimizer, n = optimizer_of(model), len(values(model, "E"))
    cuts = 0
    for t in range(1, total + 1):
        step(model, optimizer, batch)
        shrunk = (1 - (t - tinit) / (total - tinit - tfinal)) ** 3
        if t >= total - tfinal:
            assert alive(model) == target_r * n, t
        elif t > tinit and t % delta_t == 0:
            assert alive(model) == int(target_r * n + (init_r - target_r) * n * shrunk), t
            cuts += 1
        else:
            assert alive(model) == init_r * n, "between allocations everything is trained on, so it may come back"
    assert cuts == {1: 29, 3: 6, 50: 0}[delta_t]


def test_what_is_kept_is_what_equations_5_to_11_keep(tiny, batch):
    """Written out with plain loops over the matrices, for SGD, whose step is known."""
    lr, beta1, beta2, total, tinit, tfinal, delta_t = 0.5, 0.7, 0.6, 12, 2, 3, 4
    model = adapterlab.attach(
        tiny("bert"), "adalora", target_r=1, init_r=3, dropout=0.0, total_step=total, tinit=tinit, tfinal=tfinal,
        delta_t=delta_t, beta1=beta1, beta2=beta2,
    ).train()  # fmt: skip
    randomize(model, std=0.2)
    optimizer, n = optimizer_of(model, torch.optim.SGD, lr), len(values(model, "E"))
    own = {name: p for name, p in model.named_parameters() if ".lora_" in name and p.requires_grad}
    smooth = {name: torch.zeros_like(p) for name, p in own.items()}
    uncertain = {name: torch.zeros_like(p) for name, p in own.items()}
    kept = None
    for t in range(1, total + 1):
        before = {name: p.detach().clone() for name, p in own.items()}
        _, gradients = step(model, optimizer, batch)
        stepped = {name: before[name] - lr * gradients[name] for name in own}
        if t < total - tfinal:
            for name, w in stepped.items():
                now = (w * gradients[name]).abs()  # (8)
                smooth[name] = beta1 * smooth[name] + (1 - beta1) * now  # (9)
                uncertain[name] = beta2 * uncertain[name] + (1 - beta2) * (now - smooth[name]).abs()  # (10)
        if t > tinit and (t in (4, 8) or t == total - tfinal):
            scores = {}
            for path in values(model, "E"):
                s = {
                    k: smooth[f"{path}.lora_{k}.default"] * uncertain[f"{path}.lora_{k}.default"] for k in "AEB"
                }  # (11)
                for i in range(3):
                    scores[path, i] = float(s["E"][i, 0] + s["B"][:, i].mean() + s["A"][i].mean())  # (7)
            budget = int(n + 2 * n * (1 - (t - tinit) / (total - tinit - tfinal)) ** 3)
            kept = set(sorted(scores, key=scores.get, reverse=True)[:budget])
        settled = t in (4, 8) or t >= total - tfinal
        for path, e in values(model, "E").items():
            for i in range(3):
                expected = stepped[f"{path}.lora_E.default"][i]  # (5)
                if settled and (path, i) not in kept:
                    expected = torch.zeros(1)  # (6)
                torch.testing.assert_close(e.detach()[i], expected)
    assert len(kept) == n


def test_the_loss_is_the_tasks_alone_in_training_and_in_evaluation(tiny, batch):
    model = adapterlab.attach(tiny("bert"), "adalora", total_step=20, orth_reg_weight=5.0, dropout=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    optimizer = optimizer_of(model)
    for _ in range(3):
        step(model, optimizer, batch)
    for mode in (True, False):
        output = model.train(mode)(**batch)
        plain = torch.nn.functional.cross_entropy(output.logits, batch["labels"])
        torch.testing.assert_close(output.loss, plain)


# --- peft


def test_pefts_allocator_keeps_the_same_triplets(tiny, batch):
    """The same weights, batches and schedule in peft's wrapper, with its calls in the loop, step for step."""
    schedule = {"total_step": 24, "tinit": 3, "tfinal": 6}
    ours = adapterlab.attach(tiny("bert"), "adalora", target_r=2, init_r=4, dropout=0.0, delta_t=3, **schedule)
    randomize(ours, std=0.1)
    config = peft.AdaLoraConfig(
        target_r=2, init_r=4, lora_alpha=16, lora_dropout=0.0, deltaT=3, task_type="SEQ_CLS", **schedule,
        target_modules=list(values(ours, "E")),
    )  # fmt: skip
    theirs = peft.get_peft_model(tiny("bert"), config)
    inner = dict(theirs.base_model.model.named_parameters())
    with torch.no_grad():
        for name, p in ours.named_parameters():
            inner[name.replace("classifier.", "classifier.modules_to_save.default.")].copy_(p)
    for model in (ours, theirs):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    mine, peers = optimizer_of(ours), optimizer_of(theirs)
    for t in range(1, 25):
        step(ours, mine, batch)
        theirs(**batch).loss.backward()
        peers.step()
        theirs.base_model.update_and_allocate(t)
        peers.zero_grad()
        for path, e in values(ours, "E").items():
            torch.testing.assert_close(e, inner[f"{path}.lora_E.default"], rtol=1e-3, atol=1e-5, msg=f"{t} {path}")
            assert torch.equal(e == 0, inner[f"{path}.lora_E.default"] == 0), (t, path)
    assert alive(ours) == 2 * len(values(ours, "E"))


def test_an_adapter_that_peft_pruned(tiny, batch, logits, tmp_path):
    config = peft.AdaLoraConfig(
        target_r=1, init_r=3, total_step=10, tinit=1, tfinal=2, target_modules=["query", "dense"], task_type="SEQ_CLS"
    )
    theirs = peft.get_peft_model(tiny("bert"), config).train()
    optimizer = optimizer_of(theirs)
    for t in range(1, 11):
        theirs(**batch).loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(t)
        optimizer.zero_grad()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = adapterlab.load(tiny("bert"), tmp_path / "theirs")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=2e-6)
    adapterlab.save(ours, tmp_path / "ours")
    assert pattern(tmp_path / "ours") == pattern(tmp_path / "theirs")


# --- after training


@pytest.fixture
def pruned(tiny, batch, tmp_path):
    """A model whose ranks were pruned from 4 to 1 on average, and its folder."""
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=1, init_r=4, total_step=12, tinit=1, tfinal=2).train()
    optimizer = optimizer_of(model)
    for _ in range(12):
        step(model, optimizer, batch)
    return model, adapterlab.save(model, tmp_path / "pruned")


def test_a_pruned_adapter_evaluates_with_labels(tiny, batch, logits, pruned):
    model, folder = pruned
    fresh = adapterlab.load(tiny("bert"), folder)
    assert torch.equal(logits(fresh), logits(model))
    with torch.no_grad():
        assert torch.equal(fresh.eval()(**batch).loss, model.eval()(**batch).loss)


def test_a_pruned_adapter_goes_on_with_its_own_ranks(tiny, batch, pruned, tmp_path):
    _, folder = pruned
    model = adapterlab.load(tiny("bert"), folder).train()
    adapterlab.set_total_step(model, 20)
    before = {path: e.detach().clone() for path, e in values(model, "E").items()}
    optimizer = optimizer_of(model)
    losses = []
    for _ in range(20):
        losses.append(step(model, optimizer, batch)[0])
        for path, e in values(model, "E").items():
            assert torch.equal(e == 0, before[path] == 0), "what was pruned stays pruned, what was kept stays"
    assert min(losses[-3:]) < losses[0]
    assert all(not torch.equal(e, before[path]) for path, e in values(model, "E").items() if (e != 0).any())
    adapterlab.save(model, tmp_path / "again")
    assert pattern(tmp_path / "again") == pattern(folder)
    assert report(model).startswith(f"AdaLoRA's budget reached: {alive(model)} of ")


def test_between_two_allocations_a_folder_holds_all_that_counts(tiny, batch, logits, tmp_path):
    model = adapterlab.attach(
        tiny("bert"), "adalora", target_r=1, init_r=4, total_step=40, tinit=2, tfinal=4, delta_t=10
    ).train()
    optimizer, n = optimizer_of(model), len(values(model, "E"))
    for _ in range(10):
        step(model, optimizer, batch)
    assert alive(model) < 4 * n
    cut = adapterlab.save(model, tmp_path / "cut")
    for _ in range(3):
        step(model, optimizer, batch)
    assert alive(model) == 4 * n
    assert f"budget of {n} not reached: {4 * n} of {4 * n} triplets kept, 4.0 per matrix" in report(model)
    fresh = adapterlab.load(tiny("bert"), adapterlab.save(model, tmp_path / "between"))
    assert torch.equal(logits(fresh), logits(model))

    half = adapterlab.load(tiny("bert"), cut)  # and one that was cut half-way shrinks on from there
    start = alive(half)
    assert n < start < 4 * n
    adapterlab.set_total_step(half.train(), 20)
    dead = {path: e == 0 for path, e in values(half, "E").items()}
    optimizer = optimizer_of(half)
    for _ in range(20):
        step(half, optimizer, batch)
        assert all((e[dead[path]] == 0).all() for path, e in values(half, "E").items())
    assert alive(half) == n


def test_a_second_run_keeps_the_ranks_and_needs_no_room_for_a_schedule(tiny, batch, logits, tmp_path):
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=1, init_r=3, total_step=20, tinit=8, tfinal=8).train()
    optimizer = optimizer_of(model)
    for _ in range(20):
        step(model, optimizer, batch)
    first = {path: e != 0 for path, e in values(model, "E").items()}
    adapterlab.set_total_step(model, 5)  # 8 + 8 of 5 steps, but nothing is left to shrink
    for _ in range(5):
        step(model, optimizer, batch)
    assert all(torch.equal(e != 0, first[path]) for path, e in values(model, "E").items())
    adapterlab.save(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny("bert"), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=0, atol=2e-6)


# --- other people's loops


@pytest.fixture
def rows():
    ids = torch.randint(3, VOCABULARY, (48, 8), generator=torch.Generator().manual_seed(4))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids[:, 0] % 3).tolist()})


def trainer_for(model, rows, folder, **options):
    settings = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "report_to": [], "disable_tqdm": True,
                "use_cpu": True, "logging_strategy": "no", "save_strategy": "no"}  # fmt: skip
    arguments = transformers.TrainingArguments(str(folder), **(settings | options))
    return transformers.Trainer(model, arguments, train_dataset=rows)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 18), (2, 9), (4, 6)])
def test_the_trainers_own_count_is_total_step(tiny, rows, tmp_path, accumulate, steps):
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=2, init_r=3)
    trainer_for(model, rows, tmp_path, gradient_accumulation_steps=accumulate).train()
    fields = json.loads((adapterlab.save(model, tmp_path / "a") / "adapter_config.json").read_text())
    assert (fields["total_step"], fields["tinit"], fields["tfinal"]) == (steps, steps // 10, 3 * steps // 10)
    assert alive(model) == 2 * len(values(model, "E"))


def test_a_run_that_resumes_with_more_steps_ends_on_its_budget(tiny, rows, tmp_path):
    def build():
        transformers.set_seed(7)
        return adapterlab.attach(tiny("bert"), "adalora", target_r=1, init_r=4)

    trainer_for(build(), rows, tmp_path, max_steps=12, save_strategy="steps", save_steps=8).train()
    model = build()
    trainer = trainer_for(model, rows, tmp_path, max_steps=30)
    seen = []

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append((state.global_step, alive(model)))

    trainer.add_callback(Look())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    n = len(values(model, "E"))
    assert [t for t, _ in seen] == list(range(9, 31))
    for t, count in seen:  # T = 30, t_i = 3, t_f = 9, an allocation at every step
        assert count == (n if t >= 21 else int(n + 3 * n * (1 - (t - 3) / 18) ** 3)), t


def test_an_adapter_that_waits_is_left_alone(tiny, rows, pruned, tmp_path):
    model, folder = pruned
    adapterlab.attach(model, "adalora", "narrow", tinit=500, tfinal=500)  # no run here has room for that
    adapterlab.attach(model, "lora", "other")
    waiting = [name for name in model.state_dict() if ".default" in name or ".narrow" in name]
    before = {name: model.state_dict()[name].clone() for name in waiting}
    trainer_for(model, rows, tmp_path / "run", max_steps=2).train()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in waiting)
    adapterlab.save(model, tmp_path / "after", "default")
    assert pattern(tmp_path / "after") == pattern(folder)


def test_two_optimizers_count_a_step_once(tiny, batch):
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=1, init_r=3, total_step=10, tinit=2, tfinal=2).train()
    singular = list(values(model, "E").values())
    others = [p for p in model.parameters() if p.requires_grad and not any(p is e for e in singular)]
    optimizers = [torch.optim.AdamW(singular, lr=1e-2), torch.optim.AdamW(others, lr=1e-3)]
    for t in range(1, 11):
        model(**batch).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        n = len(singular)
        assert alive(model) == (3 * n if t <= 2 else int(n + 2 * n * max(0, 1 - (t - 2) / 6) ** 3)), t


def test_an_overflow_does_not_stay_in_the_averages(tiny, batch):
    """As with fp16, where a step whose gradients aren't finite is counted and changes nothing."""

    class Skipped(torch.optim.Optimizer):
        def step(self, closure=None):
            pass

    model = adapterlab.attach(tiny("bert"), "adalora", target_r=1, init_r=3, total_step=10).train()
    optimizer = optimizer_of(model)
    step(model, optimizer, batch)
    model(**batch).loss.backward()
    for p in model.parameters():
        if p.grad is not None:
            p.grad.fill_(float("inf"))
    Skipped(optimizer.param_groups, {}).step()
    optimizer.zero_grad()
    for _ in range(8):
        step(model, optimizer, batch)
    assert all(tensor.isfinite().all() for tensor in training_state(model).values())
    assert alive(model) == len(values(model, "E"))


# --- what can't be


ARITHMETIC = r"tinit 12 \+ tfinal 9 = 21 of 18 steps.*rank could shrink from 3 to 2.*train longer"


def test_a_schedule_that_cannot_fit_is_refused_wherever_the_steps_come_from(tiny, batch, rows, tmp_path):
    options = {"target_r": 2, "init_r": 3, "tinit": 12, "tfinal": 9}
    with pytest.raises(adapterlab.AdapterLabError, match=ARITHMETIC):
        adapterlab.attach(tiny("bert"), "adalora", total_step=18, **options)
    model = adapterlab.attach(tiny("bert"), "adalora", **options)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(adapterlab.AdapterLabError, match=ARITHMETIC):
        adapterlab.set_total_step(model, 18)
    with pytest.raises(adapterlab.AdapterLabError, match=ARITHMETIC):
        trainer_for(model, rows, tmp_path).train()
    with pytest.raises(adapterlab.AdapterLabError, match=r"set_total_step\(model, N\)"):
        step(model.train(), optimizer_of(model), batch)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    adapterlab.set_total_step(model, 22)


@pytest.mark.parametrize("count", [0, -3, 2.5, True, "10", None])
def test_total_step_is_a_number_of_steps(tiny, count):
    model = adapterlab.attach(tiny("bert"), "adalora")
    with pytest.raises(adapterlab.AdapterLabError, match="a whole number of at least 1"):
        adapterlab.set_total_step(model, count)


@pytest.mark.parametrize("name", ["copy", "get", "keys", "training"])
def test_a_name_that_its_containers_have(tiny, name):
    model = tiny("bert")
    with pytest.raises(adapterlab.AdapterLabError, match=f"'{name}' is one that torch uses for modules"):
        adapterlab.attach(model, "adalora", name)
    assert adapterlab.summary(model).adapters == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_r": 8, "init_r": 6}, r"init_r \(6\) is below target_r \(8\).*Set init_r to 8 or more"),
        ({"total_step": 0}, "total_step: "),
        ({"tinit": -1}, "tinit: "),
        ({"beta1": 1.0}, "beta1: "),
        ({"delta_t": 0}, "delta_t: "),
        ({"r": 4, "target_r": 4}, "target_r and r: two names of one option"),
    ],
)
def test_options_that_make_no_sense(tiny, options, message):
    with pytest.raises(adapterlab.AdapterLabError, match=message):
        adapterlab.attach(tiny("bert"), "adalora", **options)


# --- recipes


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nbad\nfilm")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    transformers.BertModel(CONFIGS["bert"]()).save_pretrained(folder / "bert")
    lines = [f"{'good' if i % 2 else 'bad'} film {i},{'pos' if i % 2 else 'neg'}" for i in range(40)]
    (folder / "train.csv").write_text("text,label\n" + "\n".join(lines))
    return {
        "version": 1,
        "model": {"name": str(folder / "bert")},
        "adapter": {"method": "adalora", "target_r": 2, "init_r": 3},
        "task": {"type": "classification"},
        "data": {"train": str(folder / "train.csv"), "eval": 0.2, "max_length": 16},
        "optim": {"lr": 1e-2, "batch_size": 4, "accumulate": 2, "epochs": 3, "precision": "fp32"},
        "log": {"plot": False},
    }


def test_a_run_reports_its_budget(recipe, tmp_path, capfd):
    result = adapterlab.run(recipe, f"run.dir={tmp_path / 'run'}")
    masks = pattern(tmp_path / "run" / "adapter")
    n, ranks = len(masks), {path.removesuffix(".lora_E"): sum(mask) for path, mask in masks.items()}
    assert sum(ranks.values()) == 2 * n
    [note] = [note for note in result.notes if "budget" in note]
    assert note.startswith(f"AdaLoRA's budget reached: {2 * n} of {3 * n} triplets kept, 2.0 per matrix; most in ")
    most = note.partition("most in ")[2].partition(" (")[0]
    assert f"{most} ({max(ranks.values())})" in note
    assert ranks[most] == max(ranks.values())
    assert ("none in" in note) == (0 in ranks.values())
    assert f"- {note}" in (tmp_path / "run" / "report.md").read_text()
    assert note in capfd.readouterr().err
    fields = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert fields["total_step"] == 3 * 4, "32 rows, 4 a batch, 2 batches a step, 3 epochs"


def test_a_recipe_whose_schedule_cannot_fit_trains_nothing(recipe, tmp_path):
    with pytest.raises(adapterlab.AdapterLabError, match=r"tinit 9 \+ tfinal 3 = 12 of 12 steps"):
        adapterlab.run(recipe, "adapter.tinit=9", f"run.dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
