"""The command line: what it imports, its help, its errors, and every verb on a real, tiny run."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from tiny_workshop import furnish
from typer.testing import CliRunner

from adapterlab import errors
from adapterlab.cli.app import app
from adapterlab.recipe import catalog, load_recipe

VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
HEAVY = ("torch", "transformers", "datasets", "peft", "sklearn", "matplotlib", "pandas", "numpy", "yaml")


def call(*arguments: str, stdin: str | bytes | None = None) -> Any:
    """Run the command line in this process."""
    return CliRunner().invoke(app, list(arguments), input=stdin, prog_name="adapterlab")


def told(*arguments: str, code: int = 2) -> str:
    """Return what a call that must fail says."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return str(result.output)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- help


@pytest.mark.parametrize(
    "arguments", [["--help"], [], ["train", "--help"], ["predict", "--help"], ["ls"], ["--version"]]
)
def test_nothing_heavy_is_imported_to_help(arguments: list[str]) -> None:
    code = (
        "import sys; from adapterlab.cli import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try: main()\n"
        "except SystemExit as exit: assert not exit.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=True
    )
    heavy = result.stdout.rpartition("HEAVY ")[2].strip()
    assert heavy == ("['yaml']" if arguments == ["ls"] else "[]")


def test_python_m_runs_it() -> None:
    command = [sys.executable, "-m", "adapterlab", "validate", "no-such-recipe"]
    result = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: no recipe 'no-such-recipe'.")
    assert result.stdout == ""


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def test_alone_it_says_where_to_start() -> None:
    result = call()
    assert result.exit_code == 0
    assert "adapterlab train quickstart" in result.output


def test_the_verbs() -> None:
    assert set(VERBS) == {
        "ls",
        "methods",
        "tasks",
        "show",
        "cp",
        "validate",
        "schema",
        "estimate",
        "train",
        "sweep",
        "merge",
        "quantize",
        "eval",
        "predict",
        "convert",
        "env",
    }


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_ends_with_examples_that_parse(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0
    examples = VERBS[verb].examples
    assert examples
    last = [line.strip() for line in result.output.splitlines() if line.strip()][-len(examples) :]
    assert last == list(examples)
    for example in examples:
        for part in shlex.join(shlex.split(example, comments=True)).split(" '&&' "):
            words = shlex.split(part.partition("'|' ")[2] or part)
            words = words[: words.index(">")] if ">" in words else words
            if words[0] == "adapterlab":
                VERBS[words[1]].make_context(words[1], words[2:])  # exits on an unknown option or a missing argument


# --- errors


def test_an_unknown_verb_gets_the_nearest() -> None:
    assert "unknown command 'trian'. Did you mean 'train'?" in told("trian", "quickstart")


def test_an_error_is_one_message_on_stderr_and_exit_code_2(here: Path) -> None:
    result = call("validate", "quickstart", "optim.lrr=1", "adapter.r=0")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "override optim.lrr: unknown key. Did you mean 'lr'?" in result.stderr
    assert "override adapter.r:" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["cp", "quickstart", "/proc/x.yaml"],
        ["cp", "quickstart", "x" * 300],
        ["show", "x" * 300],
        ["validate", "x" * 300],
        ["train", "x" * 300],
        ["train", "quickstart", "--resume", "x" * 300],
    ],
)
def test_what_the_system_refuses_is_one_line(here: Path, arguments: list[str]) -> None:
    said = told(*arguments)
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    command = f"{shlex.quote(sys.executable)} -m adapterlab ls > /dev/full"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, env=_environment(), check=False)
    assert result.returncode == 2
    assert result.stderr == "error: No space left on device.\n"


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "shipped", interrupted)
    assert "interrupted" in told("ls", code=130)


def test_square_brackets_in_an_error_are_not_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise errors.DataError("column [bold] of [/x] is missing")

    monkeypatch.setattr(catalog, "shipped", failing)
    assert "column [bold] of [/x] is missing" in told("ls")


# --- looking around


def test_ls_lists_every_shipped_recipe() -> None:
    output = call("ls").output
    for name in catalog.shipped():
        assert name in output
    assert "Sentiment of tweets" in output


def test_methods_lists_them_and_one_with_its_options() -> None:
    output = call("methods").output
    assert all(name in output for name in ("lora", "adalora", "prefix", "bottleneck (adapter)"))
    output = call("methods", "adapter").output
    assert "bottleneck (or adapter)" in output
    assert "reduction_factor" in output
    assert "houlsby | pfeiffer" in output
    assert "Did you mean 'lora'?" in told("methods", "lroa")


def test_show_prints_a_recipe_as_it_is_written(here: Path) -> None:
    assert call("show", "quickstart").output == catalog.shipped()["quickstart"].read_text("utf-8")
    assert "Did you mean 'quickstart'?" in told("show", "quikstart")
    (here / "empty").mkdir()
    assert "neither a run folder (no recipe.yaml) nor an adapter folder" in told("show", "empty")


