"""Tokens that an adapter brings along: in the tokenizer, in the model, on disk, in training."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers
from conftest import HIDDEN, VOCABULARY, randomize
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

import adapterlab
from adapterlab.errors import AdapterError, AdapterFolderError, BackboneError, ConfigError
from adapterlab.new_tokens import NewTokens, equip, pieces

NEW = {"<a>": [5, 6], "<b>": [7]}
FIRST, SECOND = VOCABULARY, VOCABULARY + 1
MODELS = [
    ("bert", "SequenceClassification"),
    ("bert", "MaskedLM"),
    ("gpt2", "CausalLM"),
    ("llama", "CausalLM"),
    ("t5", "Seq2SeqLM"),
    ("bart", "Seq2SeqLM"),
    ("albert", "MaskedLM"),
    ("opt", "CausalLM"),
]
METHODS = {
    "lora": {},
    "adalora": {"target_r": 4, "total_step": 30},
    "prefix": {"num_virtual_tokens": 4},
    "prompt": {"num_virtual_tokens": 4},
    "bottleneck": {},
    "ia3": {},
}
UNTIED = [("llama", "CausalLM"), ("gpt_neox", "CausalLM")]


def inputs(*, new=True, head="SequenceClassification"):
    """Two rows that end as the classifiers of T5 and BART want it; with new tokens, or with others in their place."""
    first, second = (FIRST, SECOND) if new else (17, 18)
    ids = torch.tensor([[3, first, 9, second, 2], [second, 5, first, 8, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch | ({"decoder_input_ids": ids[:, :4]} if head == "Seq2SeqLM" else {})


def logits(model, **options):
    model.eval()
    with torch.no_grad():
        return model(**inputs(head=head_of(model), **options)).logits


def head_of(model):
    return "Seq2SeqLM" if type(model).__name__.endswith("ForConditionalGeneration") else "SequenceClassification"


def learn(model, steps=25, rate=2e-2):
    """Train on rows full of new tokens, which a language model is to predict; return the losses."""
    batch = inputs()
    labels = torch.tensor([0, 1]) if "Classification" in type(model).__name__ else batch["input_ids"]
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def rows(model, name="default", end="input"):
    return dict(model.named_parameters())[f"new_tokens.{name}.{end}"]


@pytest.fixture(params=MODELS, ids="-".join)
def kind(request):
    return request.param


@pytest.fixture
def words():
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<", ">", "the", "dose", "of", "aspi", "##rin", "e1", "/"]


@pytest.fixture(params=["fast", "slow", "bytes"])
def tokenizer(request, words, tmp_path):
    if request.param == "fast":
        return transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    if request.param == "bytes":
        return transformers.ByT5Tokenizer()
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return BertTokenizerLegacy(str(tmp_path / "vocab.txt"))


def test_pieces_are_those_of_before_and_the_tokenizer_has_the_tokens(tokenizer):
    size = len(tokenizer)
    before = tokenizer.encode("<e1>", add_special_tokens=False)
    markers = pieces(tokenizer, ["<e1>", "</e1>"], special=True)
    assert markers["<e1>"] == before
    assert len(before) > 1
    assert markers.ids == {"<e1>": size, "</e1>": size + 1}
    ids = tokenizer.encode("the <e1> aspirin </e1> dose", add_special_tokens=False)
    assert {size, size + 1} <= set(ids)
    assert "<e1>" in tokenizer.decode(ids)
    assert "<e1>" not in tokenizer.decode(ids, skip_special_tokens=True)


def test_words_are_found_as_whole_words_and_kept_by_decode(tokenizer):
    size = len(tokenizer)
    pieces(tokenizer, ["aspirin"])
    ids = tokenizer.encode("the aspirin dose", add_special_tokens=False)
    assert ids.count(size) == 1
    assert "aspirin" in tokenizer.decode(ids, skip_special_tokens=True)
    assert size not in tokenizer.encode("the aspirins", add_special_tokens=False)


@pytest.mark.parametrize("tokenizer", ["fast", "slow"], indirect=True)
def test_a_tokenizer_that_lower_cases_knows_words_in_lower_case(tokenizer):
    assert list(pieces(tokenizer, ["Aspirin"])) == ["aspirin"]
    assert tokenizer.encode("aspirin", add_special_tokens=False) == [len(tokenizer) - 1]
    with pytest.raises(ConfigError, match="'aspirin' is in the tokenizer already"):
        pieces(tokenizer, ["ASPIRIN"])


def test_pieces_refuses_tokens_that_are_there_or_twice_and_leaves_the_tokenizer_alone(tokenizer):
    pieces(tokenizer, ["<old>"])
    size = len(tokenizer)
    with pytest.raises(ConfigError) as error:
        pieces(tokenizer, ["<old>", "<x>", "<x>", " "])
    text = str(error.value)
    assert f"'<old>' is in the tokenizer already, with id {size - 1}" in text
    assert "'<x>' is there 2 times" in text
    assert "' ' is empty" in text
    with pytest.raises(ConfigError, match="a list of strings is needed, and '<x>' was given"):
        pieces(tokenizer, "<x>")
    assert len(tokenizer) == size


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, "lora") for kind in [*MODELS, UNTIED[1]]]
    + [(kind, method) for kind in MODELS[:3] for method in METHODS if method != "lora"],
)
def test_any_method_learns_new_tokens_and_detach_gives_the_backbone_back(kind, method, tiny):
    model = tiny(*kind)
    before, vocabulary = {k: v.clone() for k, v in model.state_dict().items()}, model.config.vocab_size
    expected = logits(model, new=False)
    adapterlab.attach(model, method, new_tokens=NEW, **METHODS[method])
    start = rows(model).detach().clone()
    table = model.get_input_embeddings().weight
    assert torch.equal(start, torch.stack([table[[5, 6]].mean(0), table[7]]))
    losses = learn(model)
    assert losses[-1] < losses[0] - 0.1
    assert ((rows(model) - start).abs() > 1e-3).any(1).all()  # each of the rows was trained
    outputs = logits(model)
    if "Classification" not in type(model).__name__:
        assert outputs.shape[-1] == model.config.vocab_size == VOCABULARY + 2
    with adapterlab.disabled(model):
        assert torch.equal(logits(model, new=False), expected)
        assert model.config.vocab_size == vocabulary
    assert torch.equal(logits(model), outputs)
    adapterlab.detach(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert model.config.vocab_size == getattr(model, "vocab_size", vocabulary) == vocabulary
    assert torch.equal(logits(model, new=False), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_new_tokens_change_nothing_for_the_others(kind, tiny):
    model = tiny(*kind)
    expected = logits(model, new=False)
    adapterlab.attach(model, "lora", new_tokens=NEW)
    assert torch.allclose(logits(model, new=False)[..., :VOCABULARY], expected, atol=1e-6)


@pytest.mark.parametrize("kind", UNTIED, ids="-".join)
def test_an_untied_output_layer_gets_rows_of_its_own(kind, tiny):
    model = tiny(*kind)
    head = model.get_output_embeddings().weight.detach().clone()
    adapterlab.attach(model, "lora", new_tokens=NEW)
    start = rows(model, end="output").detach().clone()
    assert torch.equal(start, torch.stack([head[[5, 6]].mean(0), head[7]]))
    learn(model)
    assert not torch.equal(rows(model, end="output"), start)
    assert not torch.equal(rows(model, end="output"), rows(model))


@pytest.mark.parametrize(("architecture", "head"), [("gpt2", "CausalLM"), ("llama", "CausalLM"), ("t5", "Seq2SeqLM")])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_produces_a_new_token(architecture, head, beams, tiny):
    model = tiny(architecture, head)
    torch.manual_seed(0)
    adapterlab.attach(model, "lora", new_tokens=NEW)
    ids, answer = torch.tensor([[3, 4, 5]]), torch.tensor([[FIRST, SECOND]])
    whole = torch.cat([ids, answer], dim=1)
    batch = {"input_ids": whole, "labels": torch.cat([torch.full_like(ids, -100), answer], dim=1)}
    if head == "Seq2SeqLM":
        batch = {"input_ids": ids, "labels": answer}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(100):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    written = model.generate(ids, max_new_tokens=2, num_beams=beams, do_sample=False)[0].tolist()
    assert written[-2:] == answer[0].tolist()


def test_save_and_load_bring_rows_and_tokens_back(kind, tiny, tmp_path):
    model = adapterlab.attach(tiny(*kind), "lora", new_tokens=NewTokens(NEW, VOCABULARY, special=True))
    learn(model)
    folder = adapterlab.save(model, tmp_path)
    about = json.loads((folder / "adapterlab.json").read_text())["new_tokens"]
    assert about == {"first": VOCABULARY, "special": True, "rows": VOCABULARY, "pieces": NEW}
    [tensor] = [t for key, t in load_file(folder / "adapter_model.safetensors").items() if "token" in key][:1]
    assert tensor.shape == rows(model).shape
    other = adapterlab.load(tiny(*kind), folder, "again")
    assert torch.equal(logits(other), logits(model))
    [adapter] = adapterlab.summary(other).adapters
    assert adapter.new_tokens == {"<a>": FIRST, "<b>": SECOND}
    assert ", 2 new tokens" in str(adapterlab.summary(other))
    plain = adapterlab.summary(adapterlab.attach(tiny(*kind), "lora")).adapters[0]
    own = sum(p.numel() for path, p in other.named_parameters() if path.startswith("new_tokens."))
    assert adapter.parameters == plain.parameters + own


def test_a_folder_without_new_tokens_says_nothing_of_them(tiny, tmp_path):
    folder = adapterlab.save(adapterlab.attach(tiny("gpt2", "CausalLM"), "lora"), tmp_path)
    assert "new_tokens" not in (folder / "adapterlab.json").read_text()
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert fields["trainable_token_indices"] is None
    assert not any("new_tokens" in key for key in fields)


def test_equip_gives_a_tokenizer_the_tokens_of_the_adapter(words, tiny):
    def fresh():
        fillers = [f"w{index}" for index in range(VOCABULARY - len(words))]
        return transformers.BertTokenizer(vocab={word: index for index, word in enumerate([*words, *fillers])})

    trained = fresh()
    model = adapterlab.attach(tiny("bert"), "lora", new_tokens=pieces(trained, ["<e1>", "</e1>"], special=True))
    tokenizer = fresh()
    assert equip(tokenizer, model) == ["<e1>", "</e1>"]
    text = "the <e1> dose </e1>"
    assert tokenizer(text)["input_ids"] == trained(text)["input_ids"]
    assert equip(tokenizer, model) == []
    other = fresh()
    pieces(other, ["<between>"])
    with pytest.raises(ConfigError, match=f"doesn't fit .*'<e1>': {VOCABULARY}.*next free id is {VOCABULARY + 1}"):
        equip(other, model)
    with adapterlab.disabled(model):
        assert equip(fresh(), model) == []


def test_the_backbones_spare_rows_are_used_where_the_tokenizer_is_smaller(tiny, tmp_path):
    """Many vocabularies are padded: the tokenizer's next id has a row in the backbone, of a token that isn't."""
    spare = NewTokens(NEW, VOCABULARY - 1)
    model = tiny("gpt2", "CausalLM")
    before = copy.deepcopy(model)
    adapterlab.attach(model, "lora", new_tokens=spare)
    model.eval()
    ids = torch.tensor([[3, VOCABULARY - 1, VOCABULARY]])
    outputs = model(input_ids=ids).logits
    assert outputs.shape[-1] == VOCABULARY + 1 == model.config.vocab_size
    expected = before(inputs_embeds=torch.cat([before.transformer.wte(ids[:, :1]), rows(model)[None]], dim=1)).logits
    assert torch.allclose(outputs[..., : VOCABULARY - 1], expected[..., : VOCABULARY - 1], atol=1e-5)
    merged = adapterlab.merge(adapterlab.load(before, adapterlab.save(model, tmp_path))).eval()
    assert torch.allclose(merged(input_ids=ids).logits, outputs, atol=1e-5)
    assert len(merged.get_input_embeddings().weight) == VOCABULARY + 1


@pytest.mark.parametrize("kind", [*MODELS, UNTIED[1]], ids="-".join)
def test_merge_leaves_a_plain_transformers_model(kind, tiny, tmp_path):
    model = adapterlab.attach(tiny(*kind), "lora", new_tokens=NEW)
    learn(model)
    expected = logits(model)
    adapterlab.merge(model)
    assert len(model.get_input_embeddings().weight) == VOCABULARY + 2 == model.config.vocab_size
    assert torch.allclose(logits(model), expected, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.allclose(logits(again), expected, atol=1e-4)


def test_merge_refuses_a_model_that_cannot_grow_and_leaves_it_as_it_was(tiny):
    model = adapterlab.attach(tiny("invented"), "lora", new_tokens=NEW)
    randomize(model)
    expected = logits(model)
    with pytest.raises(AdapterError, match="has no set_input_embeddings, so its embeddings can't grow"):
        adapterlab.merge(model)
    assert torch.equal(logits(model), expected)


@pytest.mark.filterwarnings("ignore:merging")
def test_an_adapter_of_the_embedding_itself_keeps_out_of_the_new_rows(tiny, tmp_path):
    model = adapterlab.attach(tiny("gpt2", "CausalLM"), "lora", target_modules=["wte", "c_attn"], new_tokens=NEW)
    randomize(model)
    looked_up = model.get_input_embeddings()(torch.tensor([FIRST, SECOND]))
    assert torch.equal(looked_up, rows(model))
    expected = logits(model)
    other = adapterlab.load(tiny("gpt2", "CausalLM"), adapterlab.save(model, tmp_path))
    assert torch.equal(logits(other), expected)
    assert torch.allclose(logits(adapterlab.merge(model)), expected, atol=1e-3)
    assert not torch.equal(model.transformer.wte.weight[:9], model.lm_head.weight[:9])


def test_the_adapter_of_a_masked_lm_goes_on_under_a_classifier(tiny, tmp_path):
    """Continued pretraining first, the task afterwards."""
    source = adapterlab.attach(tiny("bert", "MaskedLM"), "lora", new_tokens=NEW)
    learn(source, steps=5)
    folder = adapterlab.save(source, tmp_path)
    model = tiny("bert")
    model.bert.load_state_dict(adapterlab.detach(copy.deepcopy(source)).bert.state_dict(), strict=False)
    adapterlab.load(model, folder)
    assert torch.equal(rows(model), rows(source))
    adapterlab.attach(model, "bottleneck", "task")
    adapterlab.activate(model, ["default", "task"])
    losses = learn(model, rate=5e-3)
    assert losses[-1] < losses[0] - 0.2


def test_rows_are_fp32_on_a_bf16_backbone(kind, tiny):
    model = tiny(*kind).to(torch.bfloat16)
    adapterlab.attach(model, "lora", new_tokens=NEW)
    assert rows(model).dtype == torch.float32
    losses = learn(model)
    assert losses[-1] < losses[0]
    if "Classification" not in type(model).__name__:
        assert logits(model).dtype == torch.bfloat16


def test_a_copy_of_the_model_has_rows_of_its_own(kind, tiny):
    model = adapterlab.attach(tiny(*kind), "lora", new_tokens=NEW)
    randomize(model)
    expected = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), expected)
    learn(twin, steps=3)
    assert not torch.equal(logits(twin), expected)
    assert torch.equal(logits(model), expected)
    adapterlab.detach(twin)
    assert torch.equal(logits(model), expected)


def test_switching_between_adapters_switches_the_tokens(tiny):
    model = adapterlab.attach(tiny("gpt2", "CausalLM"), "lora", "plain")
    adapterlab.attach(model, "lora", "two", new_tokens=NEW)
    adapterlab.attach(model, "prefix", "one", new_tokens={"<c>": [3]})
    sizes = {}
    for name in ("plain", "two", "one", ["plain", "two"], None):
        adapterlab.activate(model, name)
        sizes[str(name)] = (logits(model, new=False).shape[-1], model.config.vocab_size)
    assert [size[0] - VOCABULARY for size in sizes.values()] == [0, 2, 1, 2, 0]
    assert all(size[0] == size[1] for size in sizes.values())
    adapterlab.detach(model, "two")
    adapterlab.activate(model, "one")
    assert logits(model, new=False).shape[-1] == VOCABULARY + 1


def test_only_adapters_with_the_same_tokens_are_active_together(tiny):
    model = adapterlab.attach(tiny("bert"), "lora", "one", new_tokens=NEW)
    adapterlab.attach(model, "lora", "same", new_tokens=NEW)
    adapterlab.attach(model, "lora", "other", new_tokens={"<c>": [3], "<b>": [7]})
    adapterlab.activate(model, ["one", "same"])
    expected = logits(model)
    with pytest.raises(AdapterError, match=r"'one' and 'other' bring different new tokens .*<a>, <b>; <c>, <b>"):
        adapterlab.activate(model, ["one", "other"])
    assert torch.equal(logits(model), expected)
    with torch.no_grad():
        rows(model, "same").add_(torch.randn(2, HIDDEN))  # the last one's count
    assert not torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["<a>"], "a mapping from tokens to the ids of their pieces is needed, and a list was given.*pieces"),
        ({"<a>": []}, r"'<a>' needs the ids of its pieces, whole numbers from 0 to 96, and has \[\]"),
        ({"<a>": [97], "<b>": "x"}, r"(?s)'<a>' needs .*has \[97\].*'<b>' needs .*has 'x'"),
        (NewTokens(NEW, 120), "ids from 120 on, and the backbone has embeddings for 97 tokens"),
    ],
)
def test_wrong_new_tokens_are_refused_and_leave_the_model_alone(given, error, tiny):
    model = tiny("bert")
    before = set(model.state_dict())
    with pytest.raises(ConfigError, match=error):
        adapterlab.attach(model, "lora", new_tokens=given)
    assert set(model.state_dict()) == before
    assert adapterlab.summary(model).adapters == ()


def test_embeddings_trained_in_full_do_not_go_with_new_tokens(tiny):
    model = tiny("bert")
    with pytest.raises(BackboneError, match=r"'bert.embeddings.word_embeddings' holds the embeddings.*new_tokens"):
        adapterlab.attach(model, "lora", modules_to_save=["word_embeddings"], new_tokens=NEW)
    adapterlab.attach(model, "lora", new_tokens=NEW)
    with pytest.raises(BackboneError, match="can't be trained in full beside new_tokens"):
        adapterlab.attach(model, "lora", "second", modules_to_save=["word_embeddings"])
    assert [adapter.name for adapter in adapterlab.summary(model).adapters] == ["default"]


def test_an_output_layer_that_is_no_linear_over_the_vocabulary_is_refused(tiny):
    model = tiny("bert", "MaskedLM")
    model.get_output_embeddings = lambda: model.cls.predictions.transform.dense  # DeBERTa's new head says so
    with pytest.raises(BackboneError, match="isn't a linear with an output for each token"):
        adapterlab.attach(model, "lora", new_tokens=NEW)


def test_summing_adapters_with_new_tokens_is_refused(tiny):
    model = adapterlab.attach(tiny("bert"), "lora", "one", new_tokens=NEW)
    with pytest.raises(AdapterError, match="'one' brings new tokens, which have no weighted sum"):
        adapterlab.combine(model, ["one"], "mix")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda about: about.update(rows=120), "behind a vocabulary of 120 tokens, and this model's has 97"),
        (lambda about: about["pieces"].update({"<c>": [4]}), r"other shape: .*is \[2, 32\] in the file and \[3, 32\]"),
        (lambda about: about.pop("pieces"), "new_tokens must hold first, special, rows and pieces"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(change, error, tiny, tmp_path):
    folder = adapterlab.save(adapterlab.attach(tiny("bert"), "lora", new_tokens=NEW), tmp_path)
    extra = json.loads((folder / "adapterlab.json").read_text())
    change(extra["new_tokens"])
    (folder / "adapterlab.json").write_text(json.dumps(extra))
    model = tiny("bert")
    before = set(model.state_dict())
    with pytest.raises(AdapterFolderError, match=error):
        adapterlab.load(model, folder)
    assert set(model.state_dict()) == before
    assert model.config.vocab_size == VOCABULARY


@pytest.mark.parametrize("kind", [MODELS[0], MODELS[2], MODELS[3]], ids="-".join)
def test_peft_reads_a_lora_with_new_tokens_into_resized_embeddings(kind, tiny, tmp_path):
    model = adapterlab.attach(tiny(*kind), "lora", new_tokens=NEW)
    learn(model)
    folder = adapterlab.save(model, tmp_path)
    plain = tiny(*kind)
    with pytest.raises(IndexError):  # never silently without them
        PeftModel.from_pretrained(tiny(*kind), folder)
    plain.resize_token_embeddings(VOCABULARY + 2, mean_resizing=False)
    assert torch.allclose(logits(PeftModel.from_pretrained(plain, folder)), logits(model), atol=1e-5)


@pytest.mark.parametrize(("method", "kind"), [("ia3", MODELS[0]), ("lora", MODELS[1])])
def test_peft_warns_of_new_tokens_that_it_cannot_read(method, kind, tiny, tmp_path):
    model = adapterlab.attach(tiny(*kind), method, new_tokens=NEW)
    folder = adapterlab.save(model, tmp_path)
    with pytest.warns(UserWarning, match="new_tokens_that_need_adapterlab_load"):
        PeftModel.from_pretrained(tiny(*kind), folder)


def trainer_for(model, folder, **options):
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, VOCABULARY + 2, (48, 8), generator=generator)
    labels = ids.tolist() if "Classification" not in type(model).__name__ else (ids >= FIRST).any(1).long().tolist()
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels})
    settings = {
        "per_device_train_batch_size": 8, "num_train_epochs": 3, "learning_rate": 2e-2, "save_strategy": "epoch",
        "eval_strategy": "epoch", "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no",
    }  # fmt: skip
    arguments = transformers.TrainingArguments(str(folder), **(settings | options))
    return transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data.select(range(16)))


@pytest.mark.parametrize(
    ("kind", "method"),
    [(MODELS[0], "prefix"), (MODELS[1], "lora"), (MODELS[2], "prefix"), (MODELS[3], "lora")],
)
def test_a_trainer_saves_resumes_and_brings_back_the_rows(kind, method, tiny, tmp_path):
    def make():
        transformers.set_seed(7)
        return adapterlab.attach(tiny(*kind), method, new_tokens=NEW)

    whole = make()
    trainer = trainer_for(whole, tmp_path)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    checkpoint = tmp_path / "checkpoint-12"
    assert "new_tokens.default.input" in load_file(checkpoint / "model.safetensors")
    assert not any(key.endswith("word_embeddings.weight") for key in load_file(checkpoint / "model.safetensors"))
    resumed = make()
    transformers.set_seed(99)
    trainer_for(resumed, tmp_path).train(resume_from_checkpoint=str(checkpoint))
    expected, actual = whole.state_dict(), resumed.state_dict()
    assert "new_tokens.default.input" in actual
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    loaded = adapterlab.load(tiny(*kind), tmp_path / "checkpoint-18")
    assert torch.equal(logits(loaded), logits(whole))
