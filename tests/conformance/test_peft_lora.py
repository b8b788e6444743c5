"""Every variant of LoRA: what we save, plain peft loads, and the other way round; starts are peft's."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
from conftest import randomize
from peft.tuners.lora import corda, eva
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

import adapterlab

ARCHITECTURES = ("bert", "gpt2", "llama")
QUERY = {"bert": ["query", "output.dense"], "gpt2": ["c_attn", "mlp.c_proj"], "llama": ["q_proj", "down_proj"]}
EMBEDDING = {"bert": "word_embeddings", "gpt2": "wte", "llama": "embed_tokens"}
CASES = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "lora-bias": {"lora_bias": True},
    "own-biases": {"bias": "lora_only"},
    "all-biases": {"bias": "all"},
    "dora-biases": {"bias": "all", "use_dora": True},
    "embedding": {"embedding": True},
    "embedding-dora": {"embedding": True, "use_dora": True},
}
TASK = {"SequenceClassification": "SEQ_CLS", "CausalLM": "CAUSAL_LM"}


def cells():
    for architecture in ARCHITECTURES:
        for case in CASES:
            if architecture == "llama" and "bias" in case:
                continue  # its linears and norms have none
            yield pytest.param(architecture, case, id=f"{architecture}-{case}")


def targets(architecture, options):
    return QUERY[architecture] + ([EMBEDDING[architecture]] if options.pop("embedding", False) else [])


def load_strictly(model, folder):
    """Load into peft; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return peft.PeftModel.from_pretrained(model, folder).eval()


def shapes(folder, ballast=()):
    tensors = load_file(folder / "adapter_model.safetensors")
    return {key: tensor.shape for key, tensor in tensors.items() if not any(part in key for part in ballast)}


@pytest.mark.parametrize(("architecture", "case"), cells())
def test_peft_reads_ours(tiny, logits, tmp_path, architecture, case):
    options = dict(CASES[case])
    wanted = targets(architecture, options)
    model = adapterlab.attach(tiny(architecture), "lora", target_modules=wanted, r=4, alpha=6, **options)
    randomize(model)
    expected = logits(model)
    adapterlab.save(model, tmp_path / "ours")
    theirs = load_strictly(tiny(architecture), tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=2e-6)

    theirs.save_pretrained(tmp_path / "theirs")
    # peft writes along what isn't trained: the head as it was, an adapted `embed_tokens`'s own weight
    ballast = (".original_module.", ".modules_to_save.", "embed_tokens.base_layer")
    assert shapes(tmp_path / "ours") == shapes(tmp_path / "theirs", ballast)
    back = adapterlab.load(tiny(architecture), tmp_path / "theirs")
    torch.testing.assert_close(logits(back), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("architecture", "case"), cells())
def test_we_read_pefts(tiny, logits, tmp_path, architecture, case):
    head = "SequenceClassification" if architecture == "bert" else "CausalLM"
    options = dict(CASES[case])
    wanted = targets(architecture, options)
    config = peft.LoraConfig(
        task_type=TASK[head], target_modules=wanted, r=4, lora_alpha=6, init_lora_weights=True, **options
    )
    theirs = peft.get_peft_model(tiny(architecture, head), config)
    randomize(theirs)
    expected = logits(theirs)
    theirs.save_pretrained(tmp_path)
    ours = adapterlab.load(tiny(architecture, head), tmp_path)
    torch.testing.assert_close(logits(ours), expected, rtol=0, atol=2e-6)
    # the same parameters are trained; peft counts an original head's bias in with "all"
    if options.get("bias") != "all":
        assert adapterlab.summary(ours).trainable == sum(p.numel() for p in theirs.parameters() if p.requires_grad)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"**.0.**": 2, "*proj*": 5}, "alpha_pattern": {"**.1.**": 3}},
        {"rank_pattern": {"layer.0.output.dense": 2, "c_attn": 5, "layers.1.self_attn.q_proj": 3}},
        {"init": "pissa", "use_rslora": True, "rank_pattern": {"**.0.**": 2}, "alpha_pattern": {"**.1.**": 3}},
        {"init": "olora", "r": 20},
    ],
    ids=["globs", "names", "pissa", "olora"],
)
def test_ranks_and_starts_that_peft_reads(tiny, logits, tmp_path, architecture, options):
    names = {name for name, _ in tiny(architecture).named_modules()}
    options = copy.deepcopy(options)
    for option in ("rank_pattern", "alpha_pattern"):
        fits = {k: v for k, v in options.get(option, {}).items() if "*" in k or any(n.endswith(k) for n in names)}
        options[option] = {k: v for k, v in fits.items() if "proj" not in k or architecture != "bert"}
    model = adapterlab.attach(tiny(architecture), "lora", target_modules=QUERY[architecture], **options)
    randomize(model)
    expected = logits(model)
    adapterlab.save(model, tmp_path / "ours")
    theirs = load_strictly(tiny(architecture), tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=5e-6 if "init" in options else 2e-6)
    theirs.save_pretrained(tmp_path / "theirs")
    assert shapes(tmp_path / "ours") == shapes(tmp_path / "theirs")
    back = adapterlab.load(tiny(architecture), tmp_path / "theirs")
    torch.testing.assert_close(logits(back), logits(theirs), rtol=0, atol=2e-6)