def test_cp_copies_and_does_not_overwrite(here: Path) -> None:
    assert "next: adapterlab train quickstart.yaml" in call("cp", "quickstart").output
    assert load_recipe("quickstart.yaml") == load_recipe(catalog.shipped()["quickstart"])
    assert "quickstart.yaml exists" in told("cp", "quickstart")
    (here / "quickstart.yaml").write_text("mine")
    assert call("cp", "classify/lora-bert", "quickstart.yaml", "--replace").exit_code == 0
    assert "LoRA on BERT" in (here / "quickstart.yaml").read_text()
    (here / "recipes").mkdir()
    assert call("cp", "classify/lora-bert", "recipes").exit_code == 0
    assert (here / "recipes" / "lora-bert.yaml").is_file()
    assert "mkdir -p nowhere" in told("cp", "quickstart", "nowhere/my.yaml")


def test_validate_prints_the_resolved_recipe(here: Path) -> None:
    result = call("validate", "quickstart", "adapter.method=prefix", "optim.lr=1e-2")
    assert result.exit_code == 0
    (here / "resolved.yaml").write_text(result.stdout)
    recipe = load_recipe("resolved.yaml")
    assert (recipe.adapter.method, recipe.optim.lr, recipe.run.dir) == ("prefix", 1e-2, "runs/quickstart")
    assert "note: adapter.method=prefix starts from that method's defaults: left out r, alpha" in result.stderr
    assert "quickstart is valid." in result.stderr


def test_schema_is_json() -> None:
    schema = json.loads(call("schema").stdout)
    assert schema["properties"]["optim"] == {"$ref": "#/$defs/OptimSection"}


def test_env_tells_versions_processor_and_precision() -> None:
    import torch

    output = call("env").output
    assert torch.__version__.partition("+")[0] in output
    assert "precision: auto" in output
    assert "stored in" in " ".join(output.split())
    assert str(catalog.folder()) in output.replace("\n", "")


