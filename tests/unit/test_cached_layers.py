"""`optim.cache_lower_layers`: the layers below the adapter run once for each row, and the same is learned."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
from conftest import CONFIGS
from language_workshop import language_recipes
from safetensors.torch import load_file
from tiny_workshop import WORDS, furnish
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from typer.testing import CliRunner

import adapterlab
from adapterlab.cli.app import app
from adapterlab.errors import BackboneError, ConfigError, RunFolderError
from adapterlab.estimating import estimate
from adapterlab.training.callbacks import Narrator, read_metrics
from adapterlab.training.lower_layers import Skipping

CACHED, TOP = "optim.cache_lower_layers=true", "adapter.layers=[1]"
SENTENCES = [f"{WORDS[8 + n % 5]} film was {WORDS[n % 8]}{' truly' * (n % 4)}" for n in range(24)]
ROWS = {
    "multiple_choice": [
        {"question": text, "choices": [*WORDS[: 2 + n % 3]], "answer": n % 2} for n, text in enumerate(SENTENCES)
    ],
    "similarity": [
        {"text": text, "text_pair": WORDS[n % 8], **({"negative": "the film"} if n % 2 else {})}
        for n, text in enumerate(SENTENCES)
    ],
    "tagging": [
        {"tokens": text.split(), "tags": ["B-X" if word in WORDS[:8] else "O" for word in text.split()]}
        for text in SENTENCES
    ],
}


@pytest.fixture(scope="module")
def _folder(tmp_path_factory):
    folder = furnish(tmp_path_factory.mktemp("cached"))
    config = folder / "model" / "config.json"
    still = json.loads(config.read_text()) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps(still))
    for task, rows in ROWS.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def workshop(_folder, monkeypatch):
    monkeypatch.chdir(_folder)
    return _folder


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return language_recipes(tmp_path_factory.mktemp("language"))


@pytest.fixture
def ran(monkeypatch):
    """(layer, whether training) of each attention of a BERT or GPT-2 that ran."""
    seen = []
    for kind in (BertSelfAttention, GPT2Attention):

        def forward(self, *args, forward=kind.forward, **kwargs):
            seen.append((self.layer_idx, self.training))
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", forward)
    return seen


@pytest.fixture
def files(monkeypatch):
    """The temporary files that were opened."""
    opened, kind = [], tempfile.TemporaryFile

    def recorded(*args, **kwargs):
        opened.append(kind(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", recorded)
    return opened


def train(*changes, recipe="tiny.yaml", name="run", **options):
    changes = (TOP, "log.plot=false", *changes, f"run.dir=runs/{name}")
    return adapterlab.run(recipe, *changes, **{"replace": True, **options})


def learned(name):
    return load_file(Path("runs", name, "adapter", "adapter_model.safetensors"))


def both_ways(ran, *changes, recipe="tiny.yaml"):
    """Train with and without a cache; the run's histories and adapters must be the same."""
    plain = train(*changes, recipe=recipe, name="plain")
    assert (0, True) in ran
    ran.clear()
    result = train(*changes, CACHED, recipe=recipe, name="cached")
    steps = ran.count((1, True))
    assert steps > 0
    assert (0, True) not in ran, "lower layers don't run while training"
    histories = [read_metrics(Path("runs", name, "metrics.jsonl")) for name in ("plain", "cached")]
    assert len(histories[0]) == len(histories[1])
    for row, other in zip(*histories, strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-5)
    assert result.metrics == pytest.approx(plain.metrics, rel=1e-4)
    expected, found = learned("plain"), learned("cached")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert (found[key] - tensor).abs().max() <= 1e-4 * tensor.abs().max() + 1e-6, key
    return steps


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["optim.precision=bf16"],
        ["optim.gradient_checkpointing=true", "optim.accumulate=2", "optim.batch_size=7"],
        ["adapter.method=bottleneck"],
        ["adapter.modules_to_save=[pooler]", "adapter.dropout=0"],
    ],
)
def test_a_bert_learns_the_same(workshop, ran, changes):
    both_ways(ran, "optim.epochs=3", *changes)