def test_ranks_that_peft_wrote_as_expressions(tiny, logits, tmp_path):
    patterns = {"^bert.encoder.layer.0.attention.self.query": 2, r"output\.dense": 3, "not.there": 5}
    config = peft.LoraConfig(target_modules=["query", "dense"], task_type="SEQ_CLS", rank_pattern=patterns)
    theirs = peft.get_peft_model(tiny("bert"), config)
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    ours = adapterlab.load(tiny("bert"), tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=2e-6)

    config.rank_pattern = {"(query|dense)": 2}
    peft.get_peft_model(tiny("bert"), config).save_pretrained(tmp_path)
    with pytest.raises(adapterlab.AdapterLabError, match=r"rank_pattern: '\(query\|dense\)' is a regular expression"):
        adapterlab.load(tiny("bert"), tmp_path)


def test_targets_that_peft_found_by_an_expression(tiny, logits, tmp_path):
    config = peft.LoraConfig(
        target_modules=r".*\.(query|word_embeddings)", task_type="SEQ_CLS", init_lora_weights=False
    )
    theirs = peft.get_peft_model(tiny("bert"), config)
    theirs.save_pretrained(tmp_path)
    ours = adapterlab.load(tiny("bert"), tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=2e-6)


def test_a_rank_above_a_layers_size_that_peft_wrote(tiny, logits, tmp_path):
    config = peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS", r=40, init_lora_weights=False)
    theirs = peft.get_peft_model(tiny("bert"), config)
    theirs.save_pretrained(tmp_path)
    ours = adapterlab.load(tiny("bert"), tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=2e-6)
    with pytest.raises(adapterlab.AdapterLabError, match="rank 40 is larger"):
        adapterlab.attach(tiny("bert"), "lora", r=40)


def test_embeddings_of_another_model(tiny, tmp_path):
    config = peft.LoraConfig(target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny("llama", "CausalLM"), config).save_pretrained(tmp_path)
    other = tiny("llama", "CausalLM")
    with torch.no_grad():
        other.model.embed_tokens.weight += 1
    with pytest.raises(adapterlab.AdapterLabError, match=r"unexpected: model.embed_tokens.base_layer.weight"):
        adapterlab.load(other, tmp_path)


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq", "corda", "lora_ga"])
def test_folders_of_starts_that_were_not_converted(tiny, tmp_path, init):
    config = peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    theirs = peft.get_peft_model(tiny("bert"), config)
    theirs.peft_config["default"].init_lora_weights = init
    theirs.save_pretrained(tmp_path)
    with pytest.raises(adapterlab.AdapterLabError, match=rf"{init}.*path_initial_model_for_weight_conversion"):
        adapterlab.load(tiny("bert"), tmp_path)


def test_a_pissa_that_peft_converted(tiny, logits, tmp_path):
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="pissa", r=4)
    theirs = peft.get_peft_model(tiny("llama", "CausalLM"), config)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    ours = adapterlab.load(tiny("llama", "CausalLM"), tmp_path / "end")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=5e-6)


