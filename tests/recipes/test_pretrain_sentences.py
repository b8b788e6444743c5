"""Pretraining on pairs of sentences really runs, shortened, on a tiny BERT and a tiny ALBERT, with every method."""

from __future__ import annotations

import json
import random

import pytest
import torch
import transformers
from corpora import DOMAIN, tiny_bert, write_corpora
from safetensors.torch import load_file
from small import MINILM

import adapterlab
from adapterlab.predicting import Predictor, evaluate

RECIPES = ["pretrain/nsp-bert"]
METHODS = {
    "lora": ["adapter.r=4"],
    "adalora": ["adapter={method: adalora, target_r: 2, init_r: 4}"],
    "prefix": ["adapter={method: prefix, num_virtual_tokens: 4}"],
    "bottleneck": ["adapter={method: bottleneck}"],
}
SHORT = ["data.max_length=40", "optim.max_steps=4", "optim.batch_size=4", "eval.every=2", "eval.patience=null",
         "optim.precision=fp32", "optim.lr=1e-2", "log.plot=false"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Backbones and corpora; place(architecture) gives the overrides that put them into the recipe."""
    folder = tmp_path_factory.mktemp("sentences")
    tiny_bert(folder / "bert")  # its files have no head for sentences
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "albert")
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        vocab_size=len(tokenizer), hidden_size=32, embedding_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, num_labels=3,
    )  # fmt: skip
    transformers.AlbertForMaskedLM(config).save_pretrained(folder / "albert")
    train, held_out, _ = write_corpora(folder)
    (folder / "general.txt").write_text("\n\n".join(f"We walked on day {day}. It rained on us." for day in range(50)))

    def overrides(architecture):
        return [
            *SHORT, f"model.name={folder / architecture}", f"data.train={train}", f"data.eval={held_out}",
            f"data.replay={{train: {folder / 'general.txt'}, share: 0.25}}",
        ]  # fmt: skip

    overrides.folder = folder
    return overrides


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("architecture", "kind"), [("bert", "next"), ("albert", "order")])
def test_recipe_runs(architecture, kind, method, place, tmp_path):
    run = tmp_path / "run"
    overrides = [*place(architecture), *METHODS[method], f"task.sentences={kind}", f"run.dir={run}"]
    result = adapterlab.run(RECIPES[0], *overrides)
    assert result.metrics.keys() == {"perplexity", "general_perplexity", "sentence_accuracy"}
    assert result.metrics.keys() == result.baselines["untouched backbone"].keys()
    assert result.baselines["majority class"]["sentence_accuracy"] == pytest.approx(0.5, abs=0.03)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval_sentence_accuracy" in row] == [2, 4]
    assert any("pooler" in note and "trained with the adapter" in note for note in result.notes)
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    head = "seq_relationship" if architecture == "bert" else "sop_classifier"
    assert [tensor.shape[0] for key, tensor in saved.items() if head in key and "weight" in key] == [2]
    assert any("pooler" in key for key in saved)

    measured = evaluate(run)
    assert measured.pop("rows") == len(DOMAIN) - 34
    assert measured == pytest.approx(result.metrics, rel=1e-4)
    two, one, many = Predictor(run / "adapter").predict(["A [MASK] b. We [MASK] c.", "The statement", DOMAIN[0]])
    assert [len(choices) for choices in two["choices"]] == [5, 5]
    assert two["filled"] == "A {} b. We {} c.".format(*(choices[0]["token"] for choices in two["choices"]))
    assert 0 < two["coherence"] < 1
    assert 0 < many["coherence"] < 1
    assert one["coherence"] is None
    assert one["perplexity"] > 1
    assert many["perplexity"] > 1


def test_a_pretrained_backbone_learns_what_follows(tmp_path):
    """Documents of six topics: whether a text is of the one before it, the adapter has to learn."""
    topics = [
        "river lake water fish boat swim wave sea", "money bank price market trade stock loan tax",
        "music song piano band guitar voice drum choir", "doctor nurse blood heart pain drug clinic cure",
        "garden tree flower leaf grass seed root soil", "war army soldier gun battle tank peace enemy",
    ]  # fmt: skip
    draw = random.Random(0)
    documents = []
    for number in range(500):
        words = topics[number % len(topics)].split()
        documents.append(" ".join(f"The {' '.join(draw.choices(words, k=4))}." for _ in range(4)))
    draw.shuffle(documents)
    (tmp_path / "topics.txt").write_text("\n\n".join(documents))
    result = adapterlab.run(
        RECIPES[0], f"model.name={MINILM}", f"data.train={tmp_path / 'topics.txt'}", "data.eval=0.1",
        "data.max_length=32", "adapter.dropout=0", "optim={lr: 1e-3, epochs: 6, batch_size: 16, precision: fp32}",
        "eval={best: sentence_accuracy, every: 75}", "log.plot=false", f"run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.baselines["majority class"]["sentence_accuracy"] == pytest.approx(0.5, abs=0.05)
    assert result.metrics["sentence_accuracy"] > 0.75


class StopTheRunError(Exception):
    """What kills the run in the middle."""


@pytest.mark.parametrize("streaming", [False, True])
def test_a_resumed_run_is_the_run_it_would_have_been(streaming, place, tmp_path, monkeypatch):
    from adapterlab.training.callbacks import Narrator

    overrides = [*place("bert"), "optim.max_steps=6", "adapter.dropout=0.1"]
    if streaming:
        (tmp_path / "train.txt").write_text("\n\n".join(DOMAIN[:9]))
        overrides += ["data.streaming=true", f"data.train={tmp_path / 'train.txt'}"]
        overrides += [f"data.replay.eval={place.folder / 'general.txt'}"]
    adapterlab.run(RECIPES[0], *overrides, f"run.dir={tmp_path / 'whole'}")

    def die(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise StopTheRunError

    stopped = [RECIPES[0], *overrides, f"run.dir={tmp_path / 'stopped'}"]
    with monkeypatch.context() as patch:
        patch.setattr(Narrator, "on_step_end", die)
        with pytest.raises(StopTheRunError):
            adapterlab.run(*stopped)
    adapterlab.run(*stopped, resume="auto")
    whole, resumed = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "stopped")
    )
    assert whole.keys() == resumed.keys()
    assert all((whole[key] == resumed[key]).all() for key in whole)


def test_a_classifier_starts_from_the_adapter(place, tmp_path):
    adapterlab.run(RECIPES[0], *place("bert"), f"run.dir={tmp_path / 'domain'}")
    lines = [json.dumps({"text": text, "label": str(number % 2)}) for number, text in enumerate(DOMAIN[:12])]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    recipe = {
        "version": 1,
        "model": {"name": str(place.folder / "bert"), "adapters": [str(tmp_path / "domain")]},
        "adapter": {"method": "lora"},
        "task": {"type": "classification"},
        "data": {"train": str(tmp_path / "labels.jsonl"), "eval": 0.25},
        "run": {"dir": str(tmp_path / "task")},
    }
    result = adapterlab.run(recipe, *SHORT)
    assert any("merged into its weights" in note for note in result.notes)
