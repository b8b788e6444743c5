"""From a run to a folder that serves: merged or in int8, compared with the original, and used by every later verb."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from language_workshop import language_recipes
from reference import continuations, neighbours
from small import small_bert, write
from tiny_workshop import furnish
from typer.testing import CliRunner

import adapterlab
from adapterlab.cli.app import app
from adapterlab.deploy.running import merge_run, quantize_run
from adapterlab.kernels.int8 import rounded
from adapterlab.predicting import evaluate

TEXTS = ["the film was awful", "truly a great film", "a film was fine fine fine", "nasty"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = furnish(tmp_path_factory.mktemp("deploy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        adapterlab.run("tiny.yaml", "run.dir=run", "log.plot=false")
    return root / "run"


@pytest.fixture(autouse=True)
def _there(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr("adapterlab.deploy.comparing.SECONDS", 0)


def answers(source):
    return list(adapterlab.Predictor(source).predict(TEXTS))


def probabilities(source):
    return torch.tensor([list(answer["probabilities"].values()) for answer in answers(source)])


def test_merged_is_a_plain_folder_with_the_same_logits(run, tmp_path):
    made = merge_run(run, tmp_path / "out")
    found = made.comparison
    assert found.logits[1] < 1e-5
    assert found.before.metrics == found.after.metrics
    assert not found.changes
    assert found.rows == 13
    code = (
        "import sys, transformers; m = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1]); "
        "t = transformers.AutoTokenizer.from_pretrained(sys.argv[1]); p = transformers.pipeline("
        "'text-classification', model=m, tokenizer=t); print([a['label'] for a in p(sys.argv[2:])]); "
        "assert not any(n.split('.')[0] in ('peft', 'adapterlab') for n in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), *TEXTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([answer["label"] for answer in answers(run)])
    assert not (tmp_path / "out" / "adapterlab.json").exists()


def test_int8_serves_as_a_run_does(run, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    made = quantize_run(run, tmp_path / "out")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before, "the source is untouched"
    torch.testing.assert_close(probabilities(tmp_path / "out"), probabilities(run), rtol=0, atol=0.05)
    assert evaluate(tmp_path / "out") == {**made.comparison.after.metrics, "rows": 13}
    assert made.comparison.after.weights < 0.4 * made.comparison.before.weights
    report = (tmp_path / "out" / "report.md").read_text()
    for word in ("| accuracy |", "logits apart", "| weights |", "1 x 32 tokens", "13 rows of test", "report.png"):
        assert word in report
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures["after"]["passes"]["1x32"]["p50"] > 0
    assert (tmp_path / "out" / "report.png").stat().st_size > 5000


def test_pipelines_take_it(run, tmp_path):
    from transformers import AutoTokenizer, pipeline

    quantize_run(run, tmp_path / "out")
    model, tokenizer = adapterlab.load_deployed(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    found = pipeline("text-classification", model=model, tokenizer=tokenizer)(TEXTS)
    assert [answer["label"] for answer in found] == [answer["label"] for answer in answers(tmp_path / "out")]


def test_threads_share_a_predictor_and_batches_dont_matter(run, tmp_path):
    quantize_run(run, tmp_path / "out")
    predictor = adapterlab.Predictor(tmp_path / "out")
    expected = list(predictor.predict(TEXTS * 3))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda size: list(predictor.predict(TEXTS * 3, batch_size=size)), [1, 2, 5, 12] * 3):
            assert found == expected


def far_off(weight):
    """Round to something that is only roughly the weight."""
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    return rounded(weight + 1.2 * weight.std() * noise)


def test_the_report_says_which_answers_changed(run, tmp_path, monkeypatch):
    monkeypatch.setattr("adapterlab.serving.quantizing.rounded", far_off)
    made = quantize_run(run, tmp_path / "out")
    changes = made.comparison.changes
    assert changes
    assert made.comparison.after.metrics["accuracy"] < 1
    report = (tmp_path / "out" / "report.md").read_text()
    for change in changes:
        assert f"| {change.number} | " in report
        assert change.before["label"] != change.after["label"]


def test_what_hurts_most_stays_in_fp32(run, tmp_path, monkeypatch):
    monkeypatch.setattr("adapterlab.serving.quantizing.rounded", far_off)
    made = quantize_run(run, tmp_path / "out", max_drop=0.0, skip=["*.position_embeddings"])
    said = " ".join(made.notes)
    assert "int8 throughout loses" in said
    assert "modules in fp32 it loses 0.00" in said
    assert evaluate(tmp_path / "out") == {**made.comparison.after.metrics, "rows": 13}
    with pytest.raises(adapterlab.AdapterLabError, match=r"with all \d+ modules but the embeddings in fp32"):
        quantize_run(run, tmp_path / "other", max_drop=-100.0)
    assert not (tmp_path / "other").exists()


def test_a_merge_that_is_too_far_off_is_refused(run, tmp_path):
    with pytest.raises(adapterlab.AdapterLabError, match=r"logits differ by up to .* Nothing was written"):
        merge_run(run, tmp_path / "out", tolerance=0.0)
    assert not list(tmp_path.iterdir())


def test_the_command_line(run, tmp_path):
    def call(*words):
        return CliRunner().invoke(app, [*map(str, words)])

    done = call("quantize", run, tmp_path / "small")
    assert done.exit_code == 0, done.output
    assert "x as fast" in done.stdout
    assert call("eval", tmp_path / "small").exit_code == 0
    assert TEXTS[0] in call("predict", tmp_path / "small", TEXTS[0]).stdout
    assert call("merge", run, tmp_path / "merged", "--rows", 5).exit_code == 0
    for words, said in (
        (("quantize", run, tmp_path / "small"), "isn't empty"),
        (("quantize", tmp_path / "small", tmp_path / "x"), "in int8 already"),
        (("merge", tmp_path / "small", tmp_path / "x"), "no adapter to merge"),
        (("quantize", tmp_path / "merged", tmp_path / "x"), "recipe.yaml"),
        (("quantize", run, tmp_path / "x", "--skip", "*.qury"), "Did you mean 'query'"),
    ):
        done = call(*words)
        assert done.exit_code == 2, done.output
        assert said in " ".join(done.output.split())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["instruction", "seq2seq", "masked_lm", "causal_lm", "streamed"])
def test_tasks_that_write_and_those_that_read_raw_text(tmp_path, kind):
    adapterlab.run(language_recipes(tmp_path)[kind])
    run = tmp_path / "runs" / kind
    merged = merge_run(run, tmp_path / "merged").comparison
    assert merged.logits[1] < 1e-4
    assert merged.before.metrics["perplexity"] == pytest.approx(merged.after.metrics["perplexity"], rel=1e-4)
    made = quantize_run(run, tmp_path / "small", max_drop=50.0).comparison
    assert made.after.metrics["perplexity"] == pytest.approx(made.before.metrics["perplexity"], rel=0.2)
    found = evaluate(tmp_path / "small")
    assert found["perplexity"] == pytest.approx(made.after.metrics["perplexity"], rel=0.05)


@pytest.mark.parametrize("recipe", ["choose/lora-bert", "rank/lora-bert"])
def test_tasks_whose_rows_have_several_texts(tmp_path, recipe):
    rows = continuations()[:40] if recipe.startswith("choose") else neighbours()[:40]
    data = write(tmp_path / "rows.jsonl", rows)
    adapterlab.run(
        recipe, "optim.max_steps=3", "optim.batch_size=4", "optim.precision=fp32", "log.plot=false",
        "data.max_length=32", f"model.name={small_bert(tmp_path / 'bert')}", f"data.train={data}", "data.test=0.3",
        f"run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert merge_run(tmp_path / "run", tmp_path / "merged").comparison.logits[1] < 1e-5
    made = quantize_run(tmp_path / "run", tmp_path / "small").comparison
    assert 0 < made.logits[1] < 0.5
    assert made.after.passes
    assert evaluate(tmp_path / "small").keys() == {*made.after.metrics, "rows"}
