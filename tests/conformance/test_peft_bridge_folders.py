"""The bridged methods' folders: plain peft loads ours and we load peft's, with equal keys and logits."""

from __future__ import annotations

import json
import warnings

import peft
import pytest
import torch
from conftest import randomize
from safetensors.torch import load_file

import adapterlab
from adapterlab.adapters import METHODS
from adapterlab.adapters.peft_method import PeftMethod
from adapterlab.errors import AdapterFolderError

CORE = ("ia3", "vera", "oft", "loha", "lokr")
EVERY = [name for name, method in METHODS if isinstance(method, PeftMethod)]
CELLS = [(a, m) for a in ("bert", "albert", "gpt2", "llama", "t5", "invented") for m in CORE] + [
    (a, m) for a in ("bert", "gpt2") for m in EVERY if m not in CORE
]
# What peft says of its own layers, whoever loads them: norms; linears without a bias; machines without nvcc; the next.
OWN_WORDS = ("Unsupported layer type", "Detected that the base layer has no bias", "Failed to load the CUDA extension",
             "Setting boft_n_butterfly_factor to 1",             "Sparse invariant checks")  # fmt: skip
VARIANTS = {
    "ia3": {"target_modules": ["query", "intermediate.dense"], "feedforward_modules": ["intermediate.dense"]},
    "vera": {"r": 8, "target_modules": ["query", "value"], "layers": [1]},
    "oft": {"r": 4},
    "loha": {"rank_pattern": {"attention.self.*": 3}, "alpha_pattern": {"query": 2}},
    "lokr": {"decompose_both": True, "decompose_factor": 4, "rank_pattern": {"query": 2}},
    "boft": {"boft_n_butterfly_factor": 1, "boft_block_size": 8},
    "c3a": {"block_size": 8, "block_size_pattern": {"query": 4}},
    "delora": {"rank_pattern": {"query": 2}, "lambda_pattern": {"query": 3}},
    "gralora": {"hybrid_r": 8},
    "lily": {"stride_A": 2, "layers": [0, 1], "target_modules": ["query", "dense"]},
    "ln_tuning": {"target_modules": ["output.LayerNorm"], "layers": [0]},
    "miss": {"init_weights": "bat", "r": 8},
    "peanut": {"depth": 2},
    "psoft": {"psoft_mag_a": False, "r": 4},
    "randlora": {"sparse": True},
    "road": {"variant": "road_4"},
    "shira": {"random_seed": 3},
    "supertuning": {"r": 4, "lora_alpha": 8.0},
    "tinylora": {"weight_tying": 0.5},
    "unilora": {"save_indices": True},
    "vblora": {"save_only_topk_weights": True, "vector_length": 8},
    "waveft": {"n_frequency_pattern": {"query": 50}, "wavelet_family": "db2"},
}


def attached(tiny, architecture, method, head="SequenceClassification", **options):
    model = adapterlab.attach(tiny(architecture, head), method, **options)
    randomize(model)
    return model


def load_with_peft(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for words in OWN_WORDS:
            warnings.filterwarnings("ignore", message=words)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return peft.PeftModel.from_pretrained(model, folder)


def go_round(tiny, logits, tmp_path, architecture, method, head="SequenceClassification", **options):
    """Ours into peft, peft's into ours: equal logits, and the same tensors in both files."""
    model = attached(tiny, architecture, method, head, **options)
    expected = logits(model)
    adapterlab.save(model, tmp_path / "ours")
    again = adapterlab.load(tiny(architecture, head), tmp_path / "ours")
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=2e-6)
    theirs = load_with_peft(tiny(architecture, head), tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=2e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path / "theirs")
    files = [load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs")]
    assert {k: (t.shape, t.dtype) for k, t in files[0].items()} == {k: (t.shape, t.dtype) for k, t in files[1].items()}
    assert not (tmp_path / "theirs" / "adapterlab.json").exists()
    back = adapterlab.load(tiny(architecture, head), tmp_path / "theirs")
    torch.testing.assert_close(logits(back), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("architecture", "method"),
    [(a, m) for a, m in CELLS if not (a == "gpt2" and METHODS.get(m).conv1d is False)],
)
def test_peft_reads_ours_and_we_read_pefts(tiny, logits, tmp_path, architecture, method):
    go_round(tiny, logits, tmp_path, architecture, method)


@pytest.mark.parametrize("method", [name for name in VARIANTS if name in EVERY])
def test_with_options(tiny, logits, tmp_path, method):
    go_round(tiny, logits, tmp_path, "bert", method, **VARIANTS[method])


@pytest.mark.parametrize("method", ["ia3", "vera", "ln_tuning"])
def test_without_a_head_of_its_own(tiny, logits, tmp_path, method):
    go_round(tiny, logits, tmp_path, "gpt2", method, "CausalLM")


def test_a_projection_that_the_seed_restores(tiny, logits, tmp_path):
    model = attached(tiny, "bert", "vera", save_projection=False)
    folder = adapterlab.save(model, tmp_path)
    assert not any("vera_A" in key for key in load_file(folder / "adapter_model.safetensors"))
    assert torch.equal(logits(adapterlab.load(tiny("bert"), folder)), logits(model))


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (peft.VeraConfig(r=8, target_modules=r".*layer\.1.*(query|value)"), 2),
        (peft.VeraConfig(r=8, target_modules=["query"], layers_to_transform=[0]), 1),
        (peft.IA3Config(target_modules=["key", "output.dense"], feedforward_modules=r".*\d\.output\.dense"), 6),
        (peft.LoKrConfig(r=4, target_modules=["dense"], exclude_modules=["intermediate.dense", "pooler.dense"]), 4),
        (peft.OFTConfig(target_modules="all-linear"), 13),
        (peft.VBLoRAConfig(target_modules=["query"], vector_length=16, num_vectors=8), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, peft.PeftConfig) else "",
)
def test_an_adapter_that_peft_made_and_trained(tiny, logits, train, tmp_path, config, found):
    config.task_type, config.modules_to_save = "SEQ_CLS", ["classifier"]
    theirs = peft.get_peft_model(tiny("bert"), config)
    train(theirs, steps=3)
    theirs.save_pretrained(tmp_path)
    ours = adapterlab.load(tiny("bert"), tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=2e-6)
    assert sum(isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) for module in ours.modules()) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": "vera_only"}, "trains the backbone's biases"),
        ({"a_field_of_tomorrow": 3}, "fields that 'vera' of peft .* doesn't have: a_field_of_tomorrow=3"),
        ({"r": 0}, "r: Input should be greater than or equal to 1"),
        ({"peft_type": "XLORA"}, "peft_type 'XLORA'"),
    ],
)
def test_a_folder_that_says_something_else(tiny, logits, tmp_path, change, message):
    adapterlab.save(attached(tiny, "bert", "vera", r=8), tmp_path)
    (tmp_path / "adapterlab.json").unlink()
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    model = tiny("bert")
    before = logits(model)
    with pytest.raises(AdapterFolderError, match=message):
        adapterlab.load(model, tmp_path)
    assert torch.equal(logits(model), before)
    assert model.state_dict().keys() == tiny("bert").state_dict().keys()


def test_a_tensor_too_few(tiny, logits, tmp_path):
    from safetensors.torch import save_file

    adapterlab.save(attached(tiny, "bert", "vera", r=8), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    del tensors["base_model.vera_A"]
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterFolderError, match=r"missing: base_model.vera_A \[8, 64\]"):
        adapterlab.load(tiny("bert"), tmp_path)
