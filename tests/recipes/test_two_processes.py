"""Tasks that write and tasks on raw text, on two CPU processes: every row counts once, and the same is learned."""

from __future__ import annotations

import json

import pytest
import yaml
from language_workshop import language_recipes
from launching import launch_two

import adapterlab
from adapterlab.predicting import evaluate

NAMES = ("instruction", "seq2seq", "causal_lm", "streamed")
SCRIPT = """
import json, sys, adapterlab
for name in sys.argv[1:]:
    result = adapterlab.run(f"{name}.yaml", "optim.batch_size=2")
    if result is not None:
        with open(f"{name}.json", "a") as file:
            file.write(json.dumps([result.metrics, result.baselines, *result.notes]) + "\\n")
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of four runs on two processes, all of one launch: starting takes longest."""
    folder = tmp_path_factory.mktemp("processes")
    for name, recipe in language_recipes(folder).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "all.py").write_text(SCRIPT)
    launch_two(folder, "all.py", *NAMES)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_measure_and_learn_what_one_does(name, ran):
    told = (ran / f"{name}.json").read_text().splitlines()
    assert len(told) == 1, "one of the processes reports"
    metrics, baselines, *notes = json.loads(told[0])
    measured = evaluate(ran / "runs" / name)
    assert measured.pop("rows") % 2 == (name in ("instruction", "seq2seq")), "an odd number can't be halved"
    assert measured == pytest.approx(metrics, rel=1e-4)
    one = adapterlab.run(ran / f"{name}.yaml", f"run.dir={ran / 'one' / name}")
    assert one.baselines["untouched backbone"] == pytest.approx(baselines["untouched backbone"], rel=1e-4)
    assert metrics["perplexity"] < baselines["untouched backbone"]["perplexity"]
    loose = 0.05 if name in ("instruction", "seq2seq") else 1e-3  # where an epoch ends, rows are shared out otherwise
    assert metrics["perplexity"] == pytest.approx(one.metrics["perplexity"], rel=loose)
    seen = [[note for note in some if "tokens seen in training" in note] for some in (notes, one.notes)]
    assert [note.split()[0] for note in seen[0]] == [note.split()[0] for note in seen[1]]
