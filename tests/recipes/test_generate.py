"""The recipes that generate really run, shortened, on tiny backbones; and a tiny set is learned by heart."""

from __future__ import annotations

import json

import pytest
import transformers
from conftest import refused
from folders import backbone

import adapterlab
from adapterlab.errors import AdapterLabError, BackboneError
from adapterlab.predicting import Predictor, evaluate
from adapterlab.recipe import catalog

RECIPES = [name for name in catalog.shipped() if name.startswith("generate/")]
METHODS = ("lora", "adalora", "prefix", "bottleneck")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
PAIRS = [(f"What is {n} in words?", f"It is {word}.") for n, word in enumerate(WORDS)]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    made = {}

    def folder(architecture, **how):
        key = (architecture, *how)
        if key not in made:
            texts = [text for pair in PAIRS for text in pair] * 3
            made[key] = backbone(tmp_path_factory.mktemp("backbones") / architecture, architecture, texts, **how)
        return made[key]

    return folder


@pytest.fixture
def rows(tmp_path):
    """rows(question, answer) writes the pairs under these column names; (..) in messages for 'messages'."""

    def write(question, answer=None):
        path = tmp_path / f"{question}.jsonl"
        lines = [
            {question: q, answer: a}
            if answer
            else {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in PAIRS
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    return write


def short(folder, data, run):
    return [
        f"model.name={folder}", f"data.train={data}", f"data.eval={data}", f"data.test={data}", f"run.dir={run}",
        "data.max_length=64", "optim.max_steps=6", "optim.batch_size=4", "optim.accumulate=1", "eval.every=3",
        "task.max_new_tokens=8", "optim.precision=fp32",
    ]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "architecture"), [(RECIPES[0], "gpt2"), (RECIPES[1], "t5")])
def test_recipe_runs(name, architecture, method, tiny_folder, rows, tmp_path):
    sequence = "t5" in name
    data = rows("article", "summary") if sequence else rows("prompt", "completion")
    run = tmp_path / "run"
    changes = short(tiny_folder(architecture), data, run)
    if method != "lora":
        options = {"adalora": "{method: adalora, target_r: 2, init_r: 4}"}.get(method, f"{{method: {method}}}")
        changes.append(f"adapter={options}")
    if refused(architecture, method):  # prefix on T5
        with pytest.raises(AdapterLabError, match="prefix"):
            adapterlab.run(name, *changes)
        return
    result = adapterlab.run(name, *changes)
    assert result.metrics["perplexity"] < result.baselines["untouched backbone"]["perplexity"]
    assert "rougeL" in result.metrics
    assert ("copied source" in result.baselines) == sequence
    report = (run / "report.md").read_text()
    assert "## Examples" in report
    assert "It is seven." in report or "It is zero." in report

    measured = evaluate(run)
    assert measured.pop("rows") == 8
    assert measured == pytest.approx(result.metrics, rel=1e-4)
    question, answer = ("source", "target") if sequence else ("prompt", "completion")
    answers = list(Predictor(run / "adapter").predict([PAIRS[0][0], {question: PAIRS[3][0]}, ""]))
    assert [given[question] for given in answers] == [PAIRS[0][0], PAIRS[3][0], ""]
    assert all(isinstance(given[answer], str) for given in answers)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5", "bart"])
def test_a_tiny_set_is_learned_by_heart(architecture, tiny_folder, rows, tmp_path):
    """And the answers come back, greedily, by beams, and word for word."""
    sequence = architecture in ("t5", "bart")
    names = ("source", "target") if sequence else ("prompt", "completion")
    run = tmp_path / "run"
    task = {"type": "seq2seq" if sequence else "instruction", "metrics": ["exact_text", "bleu"], "max_new_tokens": 16}
    data = rows(*names)
    result = adapterlab.run(
        {
            "version": 1,
            "run": {"dir": str(run)},
            "model": {"name": tiny_folder(architecture, sharp=True)},
            "adapter": {"method": "lora", "r": 16, "dropout": 0.0},
            "task": task if sequence else {**task, "packing": architecture == "llama"},
            "data": {"train": data, "eval": data, "max_length": 64},
            "optim": {"lr": 1e-2, "batch_size": 8, "max_steps": 80, "precision": "fp32"},
            "log": {"plot": False},
        }
    )
    assert result.metrics["exact_text"] == 1
    assert result.metrics["perplexity"] < 1.2
    answers = Predictor(run).predict([question for question, _ in PAIRS])
    assert [answer[names[1]] for answer in answers] == [answer for _, answer in PAIRS]