@pytest.mark.parametrize("task", ROWS)
def test_rows_of_several_texts_and_of_tags_too(workshop, ran, task):
    both_ways(
        ran, "optim.epochs=2", f"task={{type: {task}}}", f"data={{train: {task}.jsonl, eval: 0.25, max_length: 16}}"
    )


@pytest.mark.parametrize(
    ("name", "changes"), [("instruction", []), ("instruction", ["task.packing=true"]), ("causal_lm", [])]
)
def test_a_gpt2_learns_the_same(workshop, language, ran, name, changes):
    assert both_ways(ran, "optim.max_steps=9", "eval.every=3", *changes, recipe=language[name]) > 8


@pytest.mark.parametrize("architecture", ["distilbert", "deberta-v2", "modernbert", "gpt2", "llama"])
def test_every_kind_of_layer_begins_in_the_middle(workshop, architecture):
    more = {"conv_kernel_size": 3, "conv_act": "gelu"} if architecture == "deberta-v2" else {}  # between two layers
    write_backbone(architecture, **more)
    for name, cache in (("plain", "false"), ("cached", "true")):
        train(f"model.name={architecture}", "optim.epochs=1", f"optim.cache_lower_layers={cache}", name=name)
    expected, found = learned("plain"), learned("cached")
    for key, tensor in expected.items():
        assert (found[key] - tensor).abs().max() <= 1e-4 * tensor.abs().max() + 1e-6, key


def write_backbone(architecture, folder=None, **changes):
    config = CONFIGS[architecture]()
    for key in [key for key in config.to_dict() if "drop" in key and isinstance(getattr(config, key), float)]:
        setattr(config, key, 0.0)
    for key, value in {"vocab_size": len(WORDS) + 5, "pad_token_id": 0, **changes}.items():
        setattr(config, key, value)
    transformers.set_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder or architecture)
    side = "left" if architecture == "gpt2" else "right"
    transformers.BertTokenizerFast("vocab.txt", padding_side=side).save_pretrained(folder or architecture)


def test_states_are_given_in_the_form_that_the_layer_was_given():
    states, real = torch.randn(5, 4), torch.tensor([[0, 1, 1], [1, 1, 1]]).bool()
    skipping = Skipping([0, 2])
    first, last = (skipping(place, lambda hidden, mask: hidden) for place in (0, 1))
    padded, packed = torch.randn(2, 3, 4), torch.randn(1, 5, 4)
    assert last(padded, None) is padded, "without states it runs"
    skipping.states, skipping.real = states, real
    assert first(hidden_states=padded) is padded
    given, nothing = last(padded, None)
    assert nothing is None
    assert torch.equal(given[real], states)
    assert given[0, 0].tolist() == [0, 0, 0, 0]
    assert torch.equal(last(packed, None)[0], states[None]), "packed without padding, it stays so"


def test_a_resumed_run_is_the_run_it_would_have_been(workshop, ran, monkeypatch):
    train(CACHED, "optim.epochs=4", name="whole")

    def die(self, args, state, control, **kwargs):
        if state.global_step == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Narrator, "on_step_end", die)
        with pytest.raises(KeyboardInterrupt):
            train(CACHED, "optim.epochs=4", name="stopped")
    ran.clear()
    train(CACHED, "optim.epochs=4", name="stopped", resume="auto", replace=False)
    assert (0, True) not in ran
    whole, again = learned("whole"), learned("stopped")
    assert all((again[key] - tensor).abs().max() < 1e-5 for key, tensor in whole.items())


def test_the_disk_use_is_said_and_the_file_is_gone_afterwards(workshop, files, monkeypatch):
    found = estimate("tiny.yaml", TOP, CACHED, "run.dir=runs/cached")
    assert estimate("tiny.yaml", TOP).cache_bytes == 0
    train("optim.epochs=1", name="plain")
    sizes, step = set(), Narrator.on_step_end

    def measured(self, *args, **kwargs):
        sizes.add(os.fstat(files[-1].fileno()).st_size)
        step(self, *args, **kwargs)

    monkeypatch.setattr(Narrator, "on_step_end", measured)
    result = train(CACHED, "optim.epochs=1", name="cached")
    assert sizes == {found.cache_bytes}
    said = f"{found.cache_bytes / 1000:.1f} kB in runs/cached until training ends"
    [note] = [note for note in result.notes if "optim.cache_lower_layers" in note]
    assert note.startswith("The lower 1 of 2 layers are computed once, without their dropout")
    assert said in note
    assert files
    assert all(file.closed for file in files)
    left = [sorted(path.name for path in Path("runs", name).iterdir()) for name in ("plain", "cached")]
    assert left[0] == left[1]
    for command, told in ((["train", "--dry-run"], said), (["estimate"], "cache on disk")):
        changes = ["tiny.yaml", TOP, CACHED, "run.dir=runs/cached", "--replace"][: 5 if "train" in command else 4]
        done = CliRunner().invoke(app, [*command, *changes], prog_name="adapterlab")
        assert told in re.sub(r"\s+", " ", done.output), done.output


