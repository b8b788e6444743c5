"""The recipes for continued pretraining really run, shortened, on tiny backbones; what is stopped goes on exactly."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from corpora import DOMAIN, tiny_bert, tiny_gpt2, write_corpora
from safetensors.torch import load_file

import adapterlab
from adapterlab.predicting import Predictor, evaluate

RECIPES = ["pretrain/lora-bert", "pretrain/lora-gpt2", "pretrain/full-bert"]
METHODS = {
    "lora": ["adapter.r=4"],
    "adalora": ["adapter={method: adalora, target_r: 2, init_r: 4}"],
    "prefix": ["adapter={method: prefix, num_virtual_tokens: 4}"],
    "bottleneck": ["adapter={method: bottleneck}"],
    "full": ["adapter={method: full}"],
}
SHORT = ["data.max_length=32", "optim.max_steps=6", "optim.batch_size=4", "eval.every=3", "eval.patience=null",
         "optim.precision=fp32", "optim.lr=1e-2", "log.plot=false"]  # fmt: skip
WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Backbones and corpora; place(recipe) gives the overrides that put them into it."""
    folder = tmp_path_factory.mktemp("pretrain")
    models = {"bert": tiny_bert(folder / "bert"), "gpt2": tiny_gpt2(folder / "gpt2")}
    train, held_out, general = write_corpora(folder)

    def overrides(recipe):
        model = models["gpt2" if "gpt2" in recipe else "bert"]
        return [
            *SHORT, f"model.name={model}", f"data.train={train}", f"data.eval={held_out}",
            f"data.replay={{train: {general}, share: 0.25}}",
        ]  # fmt: skip

    overrides.models, overrides.folder = models, folder
    return overrides


CELLS = [(name, method) for name in RECIPES for method in METHODS if "lora" in name or method == "full"]


@pytest.mark.parametrize("name", ["pretrain/lora-bert", "pretrain/lora-gpt2"])
def test_an_adapter_learns(name, place, tmp_path):
    longer = ["optim.max_steps=100", "eval.every=100", "adapter.dropout=0"]
    result = adapterlab.run(name, *place(name), *METHODS["lora"], *longer, f"run.dir={tmp_path / 'run'}")
    assert result.metrics["perplexity"] < 0.99 * result.baselines["untouched backbone"]["perplexity"]