def test_conversations(tiny_folder, rows, tmp_path):
    """Messages by the tokenizer's chat template; questions are answered, and so is what has an answer already."""
    run = tmp_path / "run"
    changes = short(tiny_folder("llama", chat=True), rows("messages"), run)
    result = adapterlab.run("generate/lora-gpt2-instruct", *changes, "data.columns={}")
    assert result.metrics["perplexity"] < result.baselines["untouched backbone"]["perplexity"]
    question = {"role": "user", "content": PAIRS[0][0]}
    asked = [{"messages": [question]}, {"messages": [question, {"role": "assistant", "content": "No."}]}]
    first, second = Predictor(run).predict(asked)
    assert first["completion"] == second["completion"]


def test_predict_on_the_command_line(tiny_folder, rows, tmp_path):
    from typer.testing import CliRunner

    from adapterlab.cli.app import app

    run, data = tmp_path / "run", rows("prompt", "completion")
    adapterlab.run("generate/lora-gpt2-instruct", *short(tiny_folder("gpt2"), data, run), "optim.max_steps=1")
    out = tmp_path / "answers.csv"
    done = CliRunner().invoke(app, ["predict", str(run), "--file", data, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text().splitlines()[0] == "prompt,completion"
    assert len(out.read_text().splitlines()) >= 9
    done = CliRunner().invoke(app, ["predict", str(run), "What is 3 in words?", "--set", "task.num_beams=2"])
    assert done.exit_code == 0
    assert "completion" in done.output


@pytest.fixture(scope="module")
def half_learned(tiny_folder, tmp_path_factory):
    """A run of a model that is not certain yet: what it writes depends on how it is asked."""
    folder = tmp_path_factory.mktemp("ways")
    (folder / "pairs.jsonl").write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in PAIRS))
    changes = short(tiny_folder("gpt2", sharp=True), folder / "pairs.jsonl", folder / "run")
    adapterlab.run(
        "generate/lora-gpt2-instruct",
        *changes,
        "optim.max_steps=20",
        "optim.lr=1e-2",
        "task.metrics=[perplexity, chrf]",
    )
    return folder / "run"


def written(run, **options):
    return [answer["completion"] for answer in Predictor(run, options).predict([question for question, _ in PAIRS])]


def test_texts_are_written_otherwise_than_the_recipe_said(half_learned):
    plain = written(half_learned)
    assert written(half_learned, num_beams=4) != plain
    cut = written(half_learned, max_new_tokens=2)
    assert all(text.startswith(start) and len(start) < len(text) for start, text in zip(cut, plain, strict=True))
    assert written(half_learned, no_repeat_ngram_size=1) != plain, "the prompts have an 'is' already"
    transformers.set_seed(0)
    drawn = [written(half_learned, temperature=5.0) for _ in range(2)]
    assert plain not in drawn
    assert drawn[0] != drawn[1]
    assert written(half_learned, temperature=5.0, top_k=1) == plain
    assert written(half_learned, temperature=5.0, top_p=1e-6) == plain
    assert written(half_learned) == plain, "the run keeps what its recipe said"


def test_eval_measures_texts_written_otherwise(half_learned):
    plain, cut = evaluate(half_learned), evaluate(half_learned, options={"max_new_tokens": 2})
    assert plain["perplexity"] == pytest.approx(cut["perplexity"], rel=1e-5)
    assert plain["chrf"] > cut["chrf"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("num_beans=4", "unknown instruction option 'num_beans'. Did you mean 'num_beams'?"),
        ("packing=true", "task.packing is part of what was learned, so it can't be set now. What can: max_new_tokens"),
        ("num_beams=many", "task.num_beams: Input should be a valid integer"),
        ("num_beams", "--set 'num_beams': write it as key=value, for example num_beams=4."),
        ("task.max_new_tokens=2000", "task.max_new_tokens=2000 leaves no room for a prompt"),
    ],
)
def test_options_that_can_not_be_set(half_learned, given, said):
    from typer.testing import CliRunner

    from adapterlab.cli.app import app

    for verb in (["predict", str(half_learned), "What is 3 in words?"], ["eval", str(half_learned)]):
        done = CliRunner().invoke(app, [*verb, "--set", given], prog_name="adapterlab")
        assert done.exit_code == 2
        assert said in " ".join(done.stderr.split())


def test_the_wrong_kind_of_backbone(tiny_folder, rows, tmp_path):
    changes = short(tiny_folder("gpt2"), rows("article", "summary"), tmp_path / "run")
    with pytest.raises(BackboneError, match=r"is a gpt2, and transformers has no AutoModel\w+ for this task"):
        adapterlab.run("generate/lora-t5-summarise", *changes)
