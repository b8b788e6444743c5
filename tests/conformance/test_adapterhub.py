"""The `adapters` library (AdapterHub) and we compute the same; its folders become ours, and ours its, tensor by tensor.

What it computed and saved is in adapterhub/fixtures; adapterhub/README.md says how it got there.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import peft
import pytest
import torch
import transformers as T
from safetensors.torch import load_file

import adapterlab

FIXTURES = Path(__file__).parent / "adapterhub" / "fixtures"
FOLDERS = sorted(path.parent for path in FIXTURES.glob("*/*/adapter_config.json"))
COPY = ".prefix_tuning.pool."  # in the names under which the library saves a prefix once more for each layer

# What the library computes otherwise than the papers, or we can't.
REFUSED = {
    ("deberta-v2", "prefix_tuning"): "prefix tuning doesn't work on deberta-v2 here: its disentangled attention",
    ("deberta-v2", "prefix_tuning_flat"): "prefix tuning doesn't work on deberta-v2 here: its disentangled attention",
}


def label(folder):
    return f"{folder.parent.name}-{folder.name}"


CONVERTED = [f for f in FOLDERS if (f.parent.name, f.name) not in REFUSED]


@functools.cache
def _weights(architecture):
    return {
        name: t.float() for name, t in load_file(FIXTURES / architecture / "backbone" / "model.safetensors").items()
    }


@functools.cache
def _states(architecture):
    return load_file(FIXTURES / architecture / "states.safetensors")


def backbone(architecture, attention=None):
    """The library's backbone, in the installed transformers; every weight of it."""
    config = T.AutoConfig.from_pretrained(FIXTURES / architecture / "backbone")
    config._name_or_path = ""
    model = T.AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval()
    missing, unexpected = model.load_state_dict(_weights(architecture), strict=False)
    assert not unexpected
    assert not [name for name in missing if name not in dict(model.named_buffers())]
    return model


def compare(model, architecture, case):
    """Per-layer hidden states and logits, within 1e-5 of the library's, and within as much of their size.

    Beside float64 a fixture's own rounding is 1.1e-5, where a state is 1.05.
    """
    given = {name: _states(architecture)[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        out = model(**given, output_hidden_states=True)
    expected = {
        name.removeprefix(f"{case}/"): t for name, t in _states(architecture).items() if name.startswith(f"{case}/")
    }
    assert len(expected) >= 3, "logits and two layers at least"
    for name, tensor in expected.items():
        attribute, _, index = name.partition(".")
        ours = getattr(out, attribute)
        torch.testing.assert_close(ours[int(index)] if index else ours, tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", sorted(path.name for path in FIXTURES.iterdir()))
def test_the_backbones_agree(architecture):
    compare(backbone(architecture), architecture, "backbone")


@pytest.mark.parametrize(
    ("folder", "attention"),
    [(f, None) for f in CONVERTED] + [(f, "eager") for f in CONVERTED if "prefix" in f.name],
    ids=lambda given: label(given) if isinstance(given, Path) else str(given),
)
def test_its_folder_converted_and_loaded_gives_its_hidden_states(tmp_path, folder, attention):
    done = adapterlab.convert(folder, tmp_path / "ours")
    assert done.to == "adapterlab"
    model = adapterlab.load(backbone(folder.parent.name, attention), done.folder)
    compare(model, folder.parent.name, folder.name)


@pytest.mark.parametrize("folder", CONVERTED, ids=label)
def test_converted_back_it_is_what_the_library_wrote(tmp_path, folder):
    adapterlab.convert(folder, tmp_path / "ours")
    done = adapterlab.convert(tmp_path / "ours", tmp_path / "theirs")
    assert done.to == "adapterhub"
    same_adapter(folder, done.folder)


@pytest.mark.parametrize("folder", [f for f in CONVERTED if f.name != "prefix_tuning"], ids=label)
def test_loaded_and_saved_by_us_it_still_is(tmp_path, folder):
    adapterlab.convert(folder, tmp_path / "ours")
    model = adapterlab.load(backbone(folder.parent.name), tmp_path / "ours")
    adapterlab.save(model, tmp_path / "saved")
    adapterlab.convert(tmp_path / "saved", tmp_path / "theirs", name="mine")
    same_adapter(folder, tmp_path / "theirs", heads=(folder / "head_config.json").is_file())


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_plain_peft_reads_a_converted_lora(tmp_path, architecture):
    adapterlab.convert(FIXTURES / architecture / "lora-all", tmp_path / "ours")
    model = peft.PeftModel.from_pretrained(backbone(architecture), tmp_path / "ours")
    compare(model, architecture, "lora-all")


def same_adapter(expected, given, heads=True):
    """Names, shapes and values of all tensors; every field of the configs."""
    config, theirs = _json(given / "adapter_config.json"), _json(expected / "adapter_config.json")
    wanted = {k: t for k, t in load_file(expected / "adapter.safetensors").items() if COPY not in k}
    flexible = theirs["model_class"].endswith("AdapterModel")
    if theirs["config"].get("flat") is False:  # the MLP is folded away, as by the library's eject_prefix_tuning
        wanted = {next(iter(wanted)).split(".control_trans")[0] + ".control_trans": None}
        theirs["config"] |= {"flat": True, "bottleneck_size": 512}
    if flexible or not heads:
        config.pop("model_class"), theirs.pop("model_class")
    assert config == theirs
    tensors = load_file(given / "adapter.safetensors")
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensor is None or torch.equal(tensors[name], tensor), name
    if not heads or not (expected / "head_config.json").is_file():
        return
    tensors, wanted = load_file(given / "model_head.safetensors"), load_file(expected / "model_head.safetensors")
    if flexible:  # it comes back as the head of transformers' class, which the library makes its own when it loads it
        assert sorted(t.shape for t in tensors.values()) == sorted(t.shape for t in wanted.values())
        return
    assert _json(given / "head_config.json") == _json(expected / "head_config.json")
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize(("cell", "message"), REFUSED.items(), ids="-".join)
def test_what_has_no_counterpart_is_refused(tmp_path, cell, message):
    with pytest.raises(adapterlab.AdapterLabError, match=message):
        adapterlab.convert(FIXTURES.joinpath(*cell), tmp_path / "ours")
    assert not list(tmp_path.iterdir())


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))