@pytest.mark.parametrize(("name", "method"), CELLS)
def test_recipe_runs(name, method, place, tmp_path):
    result = adapterlab.run(name, *place(name), *METHODS[method], f"run.dir={tmp_path / 'run'}")
    untouched = result.baselines["untouched backbone"]
    assert result.metrics.keys() == untouched.keys() == {"perplexity", "general_perplexity"}
    assert result.metrics["perplexity"] != untouched["perplexity"]
    if method == "full":  # an adapter needs more steps on a random backbone: see `test_an_adapter_learns`
        assert result.metrics["perplexity"] < untouched["perplexity"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval_perplexity" in row] == [3, 6]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "tokens seen in training" in report
    assert "of general text among" in report
    assert f"{untouched['general_perplexity']:.4f}" in report

    measured = evaluate(tmp_path / "run")
    assert measured.pop("rows") == len(DOMAIN) - 34
    assert measured == pytest.approx(result.metrics, rel=1e-4), "of general text too"
    texts = ["The statement is", "a [MASK] b [MASK] c", "statement " * 90]
    answers = list(Predictor(tmp_path / "run" / "adapter").predict(texts))
    assert [answer["text"] for answer in answers] == texts
    assert all(answers[place]["perplexity"] > 1 for place in (0, 2))
    if "bert" in name:
        assert len(answers[1]["choices"]) == 2
        assert len(answers[1]["choices"][0]) == 5
        first, second = (choice[0]["token"] for choice in answers[1]["choices"])
        assert answers[1]["filled"] == f"a {first} b {second} c"


class StopTheRunError(Exception):
    """What kills the run in the middle."""


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_is_the_run_it_would_have_been(name, streaming, place, tmp_path, monkeypatch):
    from adapterlab.training.callbacks import Narrator

    dropout = ["adapter.dropout=0.1"] if "lora" in name else []
    overrides = [*place(name), "optim.max_steps=12", *dropout, "optim.accumulate=2"]
    if streaming:  # plain text in one file, packed, whose documents take several lines; general text to mix in
        (tmp_path / "train.txt.gz").write_bytes(gzip.compress("\n\n".join(DOMAIN[:9]).encode()))
        general = f"data.replay={{train: {place.folder / 'general.txt'}, eval: {place.folder / 'general.txt'}}}"
        overrides += ["data.streaming=true", f"data.train={tmp_path / 'train.txt.gz'}", general]
    adapterlab.run(name, *overrides, f"run.dir={tmp_path / 'whole'}")

    def die(self, args, state, control, **kwargs):
        if state.global_step == 8:
            raise StopTheRunError

    stopped = [name, *overrides, f"run.dir={tmp_path / 'stopped'}"]
    with monkeypatch.context() as patch:
        patch.setattr(Narrator, "on_step_end", die)
        with pytest.raises(StopTheRunError):
            adapterlab.run(*stopped)
    adapterlab.run(*stopped, resume="auto")
    whole, resumed = (load_file(tmp_path / folder / WEIGHTS) for folder in ("whole", "stopped"))
    assert whole.keys() == resumed.keys()
    assert all((whole[key] == resumed[key]).all() for key in whole)


def test_a_stream_that_was_changed_is_not_gone_on_with(place, tmp_path):
    corpus = tmp_path / "train.txt"
    corpus.write_text("\n\n".join(DOMAIN))
    overrides = [*place("gpt2"), "data.streaming=true", "data.replay=null", f"data.train={corpus}"]
    overrides += [f"run.dir={tmp_path / 'run'}"]
    adapterlab.run("pretrain/lora-gpt2", *overrides)
    corpus.write_text("\n\n".join(DOMAIN[1:]))
    with pytest.raises(adapterlab.AdapterLabError, match=r"train\.txt' was changed"):
        adapterlab.run("pretrain/lora-gpt2", *overrides, "optim.max_steps=9", resume="auto")


@pytest.mark.parametrize("name", RECIPES)
def test_new_words_come_along(name, place, tmp_path):
    run = tmp_path / "run"
    result = adapterlab.run(name, *place(name), "task.new_words=5", "optim.max_steps=20", f"run.dir={run}")
    predictor = Predictor(run)
    about = json.loads((run / "adapter" / "adapterlab.json").read_text())
    words = list(about["new_tokens"]["pieces"])
    assert len(words) == 5
    assert all(len(predictor.tokenizer.tokenize(word)) == 1 for word in words)
    assert all(len(pieces) >= 2 for pieces in about["new_tokens"]["pieces"].values())
    assert result.metrics["perplexity"] < result.baselines["untouched backbone"]["perplexity"]
    assert evaluate(run) == pytest.approx({**result.metrics, "rows": len(DOMAIN) - 34}, rel=1e-4)
    plain = adapterlab.run(name, *place(name), f"run.dir={tmp_path / 'plain'}")
    assert plain.baselines["untouched backbone"] == result.baselines["untouched backbone"], "read as it was"


def classify(place, folder: Path, *more: str) -> adapterlab.RunResult:
    """Learn to tell domain from general texts."""
    lines = [json.dumps({"text": text, "label": label}) for texts, label in ((DOMAIN[:8], "docs"), (GENERAL_8, "day"))
             for text in texts]  # fmt: skip
    (folder / "labels.jsonl").write_text("\n".join(lines))
    recipe = {
        "version": 1,
        "run": {"dir": str(folder / "task")},
        "model": {"name": place.models["bert"]},
        "adapter": {"method": "lora", "r": 2},
        "task": {"type": "classification"},
        "data": {"train": str(folder / "labels.jsonl"), "eval": 0.25, "max_length": 32},
        "optim": {"lr": 1e-2, "batch_size": 4, "max_steps": 4, "precision": "fp32"},
    }
    return adapterlab.run(recipe, *more)


GENERAL_8 = [f"we walked to the sea {number} times" for number in range(8)]


@pytest.mark.parametrize(
    ("method", "kept"), [("lora", "merged"), ("full", "merged"), ("prefix", "beside"), ("bottleneck", "beside")]
)
def test_a_downstream_run_starts_from_the_domain_adapter(method, kept, place, tmp_path):
    words = ["task.new_words=3"] if method != "bottleneck" else []
    adapterlab.run("pretrain/lora-bert", *place("bert"), *METHODS[method], *words, f"run.dir={tmp_path / 'domain'}")
    with_it = classify(place, tmp_path, f"model.adapters=[{tmp_path / 'domain'}]")
    about = json.loads((tmp_path / "task" / "adapter" / "adapterlab.json").read_text())
    assert [link["kept"] for link in about["adapters"]] == [kept]
    assert not [key for key in load_file(tmp_path / "task" / WEIGHTS) if "cls." in key or "prefix" in key]
    assert any("domain" in note for note in with_it.notes)

    predictor = Predictor(tmp_path / "task")
    measured = evaluate(tmp_path / "task")
    assert measured["accuracy"] == with_it.metrics["accuracy"]
    if words:
        new = json.loads((tmp_path / "domain/adapter/adapterlab.json").read_text())["new_tokens"]["pieces"]
        assert all(len(predictor.tokenizer.tokenize(word)) == 1 for word in new)
    import transformers

    plain = transformers.AutoModelForSequenceClassification.from_pretrained(place.models["bert"], num_labels=2)
    with pytest.raises(adapterlab.AdapterLabError, match=r"was trained (on|beside)"):
        adapterlab.load(plain, tmp_path / "task")

    weights = tmp_path / "domain" / WEIGHTS
    tensors = {key: tensor + 1 for key, tensor in load_file(weights).items()}
    from safetensors.torch import save_file

    save_file(tensors, weights)
    with pytest.raises(adapterlab.AdapterLabError, match="isn't the one"):
        Predictor(tmp_path / "task")


def test_a_domain_adapter_of_another_backbone_is_refused(place, tmp_path):
    adapterlab.run("pretrain/lora-gpt2", *place("gpt2"), f"run.dir={tmp_path / 'domain'}")
    with pytest.raises(adapterlab.AdapterLabError, match="was trained on"):
        classify(place, tmp_path, f"model.adapters=[{tmp_path / 'domain'}]")
