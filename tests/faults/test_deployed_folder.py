"""A deployed folder gives the model back to the bit, or an error that says which file; nothing half-written stays."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from conftest import CONFIGS
from safetensors.torch import load_file, save_file

import adapterlab
from adapterlab.serving import manifest

pytestmark = pytest.mark.filterwarnings("ignore:.*TypedStorage")


@pytest.mark.parametrize("architecture", [name for name in CONFIGS if name != "invented"])
@pytest.mark.parametrize("small", [True, False])
def test_what_is_loaded_is_what_was_saved(tiny, logits, tmp_path, architecture, small):
    model = tiny(architecture)
    model.config.id2label = {0: "x", 1: "y", 2: "z"}
    if small:
        adapterlab.quantize(model)
    expected = logits(model)
    assert adapterlab.save_deployed(model, tmp_path / "out") == tmp_path / "out"
    again = adapterlab.load_deployed(tmp_path / "out")
    assert type(again) is type(model)
    assert torch.equal(logits(again), expected)
    assert again.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert not any(p.is_meta for p in (*again.parameters(), *again.buffers()))
    adapterlab.save_deployed(again, tmp_path / "again")
    assert torch.equal(logits(adapterlab.load_deployed(tmp_path / "again")), expected)
    assert {entry.name for entry in tmp_path.iterdir()} == {"again", "out"}


@pytest.mark.parametrize("small", [True, False])
def test_a_language_model_generates_the_same_and_holds_its_words_once(tiny, batch, tmp_path, small):
    model = tiny("gpt2", "CausalLM").eval()
    if small:
        adapterlab.quantize(model)
    asked = {"input_ids": batch["input_ids"][:, :4], "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**asked)
    adapterlab.save_deployed(model, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    assert "lm_head.weight" not in load_file(file)
    again = adapterlab.load_deployed(tmp_path / "out")
    assert torch.equal(again.generate(**asked), expected)
    assert again.lm_head.weight.data_ptr() == again.transformer.wte.weight.data_ptr()


@pytest.fixture
def folder(tiny, tmp_path):
    adapterlab.save_deployed(adapterlab.quantize(tiny("bert")), tmp_path / "out")
    return tmp_path / "out"


def refused(folder, *words):
    with pytest.raises(adapterlab.AdapterLabError) as refusal:
        adapterlab.load_deployed(folder)
    for word in words:
        assert word in str(refusal.value)


def test_a_missing_file(folder):
    (folder / "config.json").unlink()
    refused(folder, "lacks config.json")


def test_a_file_cut_short(folder):
    file = folder / "int8.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "int8.safetensors", "cut short")


@pytest.mark.parametrize("name", ["int8.safetensors", "config.json"])
def test_a_changed_byte(folder, name):
    file = folder / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(bytes(content))
    refused(folder, name, "sha256 differs")


def test_tensors_of_another_shape_missing_or_too_many(folder):
    tensors = load_file(folder / "int8.safetensors")
    name = "bert.encoder.layer.0.attention.self.query"
    wrong = {key: tensor for key, tensor in tensors.items() if key != f"{name}.scale"}
    wrong |= {f"{name}.weight": tensors[f"{name}.weight"][:-1].clone(), "stranger": torch.zeros(2)}
    wrong[f"{name}.bias"] = tensors[f"{name}.bias"].to(torch.int8)
    save_file(wrong, folder / "int8.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "adapterlab.json").read_text())
    manifest.finish(folder, {key: value for key, value in said.items() if key != "files"})
    refused(
        folder, f"{name}.scale is missing", "stranger is unexpected", "has the shape (31, 32), not (32, 32)", "int8"
    )


def test_a_newer_format_and_hostile_manifests(folder):
    said = json.loads((folder / "adapterlab.json").read_text())

    def write(**changes):
        (folder / "adapterlab.json").write_text(json.dumps(said | changes))

    write(format=2, adapterlab="9.9.9")
    refused(folder, "format 2", "9.9.9", "upgrade")
    write(files={"../../etc/passwd": {"size": 1, "sha256": ""}} | said["files"])
    refused(folder, "outside of the folder")
    write(files={})
    refused(folder, "doesn't list")
    write(**{"class": "os.system"})
    refused(folder, "'os.system' is no model of transformers")
    write(**{"class": "AutoModel"})
    refused(folder, "'AutoModel' is no model")
    write(quantized={"linears": ["bert.encoder.layer.9.query"]})
    refused(folder, "has no module 'bert.encoder.layer.9.query'")
    write(scheme="int4")
    refused(folder, "unknown scheme 'int4'", "int8")
    write(scheme=["int8"])
    refused(folder, "unknown scheme")
    write(files=said["files"] | {"config.json": 5})
    refused(folder, "files.config.json must have a size")
    write(files={name: known for name, known in said["files"].items() if name != "config.json"})
    refused(folder, "doesn't list")
    write(quantized={"linears": 5})
    refused(folder, "quantized.linears must be a list")
    write(quantized={"linears": ["bert.encoder.layer.0.output.LayerNorm"]})
    refused(folder, "'bert.encoder.layer.0.output.LayerNorm', no linears")
    write(tied=["x"])
    refused(folder, "tied must be a mapping")
    (folder / "adapterlab.json").write_text("{")
    refused(folder, "can't be read as JSON")


def test_what_is_no_deployed_folder(tmp_path, tiny):
    refused(tmp_path / "nothing", "no deployed folder", "adapterlab quantize RUN OUT")
    adapterlab.save(adapterlab.attach(tiny("bert"), "lora"), tmp_path / "adapter")
    refused(tmp_path / "adapter", "no deployed folder", "adapter_config.json")


def test_what_is_said_beside_cant_change_what_the_folder_is(tiny, logits, tmp_path):
    model = adapterlab.quantize(tiny("bert"))
    adapterlab.save_deployed(model, tmp_path / "out", about={"scheme": "v2", "class": "X", "mine": 1})
    assert torch.equal(logits(adapterlab.load_deployed(tmp_path / "out")), logits(model))
    assert json.loads((tmp_path / "out" / "adapterlab.json").read_text())["mine"] == 1


def test_an_adapter_beside_a_backbones_weights_is_an_adapter(tiny, tmp_path):
    model = tiny("bert")
    model.save_pretrained(tmp_path)
    adapterlab.save(adapterlab.attach(model, "lora"), tmp_path)
    refused(tmp_path, "no deployed folder")


def test_transformers_alone_doesnt_take_bytes_for_numbers(folder):
    from transformers import AutoModelForSequenceClassification

    with pytest.raises(OSError, match="no file named"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_class_of_somebody_elses_is_refused(tiny, tmp_path):
    with pytest.raises(adapterlab.AdapterLabError, match="is no model of transformers"):
        adapterlab.save_deployed(tiny("invented"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_adapters_are_refused_and_a_full_folder_too(tiny, folder):
    model = adapterlab.attach(tiny("bert"), "lora")
    with pytest.raises(adapterlab.AdapterLabError, match=r"has adapters \(default\).*merge"):
        adapterlab.save_deployed(model, folder.parent / "other")
    assert not (folder.parent / "other").exists()
    with pytest.raises(adapterlab.AdapterLabError, match="isn't empty"):
        adapterlab.save_deployed(adapterlab.merge(model), folder)
    adapterlab.load_deployed(folder)


@pytest.mark.parametrize("fails", ["save_file", "write_json"])
def test_a_full_disk_leaves_nothing(tiny, tmp_path, monkeypatch, fails):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"adapterlab.serving.folder.{fails}", full)
    with pytest.raises(adapterlab.AdapterLabError, match="No space left on device"):
        adapterlab.save_deployed(tiny("bert"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="a small file system takes root to mount")
def test_a_really_full_disk_leaves_nothing(tiny, tmp_path):
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting isn't allowed here")
    try:
        with pytest.raises(adapterlab.AdapterLabError, match="can't be written"):
            adapterlab.save_deployed(tiny("bert"), disk / "out")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)
