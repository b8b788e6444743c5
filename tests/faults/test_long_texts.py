"""Texts longer than the backbone has positions: cut to what fits, or refused before training, never a crash in it."""

from __future__ import annotations

import json
import re

import pytest
import transformers
from corpora import DOMAIN, tiny_bert, tiny_gpt2

import adapterlab
from adapterlab.errors import BackboneError
from adapterlab.predicting import Predictor


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """A BERT and a GPT-2 of 64 positions whose tokenizers don't say so, as many on the Hub don't."""
    folder = tmp_path_factory.mktemp("backbones")
    found = {"bert": tiny_bert(folder / "bert"), "gpt2": tiny_gpt2(folder / "gpt2")}
    for kind in found:
        file = folder / kind / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        settings.pop("model_max_length", None)
        file.write_text(json.dumps(settings))
        assert transformers.AutoTokenizer.from_pretrained(found[kind]).model_max_length > 10**9
    return found


LONG = "on all of us it rained while we walked to the sea " * 12
TEXTS = [f"{'good' if n % 2 else 'bad'} day {n} {LONG}" for n in range(24)]
ROWS = {
    "classification": [{"text": text, "label": ["bad", "good"][n % 2]} for n, text in enumerate(TEXTS)],
    "tagging": [{"tokens": text.split(), "tags": ["B-D", *["O"] * (len(text.split()) - 1)]} for text in TEXTS],
    "similarity": [{"text": text, "text_pair": LONG, "score": n % 5} for n, text in enumerate(TEXTS)],
    "multiple_choice": [{"question": text, "choices": ["a", "b"], "answer": n % 2} for n, text in enumerate(TEXTS)],
    "qa": [{"question": f"day {n}?", "context": text, "answers": [{"text": "day", "start": text.index("day")}]}
           for n, text in enumerate(TEXTS)],
}  # fmt: skip

TOLD = ("label", "tags", "score", "answer", "answers")  # columns that `predict` does without


def recipe(kind, task, backbone, folder, **adapter):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    (folder / "recipe.yaml").write_text(
        f"version: 1\nrun: {{dir: {folder}/run}}\nmodel: {{name: {backbone}}}\n"
        f"adapter: {json.dumps({'method': 'lora'} | adapter)}\ntask: {{type: {kind}}}\n"
        f"data: {{train: {folder}/train.jsonl, eval: 0.25, max_length: 512}}\n"
        "optim: {lr: 1e-3, batch_size: 4, max_steps: 1, precision: fp32}\nlog: {plot: false}\n"
    )
    return str(folder / "recipe.yaml")


@pytest.mark.parametrize("task", ROWS)
def test_what_the_tokenizer_does_not_know_the_backbone_does(task, backbones, tmp_path):
    overrides = ["task.stride=8"] if task == "qa" else []
    result = adapterlab.run(recipe(task, task, backbones["bert"], tmp_path), *overrides)
    assert any(re.search("(the backbone's|cut to|into) 64 tokens", note) for note in result.notes), result.notes
    row = {("text" if key == "tokens" else key): value for key, value in ROWS[task][0].items() if key not in TOLD}
    assert len(list(Predictor(tmp_path / "run").predict([row]))) == 1


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_virtual_tokens_take_positions(kind, method, backbones, tmp_path):
    file = recipe("classification", "classification", backbones[kind], tmp_path, method=method, num_virtual_tokens=20)
    result = adapterlab.run(file)
    assert any("data.max_length=512 is more than the backbone's 44 tokens; 44 it is" in note for note in result.notes)
    list(Predictor(tmp_path / "run").predict([TEXTS[0]]))


def test_a_prefix_that_preserves_positions_takes_none(backbones, tmp_path):
    options = {"method": "prefix", "num_virtual_tokens": 20, "preserve_positions": True}
    result = adapterlab.run(recipe("classification", "classification", backbones["gpt2"], tmp_path, **options))
    assert any("the backbone's 64 tokens" in note for note in result.notes)


@pytest.mark.parametrize(("kind", "task"), [("bert", "masked_lm"), ("gpt2", "causal_lm")])
def test_blocks_leave_room_for_virtual_tokens(kind, task, backbones, tmp_path):
    ROWS[task] = [{"text": text} for text in DOMAIN]
    file = recipe(task, task, backbones[kind], tmp_path, method="prefix", num_virtual_tokens=20)
    with pytest.raises(BackboneError, match=r"data.max_length=64: .*Set data.max_length=44 or less"):
        adapterlab.run(file, "data.max_length=64", dry_run=True)
    adapterlab.run(file, "data.max_length=44")