def test_env_tells_versions_where_torch_is_broken() -> None:
    code = (
        "import sys; from adapterlab.cli import main\n"
        "sys.modules['torch'] = None  # what imports it fails\n"
        "sys.argv[1:] = ['env']\n"
        "main()"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    assert result.returncode == 0, result.stderr
    assert "torch fails" in result.stdout
    assert re.search(r"(?m)^transformers +\d", result.stdout)
    assert "recipes" in result.stdout


# --- a tiny run, end to end


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny BERT, a data set, a recipe, and the run that came of them."""
    root = furnish(tmp_path_factory.mktemp("workshop"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        result = call("train", "tiny.yaml")
        assert result.exit_code == 0, result.output
        assert 'next: adapterlab predict runs/tiny "your text"' in result.stderr
        yield root


def test_train_leaves_a_complete_run(workshop: Path) -> None:
    run = workshop / "runs" / "tiny"
    assert {"recipe.yaml", "adapter", "metrics.jsonl", "report.md"} <= {entry.name for entry in run.iterdir()}
    assert load_recipe(run / "recipe.yaml") == load_recipe("tiny.yaml")


def test_train_refuses_a_folder_that_holds_a_run(workshop: Path) -> None:
    output = told("train", "tiny.yaml")
    assert "holds a run already" in output
    assert "--replace" in output
    assert "run.dir=" in output


def test_train_dry_run_writes_nothing(workshop: Path) -> None:
    result = call("train", "tiny.yaml", "run.dir=runs/dry", "adapter.method=bottleneck", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "bottleneck" in result.output
    assert not (workshop / "runs" / "dry").exists()


def test_train_checks_resume_before_anything_slow(workshop: Path) -> None:
    assert "Did you mean 'auto'?" in told("train", "tiny.yaml", "--resume", "atuo")
    assert "give one of them" in told("train", "tiny.yaml", "--resume", "auto", "--replace")


def test_eval_prints_the_metrics(workshop: Path) -> None:
    for arguments in ([], ["--data", "train.csv"]):
        result = call("eval", "runs/tiny", *arguments)
        assert result.exit_code == 0, result.output
        assert "accuracy" in result.stdout
    assert "64" in result.stdout


def test_eval_names_a_label_that_the_run_does_not_know(workshop: Path) -> None:
    Path("other.csv").write_text("review,stars\ngood film,yes\nfine film,maybe\n")
    said = told("eval", "runs/tiny", "--data", "other.csv")
    assert "maybe" in said
    assert "'no', 'yes'" in said


def test_predict_texts_prints_a_table(workshop: Path) -> None:
    result = call("predict", "runs/tiny", "a truly lovely film", "the film was [awful]")
    assert result.exit_code == 0, result.output
    assert "p(no)" in result.stdout
    assert "the film was [awful]" in result.stdout


def test_predict_stdin_writes_jsonl(workshop: Path) -> None:
    result = call("predict", "runs/tiny", stdin="good good film\nawful\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == ["good good film", "awful"]
    for answer in answers:
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["score"] == answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())


def test_predict_decodes_stdin_as_it_does_files(workshop: Path) -> None:
    result = call("predict", "runs/tiny", stdin=b"\xff bad\r\n\nfine\n")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["ÿ bad", "", "fine"]
    assert "note: stdin is not UTF-8 (line 1); read as cp1252." in result.stderr
    result = call("predict", "runs/tiny", stdin="é\n".encode("utf-16"))
    assert json.loads(result.stdout)["text"] == "é"


def test_predict_reads_the_recipes_column_and_writes_csv(workshop: Path) -> None:
    result = call("predict", "runs/tiny", "--file", "train.csv", "--out", "answers.csv", "--batch-size", "7")
    assert result.exit_code == 0, result.output
    assert "64 predictions in answers.csv" in result.stderr
    with Path("answers.csv").open(newline="") as answers, Path("train.csv").open(newline="") as rows:
        read, given = list(csv.DictReader(answers)), list(csv.DictReader(rows))
    assert list(read[0]) == ["text", "label", "score", "p_no", "p_yes"]
    assert [row["text"] for row in read] == [row["review"] for row in given]
    right = sum(row["label"] == truth["stars"] for row, truth in zip(read, given, strict=True))
    assert right > 40  # it has learned from them
    assert not list(Path().glob(".*.part"))


def test_predict_reads_a_text_a_line_or_another_column(workshop: Path) -> None:
    Path("texts.txt").write_text("good film\nbad film\n")
    result = call("predict", "runs/tiny", "--file", "texts.txt", "--format", "csv")
    assert [row["text"] for row in csv.DictReader(result.stdout.splitlines())] == ["good film", "bad film"]
    result = call("predict", "runs/tiny", "--file", "train.csv", "--column", "stars", "--out", "answers.jsonl")
    assert result.exit_code == 0, result.output
    assert {json.loads(line)["text"] for line in Path("answers.jsonl").read_text().splitlines()} == {"no", "yes"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/tiny"], "nothing to predict"),
        (["runs/tiny", "x", "--file", "train.csv"], "give texts or --file, not both"),
        (["runs/tiny", "x", "--column", "y"], "--column names a column of --file"),
        (["runs/tiny", "x", "--out", "o.txt"], "end it in .csv or .jsonl"),
        (["runs/tiny", "x", "--out", "nowhere/o.csv"], "there is no folder nowhere"),
        (["runs/tiny", "x", "--out", "o.csv", "--format", "table"], "--format table goes to the terminal"),
        (["runs/tiny", "--file", "nothing.csv"], "nothing.csv"),
        (["runs/tiny", "train.csv"], "For its rows give --file train.csv"),
        (["runs/tiny", "--file", "train.csv", "--column", "reviwe"], "Did you mean 'review'?"),
        (["runs/tiny", "x", "--set", "num_beams=4"], "a classification task has no options that say how"),
    ],
)
def test_predict_says_what_it_can_not_do(workshop: Path, arguments: list[str], message: str) -> None:
    assert message in told("predict", *arguments)
    assert not Path("o.txt").exists()


def test_predict_that_fails_leaves_the_old_file(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterlab import predicting

    def breaks(*_: object) -> Iterator[dict[str, Any]]:
        yield {"text": "a", "label": "no", "score": 1.0, "probabilities": {"no": 1.0}}
        raise errors.DataError("the disk is gone")

    Path("kept.csv").write_text("old")
    monkeypatch.setattr(predicting.Predictor, "predict", breaks)
    assert "the disk is gone" in told("predict", "runs/tiny", "x", "--out", "kept.csv")
    assert Path("kept.csv").read_text() == "old"
    assert not list(Path().glob(".*.part"))


def test_show_tells_what_a_run_and_an_adapter_hold(workshop: Path) -> None:
    output = call("show", "runs/tiny").output
    assert output.startswith(Path("runs/tiny/report.md").read_text())
    facts = call("show", "runs/tiny/adapter").output
    assert "lora" in facts
    assert "no, yes" in facts
    assert "r=4" in facts
    assert "parameters in" in facts
    assert re.search(r"tensors, [1-9][\d.]* kB", facts)
    assert output.endswith(facts)
    assert "Did you mean 'runs/tiny'?" in told("show", "runs/tny")


def test_show_looks_for_the_files_that_save_writes() -> None:
    from adapterlab import adapter_folder
    from adapterlab.cli import show

    for name in ("CONFIG", "WEIGHTS", "EXTRA"):
        assert getattr(show, name) == getattr(adapter_folder, name)


def test_show_tells_of_a_run_that_has_not_ended_and_of_damage(workshop: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("version: 1\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    result = call("show", str(tmp_path))
    assert 'its run has not ended; last: {"step": 2}' in result.stderr
    assert "--resume auto" in result.stderr
    broken = tmp_path / "adapter"
    broken.mkdir()
    (broken / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    assert "missing" in call("show", str(broken)).output
    whole = (workshop / "runs/tiny/adapter/adapter_model.safetensors").read_bytes()
    (broken / "adapter_model.safetensors").write_bytes(whole[:20])
    assert "is damaged" in told("show", str(broken))
