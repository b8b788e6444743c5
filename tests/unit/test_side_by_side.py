"""Adapters beside other things: each other, modules trained in full, casts, loads that fail."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import transformers
from conftest import randomize

import adapterlab


def plain_after_detach(model, logits, backbone):
    adapterlab.detach(model)
    assert torch.equal(logits(model), backbone)
    assert not any("lora_" in name or "bottleneck" in name for name in model.state_dict())


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_modules_trained_in_full_are_no_targets(tiny, logits, tmp_path, method):
    model = tiny("bert")
    backbone = logits(model)
    options = {"target_modules": ["query", "dense"], "modules_to_save": ["pooler", "LayerNorm"]}
    adapterlab.attach(model, method, **options)
    assert not any("pooler" in name and ".lora_" in name for name in model.state_dict())
    randomize(model)
    with adapterlab.disabled(model):
        assert torch.equal(logits(model), backbone)
    adapterlab.save(model, tmp_path)
    fresh = adapterlab.load(tiny("bert"), tmp_path)
    assert torch.equal(logits(fresh), logits(model))
    theirs = peft.PeftModel.from_pretrained(tiny("bert"), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=0, atol=2e-6)
    plain_after_detach(model, logits, backbone)


@pytest.mark.parametrize("method", ["prefix", "bottleneck"])
@pytest.mark.parametrize("module", ["LayerNorm", "embeddings", "encoder"])
def test_a_method_that_works_inside_a_module_refuses_to_train_it_in_full(tiny, logits, method, module):
    model = tiny("bert")
    backbone = logits(model)
    with pytest.raises(adapterlab.AdapterLabError, match="can't be trained in full"):
        adapterlab.attach(model, method, modules_to_save=[module])
    assert torch.equal(logits(model), backbone)


def test_two_adapters_may_not_train_overlapping_modules(tiny):
    model = adapterlab.attach(tiny("bert"), "lora", "a", modules_to_save=["pooler"])
    with pytest.raises(adapterlab.AdapterLabError, match=r"'bert.pooler.dense' overlaps 'bert.pooler'"):
        adapterlab.attach(model, "lora", "b", modules_to_save=["pooler.dense"])


def test_lora_and_adalora_on_the_same_modules(tiny, logits, tmp_path):
    model = tiny("bert")
    backbone = logits(model)
    outputs = {}
    for name, method in (("a", "lora"), ("b", "adalora"), ("c", "lora"), ("d", "bottleneck")):
        adapterlab.attach(model, method, name, **({"target_modules": ["query"]} if method != "bottleneck" else {}))
        randomize(model)
        outputs[name] = logits(model)
    for name, output in outputs.items():
        adapterlab.activate(model, name)
        assert torch.equal(logits(model), output)
        adapterlab.save(model, tmp_path / name, name)
        torch.testing.assert_close(logits(adapterlab.load(tiny("bert"), tmp_path / name)), output)
        if name != "d":
            theirs = peft.PeftModel.from_pretrained(tiny("bert"), tmp_path / name)
            torch.testing.assert_close(logits(theirs), output, rtol=0, atol=2e-6)
    adapterlab.detach(model, "a")
    adapterlab.activate(model, "b")
    assert torch.equal(logits(model), outputs["b"])
    plain_after_detach(model, logits, backbone)


def test_adapters_with_other_label_names_share_a_model(tiny, logits, tmp_path):
    for name, labels in {"first": "abc", "second": "pqr"}.items():
        model = tiny("bert")
        model.config.id2label = dict(enumerate(labels))
        adapterlab.save(adapterlab.attach(model, "lora"), tmp_path / name)
    host = tiny("bert")
    for name in ("first", "second"):
        adapterlab.load(host, tmp_path / name, name)
    assert host.config.id2label == {0: "p", 1: "q", 2: "r"}
    adapterlab.activate(host, "first")
    assert host.config.id2label == {0: "a", 1: "b", 2: "c"}
    host.config.id2label = {0: "A", 1: "B", 2: "C"}
    adapterlab.activate(host, "second")
    adapterlab.activate(host, "first")
    assert host.config.id2label == {0: "A", 1: "B", 2: "C"}


def test_placeholder_labels_do_not_overwrite_names(tiny, tmp_path):
    adapterlab.save(adapterlab.attach(tiny("bert"), "lora"), tmp_path)
    model = tiny("bert")
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    assert adapterlab.load(model, tmp_path).config.id2label == {0: "a", 1: "b", 2: "c"}


def test_each_of_several_active_adapters_is_saved_with_its_own_labels(tiny, logits, tmp_path):
    model = adapterlab.attach(tiny("bert"), "lora", "a", labels=["x", "y"])
    adapterlab.attach(model, "prefix", "b", labels=["p", "q", "r", "s"])
    adapterlab.activate(model, ["a", "b"])
    model.config.id2label = {0: "new p", 1: "new q", 2: "new r", 3: "new s"}
    adapterlab.attach(model, "lora", "c")
    adapterlab.activate(model, ["a", "b"])
    model.save_pretrained(tmp_path)
    assert adapterlab.load(tiny("bert"), tmp_path / "a").config.id2label == {0: "x", 1: "y"}
    assert adapterlab.load(tiny("bert"), tmp_path / "b").config.id2label[0] == "new p"


def test_a_head_that_holds_one_tensor_under_two_names(tiny, batch, logits, tmp_path):
    model = adapterlab.attach(tiny("bert", "MaskedLM"), "lora", modules_to_save=["cls"])
    randomize(model)
    adapterlab.save(model, tmp_path / "adapter")
    again = adapterlab.load(tiny("bert", "MaskedLM"), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    arguments = transformers.TrainingArguments(
        tmp_path / "run", max_steps=2, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    rows = [dict.fromkeys(("input_ids", "labels"), batch["input_ids"][index]) for index in range(4)]
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    transformers.Trainer(again, arguments, train_dataset=rows).train(
        resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2")
    )
    assert torch.equal(logits(again), logits(model))


def test_a_load_that_fails_leaves_the_others_as_they_were(tiny, logits, tmp_path):
    adapterlab.save(adapterlab.attach(tiny("bert"), "adalora", total_step=9), tmp_path)
    fields = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(fields.replace('"rank_pattern": null', '"rank_pattern": [1, 2]'))
    model = adapterlab.attach(tiny("bert"), "lora", "mine")
    randomize(model)
    before, trainable = logits(model), adapterlab.summary(model).trainable
    with pytest.raises(adapterlab.AdapterLabError, match="rank_pattern"):
        adapterlab.load(model, tmp_path, "theirs")
    assert torch.equal(logits(model), before)
    assert adapterlab.summary(model).trainable == trainable
    assert [(a.name, a.active) for a in adapterlab.summary(model).adapters] == [("mine", True)]


def test_an_adapter_of_another_class(tiny, tmp_path):
    adapterlab.save(adapterlab.attach(tiny("bert"), "lora"), tmp_path)
    with pytest.raises(adapterlab.AdapterLabError, match="trained on a BertForSequenceClassification"):
        adapterlab.load(tiny("bert", "TokenClassification"), tmp_path)


@pytest.mark.parametrize("options", [{"init_lora_weights": "olora"}, {"use_qalora": True}])
def test_variants_of_lora_that_would_load_wrong_are_refused(tiny, tmp_path, options):
    config = peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS", **options)
    peft.get_peft_model(tiny("bert"), config).save_pretrained(tmp_path)
    with pytest.raises(adapterlab.AdapterLabError, match="can't be loaded here"):
        adapterlab.load(tiny("bert"), tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": r".*layer\.1.*\.(query|value)"},
        {"target_modules": ["query"], "layers_to_transform": [1]},
        {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]},
        {"target_modules": "all-linear", "exclude_modules": ["key"]},
    ],
)
def test_targets_that_peft_found_its_own_way(tiny, logits, train, tmp_path, options):
    theirs = peft.get_peft_model(tiny("bert"), peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **options))
    theirs.save_pretrained(tmp_path)
    ours = adapterlab.load(tiny("bert"), tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["lora", "adalora", "prefix", "bottleneck"])
def test_casting_a_model_that_has_adapters(tiny, batch, method):
    options = {"total_step": 5} if method == "adalora" else {}
    half, full = torch.bfloat16, torch.float32
    for start, then in ((full, half), (half, half), (half, full)):
        model = adapterlab.attach(tiny("bert").to(start), method, "a", **options)
        adapterlab.attach(model, "lora", "b")
        model.to(then)
        for name in ("a", "b"):
            adapterlab.activate(model, name)
            model.train()(**batch).loss.backward()
            torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]).step()
            model.zero_grad()
        with adapterlab.disabled(model):
            model(**batch)
        adapterlab.detach(model)
        model(**batch)


def test_an_inactive_adapter_keeps_no_activations(tiny, batch):
    model = adapterlab.attach(tiny("bert"), "bottleneck", "a", variant="parallel")
    adapterlab.attach(model, "bottleneck", "b", variant="houlsby")
    model.train()(**batch).loss.backward()
    copy.deepcopy(model)


def test_an_adapter_named_twice_counts_once(tiny, logits):
    model = adapterlab.attach(tiny("bert"), "lora")
    randomize(model)
    once = logits(model)
    adapterlab.activate(model, ["default", "default"])
    assert torch.equal(logits(model), once)


def test_detaching_inside_disabled(tiny):
    model = adapterlab.attach(tiny("bert"), "lora")
    with adapterlab.disabled(model):
        adapterlab.detach(model)
    assert all(p.requires_grad for p in model.parameters())


def test_encoder_and_decoder_of_an_unknown_architecture(batch):
    config = transformers.BartConfig(
        vocab_size=97, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = adapterlab.attach(transformers.BartForConditionalGeneration(config), "lora")
    adapted = [name for name, _ in model.named_parameters() if ".lora_A." in name]
    assert len([name for name in adapted if ".encoder." in name]) == 12
    assert len([name for name in adapted if ".decoder." in name]) == 20


def test_prefix_counts_robertas_positions_from_behind_the_padding_row(tiny):
    model = adapterlab.attach(tiny("roberta"), "prefix", num_virtual_tokens=5)
    model(input_ids=torch.full((1, 58), 7))
    with pytest.raises(adapterlab.AdapterLabError, match="Truncate to 58 tokens"):
        model(input_ids=torch.full((1, 59), 7))
    with pytest.raises(adapterlab.AdapterLabError, match="fill all of the backbone's 64 positions"):
        adapterlab.attach(tiny("bert"), "prefix", num_virtual_tokens=64)
    json_of_config = adapterlab.attach(tiny("bert"), "prefix").bert.encoder.layer[0].attention.self.config
    assert json_of_config.to_json_string()


@pytest.mark.parametrize("name", ["train", "keys", 3, "", "a b"])
def test_names_that_cannot_be(tiny, name):
    model = tiny("bert")
    with pytest.raises(adapterlab.AdapterLabError, match="name '"):
        adapterlab.attach(model, "lora", name)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {"alpha": float("inf")}, "alpha: .*finite"),
        ("lora", {"r": True}, "r: .*integer"),
        ("lora", {"layers": []}, "layers: "),
        ("lora", {"alpha": 4, "lora_alpha": 8}, "alpha and lora_alpha: two names of one option"),
        ("lora", {"target_modules": "query"}, r"for instance \['query'\]"),
        ("lora", {"rank_pattern": {"query": 0}}, "rank_pattern: "),
        ("lora", {"rank_pattern": {"qery": 4}}, "Did you mean 'query'"),
        ("bottleneck", {"scaling": float("nan")}, "scaling: "),
    ],
)
def test_values_that_make_no_sense(tiny, method, options, message):
    with pytest.raises(adapterlab.AdapterLabError, match=message):
        adapterlab.attach(tiny("bert"), method, **options)


def test_pefts_spelling_of_the_default_init(tiny):
    adapterlab.attach(tiny("bert"), "lora", init_lora_weights=True)


# --- AdaLoRA's schedule


def alive(model):
    return sum(int((p != 0).sum()) for name, p in model.named_parameters() if ".lora_E." in name)


def matrices(model):
    return sum(".lora_E." in name for name, _ in model.named_parameters())


def test_adalora_trained_again_shrinks_again(tiny, train, tmp_path, logits):
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=2, init_r=4, total_step=10)
    for total in (10, 10, 16):
        adapterlab.set_total_step(model, total)
        train(model, steps=total - 5)
        adapterlab.save(model, tmp_path / str(total))
        assert torch.equal(logits(adapterlab.load(tiny("bert"), tmp_path / str(total))), logits(model))
        train(model, steps=5)
        assert alive(model) == 2 * matrices(model)


def test_a_loaded_adalora_plans_anew(tiny, train, tmp_path):
    model = adapterlab.attach(tiny("bert"), "adalora", target_r=2, init_r=4, total_step=10, tinit=2, tfinal=2)
    train(model, steps=10)
    again = adapterlab.load(tiny("bert"), adapterlab.save(model, tmp_path))
    adapterlab.set_total_step(again, 6)
    train(again, steps=6)
    assert alive(again) == 2 * matrices(again)


def test_adalora_prunes_also_where_a_target_is_not_used(tiny, batch):
    model = tiny("bert").bert
    adapterlab.attach(model, "adalora", target_r=2, init_r=4, total_step=10, target_modules=["query", "dense"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(10):
        model(input_ids=batch["input_ids"]).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert alive(model) <= 2 * matrices(model)


@pytest.mark.parametrize("first", ["a", "b"])
def test_parts_inside_a_module_that_another_adapter_trains_in_full(tiny, logits, first):
    model = tiny("bert")
    options = {"a": {"modules_to_save": ["pooler"]}, "b": {"target_modules": ["pooler.dense"]}}
    second = "b" if first == "a" else "a"
    adapterlab.attach(model, "lora", first, **options[first])
    randomize(model)
    before = logits(model)
    with pytest.raises(adapterlab.AdapterLabError, match=r"inside 'bert.pooler', which an adapter trains in full"):
        adapterlab.attach(model, "lora", second, **options[second])
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("second", ["prefix", "bottleneck", "prompt"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_method_mixed_from_two(tiny, logits, train, tmp_path, architecture, second):
    model = tiny(architecture)
    backbone = logits(model)
    adapterlab.attach(model, "lora", "a")
    adapterlab.attach(model, second, "b")
    adapterlab.activate(model, ["a", "b"])
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    assert {name for path in start for name in path.split(".")} >= {"a", "b"}, "both are trained"
    train(model, steps=3)
    trained = {name: not torch.equal(p, start[name]) for name, p in model.named_parameters() if name in start}
    assert all(trained.values()), [name for name, changed in trained.items() if not changed]
    both = logits(model)
    for name in ("a", "b"):
        adapterlab.save(model, tmp_path / name, name)
    fresh = tiny(architecture)
    for name in ("a", "b"):
        adapterlab.load(fresh, tmp_path / name, name)
    adapterlab.activate(fresh, ["a", "b"])
    assert torch.equal(logits(fresh), both)
    adapterlab.activate(fresh, "a")
    assert not torch.equal(logits(fresh), both)
    with pytest.raises(adapterlab.AdapterLabError, match="can't be merged"):
        adapterlab.merge(model)
    assert torch.equal(logits(model), both)
    plain_after_detach(model, logits, backbone)
