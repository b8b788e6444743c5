"""Converting between AdapterHub's folders and ours: what is refused, what the command says, what is left behind.

That both compute the same is in conformance/test_adapterhub.py, with folders that the library wrote.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import randomize
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import adapterlab
from adapterlab.cli.app import app

FIXTURES = Path(__file__).parents[1] / "conformance" / "adapterhub" / "fixtures"


@pytest.fixture
def theirs(tmp_path):
    """theirs("bert/seq_bn", scaling=2.0, ...) copies a folder of the library's, with fields of its config changed."""

    def copy(case, **changes):
        folder = tmp_path / "theirs"
        shutil.copytree(FIXTURES / case, folder)
        edit(folder / "adapter_config.json", lambda fields: fields["config"].update(changes))
        return folder

    return copy


@pytest.fixture
def ours(tiny, tmp_path):
    """ours("bert", "lora", head="...", r=3) attaches, gives random weights and saves."""

    def save(architecture, method, head="SequenceClassification", **options):
        model = adapterlab.attach(tiny(architecture, head), method, **options)
        randomize(model)
        return adapterlab.save(model, tmp_path / "ours")

    return save


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(source, tmp_path, **options):
    """Return the error; nothing may have been written."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(adapterlab.AdapterLabError) as error:
        adapterlab.convert(source, tmp_path / "new", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return str(error.value)


# --- what AdapterHub has and we don't


@pytest.mark.parametrize(
    ("case", "field", "value", "why"),
    [
        ("seq_bn", "inv_adapter", "nice", "no invertible adapters"),
        ("seq_bn", "use_gating", True, "no gates"),
        ("seq_bn", "phm_layer", True, "no hypercomplex layers"),
        ("seq_bn", "ln_before", True, "convertible is False"),
        ("seq_bn", "ln_after", True, "convertible is False"),
        ("seq_bn", "original_ln_after", False, "convertible is True"),
        ("seq_bn", "cross_adapter", True, "cross-attention"),
        ("seq_bn", "residual_before_ln", "post_add", "convertible is True"),
        ("seq_bn", "scaling", "channel", "a number or 'learned'"),
        ("seq_bn", "stochastic_depth", 0.1, "training only"),
        ("seq_bn", "non_linearity", "rleu", "Did you mean 'relu'"),
        ("seq_bn", "non_lineraity", "relu", "Did you mean 'non_linearity'"),
        ("seq_bn", "dropout", "much", "float or int is needed"),
        ("seq_bn", "architecture", "union", "bottleneck adapters, LoRA, prefix tuning"),
        ("lora", "use_gating", True, "no gates"),
        ("lora", "composition_mode", "scale", "LoRA adds"),
        ("lora", "use_dora", True, "convertible is False"),
        ("lora", "vera_d", 0.1, "convertible is None"),
        ("lora", "attn_matrices", ["q", "o"], "'q', 'k', 'v'"),
        ("lora", "r", 4, "has the shape"),
        ("lora", "r", True, "int is needed"),
        ("prefix_tuning_flat", "use_gating", True, "no gates"),
        ("prefix_tuning_flat", "leave_out", [0], "convertible is []"),
        ("prefix_tuning_flat", "dropout", 0.1, "training only"),
        ("prefix_tuning_flat", "prefix_length", 7, "the prefix has the shape"),
    ],
)
def test_a_field_without_a_counterpart_is_named(theirs, tmp_path, case, field, value, why):
    message = refused(theirs(f"bert/{case}", **{field: value}), tmp_path)
    assert f"{field}={value!r}" in message or f"{field}: " in message or f"activation '{value}'" in message
    assert why in message
    assert "adapter_config.json" in message


def test_all_such_fields_are_named_at_once(theirs, tmp_path):
    message = refused(theirs("bert/seq_bn", use_gating=True, ln_after=True, inv_adapter="glow"), tmp_path)
    assert all(word in message for word in ("use_gating=True", "ln_after=True", "inv_adapter='glow'"))


def test_another_architecture_is_refused_with_those_that_are_known(theirs, tmp_path):
    folder = theirs("bert/seq_bn")
    edit(folder / "adapter_config.json", lambda fields: fields.update(model_type="gptj"))
    message = refused(folder, tmp_path)
    assert "'gptj'" in message
    assert all(known in message for known in ("bert", "distilbert", "gpt2", "llama", "bart"))


def test_adapters_at_attention_of_albert_are_refused(theirs, tmp_path):
    assert "mh_adapter=True: on albert" in refused(theirs("albert/seq_bn", mh_adapter=True), tmp_path)


def test_tensors_that_do_not_fit_the_config_are_named(theirs, tmp_path):
    folder = theirs("bert/seq_bn")
    tensors = load_file(folder / "adapter.safetensors")
    tensors = {name: t for name, t in tensors.items() if "layer.1" in name and "adapter_up.bias" not in name}
    save_file(tensors | {"bert.invertible_adapters.mine.F.0.bias": torch.zeros(3)}, folder / "adapter.safetensors")
    message = refused(folder, tmp_path)
    assert "missing: all of layer 0" in message
    assert "missing: encoder.layer.1.output.adapters.adapter_up.bias" in message
    assert "unexpected: invertible_adapters.mine.F.0.bias [3]" in message


def test_bottlenecks_of_different_sizes_are_refused(theirs, tmp_path):
    folder = theirs("bert/seq_bn", reduction_factor={"0": 16, "default": 8})
    tensors = load_file(folder / "adapter.safetensors")
    for name, tensor in tensors.items():
        if "layer.1" in name and tensor.shape != (32,):
            tensors[name] = torch.cat([tensor, tensor], dim=-1 if "up" in name else 0)
    save_file(tensors, folder / "adapter.safetensors")
    assert "reduction_factor={'0': 16, 'default': 8}" in refused(folder, tmp_path)


def test_a_pickle_is_never_loaded_and_the_fix_works(theirs, tmp_path):
    folder = theirs("bert/prefix_tuning_flat")
    tensors = load_file(folder / "adapter.safetensors")
    (folder / "adapter.safetensors").unlink()
    (folder / "pytorch_adapter.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    message = refused(folder, tmp_path)
    assert "is never loaded" in message

    torch.save(tensors, folder / "pytorch_adapter.bin")
    line = message.partition('python -c "')[2].removesuffix('"')
    exec(line)
    assert adapterlab.convert(folder, tmp_path / "new").method == "prefix"


def test_a_file_without_tensors_is_named(theirs, tmp_path):
    folder = theirs("bert/seq_bn")
    save_file({}, folder / "adapter.safetensors")
    assert "holds no adapter" in refused(folder, tmp_path)


def test_a_damaged_file_is_named(theirs, tmp_path):
    folder = theirs("bert/seq_bn")
    (folder / "adapter.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert "adapter.safetensors is damaged" in refused(folder, tmp_path)
    (folder / "adapter_config.json").write_text("{")
    assert "can't be read as JSON" in refused(folder, tmp_path)


def test_neither_side_s_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no adapter_config.json" in refused(tmp_path / "empty", tmp_path)
    assert "is no folder here" in refused(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty" / "adapter_config.json").write_text('{"r": 8}')
    assert "neither AdapterHub's" in refused(tmp_path / "empty", tmp_path)


# --- older versions of the library


def test_alpha_of_old_loras_is_read_as_the_library_reads_it(theirs, tmp_path):
    folder = theirs("bert/lora")  # r=3, alpha=7
    edit(folder / "adapter_config.json", lambda fields: fields.update(version="adapters.1.0.1"))
    done = adapterlab.convert(folder, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "adapter_config.json").read_text())["lora_alpha"] == 3
    assert "alpha=7 is read as 3" in done.notes[0]


def test_invertible_adapters_that_old_task_adapters_only_name(theirs, tmp_path):
    folder = theirs("bert/seq_bn", inv_adapter="nice", inv_adapter_reduction_factor=2, invertible_adapter=None)
    edit(folder / "adapter_config.json", lambda fields: fields.update(type="text_task"))
    assert adapterlab.convert(folder, tmp_path / "new").method == "bottleneck"


# --- heads


def test_a_head_that_does_not_map_is_left_out_and_said(theirs, tiny, tmp_path):
    folder = theirs("bert/flex-head")
    edit(folder / "head_config.json", lambda fields: fields["config"].update(use_pooler=False))
    done = adapterlab.convert(folder, tmp_path / "new")
    assert "of type 'classification' with layers=1" in done.notes[0]
    assert "left out" in done.notes[0]
    names = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert not [name for name in names if "classifier" in name]


def test_without_a_head_the_models_own_stays(theirs, tiny, tmp_path):
    adapterlab.convert(theirs("bert/lora"), tmp_path / "new")
    model = tiny("bert", "TokenClassification")
    before = model.classifier.weight.clone()
    adapterlab.load(model, tmp_path / "new")
    assert torch.equal(model.classifier.weight, before)


def test_labels_travel(theirs, tiny, tmp_path):
    adapterlab.convert(theirs("bert/seq_bn"), tmp_path / "new")
    model = adapterlab.load(tiny("bert"), tmp_path / "new")
    assert model.config.id2label == {0: "bad", 1: "so-so", 2: "good"}


def test_a_language_models_head_stays_behind(ours, tmp_path):
    done = adapterlab.convert(ours("bert", "bottleneck", head="MaskedLM"), tmp_path / "new")
    assert not (tmp_path / "new" / "head_config.json").exists()
    assert done.model_class == "BertForMaskedLM"


def test_another_kind_of_head_is_left_out_on_the_way_there(ours, tmp_path):
    done = adapterlab.convert(ours("bert", "bottleneck", head="QuestionAnswering"), tmp_path / "new")
    assert "the head, a BertForQuestionAnswering's, is left out" in done.notes[0]
    assert not (tmp_path / "new" / "head_config.json").exists()


# --- what we have and AdapterHub hasn't


@pytest.mark.parametrize(
    ("architecture", "method", "options", "why"),
    [
        ("bert", "prefix", {}, "preserve_positions=False"),
        ("bert", "lora", {}, "no LoRA at encoder.layer.0.attention.output.dense"),
        ("gpt2", "lora", {"target_modules": ["attn.c_proj"]}, "it adapts attn.c_attn, mlp.c_fc, mlp.c_proj"),
        ("bert", "lora", {"target_modules": ["query", "value"], "rank_pattern": {"value": 2}}, "one r and alpha"),
        ("bert", "adalora", {"total_step": 100}, "method 'adalora' has no counterpart"),
        ("bert", "bottleneck", {"modules_to_save": ["pooler"]}, "modules_to_save=['bert.pooler']"),
    ],
)
def test_what_adapterhub_lacks_is_named(ours, tmp_path, architecture, method, options, why):
    assert why in refused(ours(architecture, method, **options), tmp_path)


def test_a_variant_of_lora_is_not_lost_in_silence(ours, tmp_path):
    folder = ours("bert", "lora", target_modules=["query"], use_dora=True)
    assert "use_dora=True: AdapterHub has nothing like it" in refused(folder, tmp_path)


# --- both ways


def back_and_forth(folder, tmp_path, **options):
    adapterlab.convert(folder, tmp_path / "hub", **options)
    adapterlab.convert(tmp_path / "hub", tmp_path / "again")
    return tmp_path / "again"


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2", "llama"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("bottleneck", {"variant": "houlsby", "bottleneck_size": 5}),
        ("bottleneck", {"variant": "pfeiffer", "where": ["attention"], "layers": [-1]}),
        ("bottleneck", {"variant": "scaled_parallel", "leave_out": [-1], "activation": "gelu"}),
        ("prefix", {"num_virtual_tokens": 3, "preserve_positions": True, "prefix_projection": True}),
    ],
)
def test_ours_there_and_back_computes_the_same(ours, tiny, logits, tmp_path, architecture, method, options):
    folder = ours(architecture, method, **options)
    expected = logits(adapterlab.load(tiny(architecture), folder))
    model = adapterlab.load(tiny(architecture), back_and_forth(folder, tmp_path))
    assert torch.equal(logits(model), expected)
    assert not torch.allclose(logits(tiny(architecture)), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("bert", ["query", "key"]),
        ("roberta", ["query", "intermediate.dense"]),
        ("gpt2", ["c_attn"]),
        ("gpt2", ["c_attn", "c_fc", "mlp.c_proj"]),
        ("llama", ["q_proj", "up_proj", "down_proj"]),
    ],
)
@pytest.mark.parametrize("extra", [{}, {"use_rslora": True}, {"layers": [1]}], ids=str)
def test_a_lora_of_ours_there_and_back(ours, tiny, logits, tmp_path, architecture, targets, extra):
    folder = ours(architecture, "lora", r=2, alpha=3, target_modules=targets, **extra)
    expected = logits(adapterlab.load(tiny(architecture), folder))
    model = adapterlab.load(tiny(architecture), back_and_forth(folder, tmp_path))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    if "layers" in extra:
        config = json.loads((tmp_path / "hub" / "adapter_config.json").read_text())["config"]
        assert config["leave_out"] == [0]


def test_pefts_folder_needs_to_be_told_the_class(tiny, logits, tmp_path):
    import peft

    config = peft.LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    theirs = peft.get_peft_model(tiny("bert"), config)
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "peft")
    assert "--model-class" in refused(tmp_path / "peft", tmp_path)
    assert "Did you mean 'BertForSequenceClassification'" in refused(
        tmp_path / "peft", tmp_path, model_class="BertForSequenceClasification"
    )
    folder = back_and_forth(tmp_path / "peft", tmp_path, model_class="BertForSequenceClassification")
    model = adapterlab.load(tiny("bert"), folder)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=0, atol=2e-6)


def test_into_the_bare_model(theirs, tiny, tmp_path):
    folder = theirs("bert/lora")
    adapterlab.convert(folder, tmp_path / "new", model_class="BertModel")
    names = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.encoder.layer.") for name in names)
    adapterlab.convert(tmp_path / "new", tmp_path / "back")
    tensors = load_file(tmp_path / "back" / "adapter.safetensors")
    assert {f"bert.{name}" for name in tensors} == load_file(folder / "adapter.safetensors").keys()
    shutil.rmtree(tmp_path / "new")
    assert "and GPT2Model is none" in refused(folder, tmp_path, model_class="GPT2Model")


# --- the command


def call(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], prog_name="adapterlab")


def test_the_command_says_what_it_did_and_what_to_do_next(tmp_path):
    done = call(FIXTURES / "gpt2" / "prefix_tuning", tmp_path / "new")
    assert done.exit_code == 0, done.output
    assert "note: it gives what the library gives with attn_implementation='eager'" in done.stderr
    assert "prefix adapter for GPT2ForSequenceClassification, in the form of adapterlab" in done.stderr
    assert f"next: adapterlab.load(model, '{tmp_path / 'new'}')" in done.stderr

    back = call(tmp_path / "new", tmp_path / "back", "--to", "adapterhub", "--name", "other")
    assert back.exit_code == 0, back.output
    assert "use_safetensors=True" in back.stderr
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text())["name"] == "other"
    assert [name for name in load_file(tmp_path / "back" / "adapter.safetensors") if ".prefix_tunings.other." in name]


def test_the_command_refuses_what_is_taken_or_makes_no_sense(tmp_path):
    source = FIXTURES / "bert" / "lora"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for arguments, message in (
        ((source, tmp_path / "full"), "isn't empty"),
        ((source, tmp_path / "full" / "notes.txt"), "is a file"),
        ((source, tmp_path / "new", "--to", "adapterhub"), "is in the form of adapterhub already"),
        ((source, tmp_path / "new", "--name", "x"), "gets its name when it is loaded"),
    ):
        done = call(*arguments)
        assert done.exit_code == 2
        assert message in done.stderr
        assert "Traceback" not in done.output
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_is_taken_and_a_failed_write_leaves_nothing(theirs, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    folder = theirs("bert/lora")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapterlab.converting.save_file", full)
    with pytest.raises(adapterlab.AdapterLabError, match="can't be written: No space"):
        adapterlab.convert(folder, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "theirs"]
    monkeypatch.undo()
    adapterlab.convert(folder, tmp_path / "new")
    assert (tmp_path / "new" / "adapterlab.json").is_file()