# --- starts


def theirs_and_ours(theirs, ours):
    """Yield weight (out, in), and the two starts' scaled B A, for each target."""
    layers = dict(theirs.named_modules())
    for path, layer in ours.named_modules():
        if hasattr(layer, "lora_A"):
            other = layers[f"base_model.model.{path}"]
            yield (
                layer,
                *(
                    one.scaling["default"] * one.lora_B["default"].weight @ one.lora_A["default"].weight
                    for one in (other, layer)
                ),
            )


@pytest.mark.parametrize(
    ("architecture", "init"),
    [("bert", "pissa"), ("gpt2", "pissa"), ("llama", "pissa"), ("bert", "olora"), ("llama", "olora"),
     ("gpt2", "corda"), ("llama", "corda")],
)  # fmt: skip
def test_starts_from_weights_are_pefts(tiny, batch, architecture, init):
    settings = {"r": 4, "lora_alpha": 6, "target_modules": QUERY[architecture][:1], "task_type": "SEQ_CLS"}
    model, options, row = tiny(architecture), {}, {"input_ids": batch["input_ids"][1:2]}
    config = peft.LoraConfig(init_lora_weights=init, **settings)
    if init == "corda":  # peft's takes one row at a time, without padding
        corda.preprocess_corda(model, config, run_model=lambda: model(**row))
        options = {"init_batches": [row]}
    theirs = peft.get_peft_model(model, config)
    ours = adapterlab.attach(
        tiny(architecture), "lora", r=4, alpha=6, target_modules=QUERY[architecture][:1], init=init, **options
    )
    for layer, expected, found in theirs_and_ours(theirs, ours):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        assert isinstance(layer.get_base_layer(), Conv1D) == (architecture == "gpt2")


def test_eva_starts_where_pefts_does(tiny, batch):
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    config = peft.LoraConfig(
        r=3, target_modules=["query", "output.dense"], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0)
    )
    theirs = peft.get_peft_model(tiny("bert"), config)
    eva.initialize_lora_eva_weights(theirs, [inputs, inputs], show_progress_bar=False)
    ours = adapterlab.attach(
        tiny("bert"), "lora", r=3, target_modules=["query", "output.dense"], init="eva", init_batches=[inputs]
    )
    layers = dict(theirs.named_modules())
    compared = 0
    for path, layer in ours.named_modules():
        if hasattr(layer, "lora_A"):
            expected = layers[f"base_model.model.{path}"].lora_A["default"].weight
            cosines = (layer.lora_A["default"].weight * expected).sum(1).abs()  # up to their signs
            torch.testing.assert_close(cosines, torch.ones(3), rtol=0, atol=1e-2)
            compared += 1
    assert compared == 6


def test_lora_ga_spans_what_pefts_does(tiny, batch):
    """peft also multiplies B by the gradient's singular values, which the paper doesn't: the spaces are the same."""
    from peft.tuners.lora.loraga import preprocess_loraga

    model = tiny("gpt2")
    config = peft.LoraConfig(
        r=2,
        target_modules=["c_attn"],
        init_lora_weights="lora_ga",
        lora_ga_config=peft.LoraGAConfig(),
        lora_dropout=0.0,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    preprocess_loraga(model, config, lambda: model(**batch).loss.backward())
    theirs = peft.get_peft_model(model, config)
    ours = adapterlab.attach(tiny("gpt2"), "lora", r=2, target_modules=["c_attn"], init="lora_ga", init_batches=[batch])
    layers = dict(theirs.named_modules())
    for path, layer in ours.named_modules():
        if hasattr(layer, "lora_A"):
            other = layers[f"base_model.model.{path}"]
            for mine, its in (
                (layer.lora_A["default"].weight.T, other.lora_A["default"].weight.T),
                (layer.lora_B["default"].weight, other.lora_B["default"].weight),
            ):
                one, two = torch.linalg.qr(mine)[0], torch.linalg.qr(its)[0]
                torch.testing.assert_close(one @ one.T, two @ two.T, rtol=0, atol=1e-3)