def test_nothing_stays_of_a_run_that_fails(workshop, files, monkeypatch):
    def die(self, args, state, control, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Narrator, "on_step_end", die)
    with pytest.raises(KeyboardInterrupt):
        train(CACHED, name="failed")
    assert files[-1].closed
    assert not Path("runs/failed").exists()


def test_a_disk_without_room_is_refused_before_anything_is_written(workshop, files, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    wanted = (
        r"optim.cache_lower_layers: the output of the lower 1 of 2 layers takes [\d.]+ kB \(\d+ tokens of 128 bytes\), "
        r"and the disk of run.dir 'runs/full' has 5.0 kB left. Make room, set run.dir"
    )
    with pytest.raises(RunFolderError, match=wanted):
        train(CACHED, name="full")
    assert not files
    assert not Path("runs/full").exists()


def test_a_disk_that_fills_up_meanwhile_is_told(workshop, monkeypatch):
    kind = tempfile.TemporaryFile

    def full(*args, **kwargs):
        file = kind(*args, **kwargs)
        file.write = lambda content: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(RunFolderError, match=r"can't be written in 'runs/full': No space left on device"):
        train(CACHED, name="full")
    assert not Path("runs/full").exists()


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        (
            ["adapter.layers=[0, 1]"],
            r"bert.encoder.layer.0.attention.self.query.lora_A.default.weight' \(and 11 more\)",
        ),
        (["adapter={method: prefix, num_virtual_tokens: 4}"], r"bert.prefix_encoder.default.embedding.weight'"),
        (["adapter={method: prompt, num_virtual_tokens: 4}"], r"virtual_tokens.default.embedding.weight'"),
        (["adapter.modules_to_save=[word_embeddings]"], r"bert.embeddings.word_embeddings.weight'"),
    ],
)
def test_what_is_trained_below_is_named(workshop, changes, path):
    with pytest.raises(ConfigError, match=rf"nothing to cache, for '{path} is trained.*adapter.layers=\[1\]"):
        train(CACHED, *changes)


def test_layers_that_hand_on_more_than_hidden_states_are_refused(workshop, monkeypatch):
    noted, attend = {}, BertSelfAttention.forward

    def forward(self, hidden_states, *args, **kwargs):
        noted[self.layer_idx] = hidden_states.detach()
        if self.layer_idx:
            hidden_states = hidden_states + noted.pop(0, 0)
        return attend(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(BertSelfAttention, "forward", forward)
    with pytest.raises(BackboneError, match="upper layers of BertForSequenceClassification compute something else"):
        train(CACHED)


def test_what_cant_be_cached_is_refused(workshop, language, monkeypatch):
    for name, error, message in (
        ("masked_lm", ConfigError, "masked_lm task reads other tokens of a row in each epoch"),
        ("streamed", ConfigError, "a stream's rows are read once"),
        ("seq2seq", BackboneError, "T5ForConditionalGeneration is an encoder-decoder"),
    ):
        with pytest.raises(error, match=f"optim.cache_lower_layers: .*{message}"):
            train(CACHED, recipe=language[name])
    write_backbone("opt", "dropping", layerdrop=0.1)
    with pytest.raises(BackboneError, match=r"leaves out layers by chance.*layerdrop=0.1"):
        train(CACHED, "model.name=dropping")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BackboneError, match=r"one process on one device"):
        adapterlab.run("tiny.yaml", TOP, CACHED, dry_run=True)
