"""Raw text to blocks, masks and documents kept apart; what can't be pretrained on is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from corpora import DOMAIN, tiny_bert, tiny_gpt2, write_corpora
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import adapterlab
from adapterlab.data import load_splits
from adapterlab.recipe import load_recipe
from adapterlab.tasks import TASKS
from adapterlab.tasks.packing import Packer, Pieces


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pretraining")


@pytest.fixture(scope="module")
def bert(folder):
    return tiny_bert(folder / "bert")


@pytest.fixture(scope="module")
def gpt2(folder):
    return tiny_gpt2(folder / "gpt2")


def prepared(kind, model, tokenizer, **options):
    task = TASKS.get(kind)(options=options)
    task.prepare(model, tokenizer)
    return task


def load(kind, address):
    tokenizer = transformers.AutoTokenizer.from_pretrained(address)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    auto = {"masked_lm": transformers.AutoModelForMaskedLM, "causal_lm": transformers.AutoModelForCausalLM}[kind]
    return auto.from_pretrained(address).eval(), tokenizer


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12), size=st.integers(8, 40))
@settings(max_examples=60, deadline=None)
def test_packing_loses_no_token_and_mixes_no_documents(lengths, size):
    documents = [Pieces([10_000 * (n + 1) + i for i in range(length)], list(range(length)))
                 for n, length in enumerate(lengths)]  # fmt: skip
    packer = Packer(size, [1], [2])
    blocks = [*(block for document in documents for block in packer.take(document)), *packer.rest()]
    assert all(len(block.input_ids) <= size for block in blocks)
    assert all(len(block.input_ids) > size - 18 for block in blocks[:-1]), "full but for a few tokens"
    body = [token for block in blocks for token in block.input_ids if token > 2]
    assert body == [token for document in documents for token in document.ids]
    for block in blocks:
        owners: dict[int, set[int]] = {}
        words: dict[int, set[int]] = {}
        for token, document, word in zip(block.input_ids, block.document, block.words, strict=True):
            if token > 2:
                owners.setdefault(document, set()).add(token // 10_000)
                words.setdefault(word, set()).add(token)
            else:
                assert word == -1
        assert all(len(found) == 1 for found in owners.values())
        assert all(len(found) == 1 for found in words.values())


def test_masks_are_15_percent_of_the_words_80_10_10(bert):
    model, tokenizer = load("masked_lm", bert)
    task = prepared("masked_lm", model, tokenizer)
    rows = Dataset.from_dict({"text": DOMAIN})
    encoded = task.encode(rows, tokenizer, 64, name="eval")
    again = prepared("masked_lm", model, tokenizer).encode(rows, tokenizer, 64, name="eval")
    assert encoded["labels"] == again["labels"], "held-out text is always masked alike"
    assert encoded["input_ids"] == again["input_ids"]

    train = task.encode(rows, tokenizer, 64, name="train")
    assert "labels" not in train.column_names
    batch = task.collator(tokenizer)(list(train))
    ids, words = batch["input_ids"], batch["words"]
    hidden = [task._masked(ids, words, task._others) for _ in range(12)]
    assert not (hidden[0][1] == hidden[1][1]).all(), "each pass masks others"
    found = [(read[labels != -100], labels[labels != -100]) for read, labels in hidden]
    read, true = (torch.cat(part) for part in zip(*found, strict=True))
    assert len(true) / (12 * int((words >= 0).sum())) == pytest.approx(0.15, abs=0.02)
    shares = [(read == tokenizer.mask_token_id).float().mean(), (read == true).float().mean()]
    assert shares == pytest.approx([0.8, 0.1], abs=0.02)
    for labels in (labels for _, labels in hidden[:3]):
        for row, row_words in zip(labels, words, strict=True):
            for word in set(row_words[row != -100].tolist()):
                assert (row[row_words == word] != -100).all(), "a word is masked as a whole"
    special = torch.tensor([index in tokenizer.all_special_ids for index in range(len(tokenizer))])
    assert not special[true].any()


def test_chinese_characters_are_words(bert, gpt2):
    from adapterlab.tasks.masking import words_of

    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    assert words_of(tokenizer("a statement", add_special_tokens=False).encodings[0], "a statement")[0] == 0
    bytewise = transformers.AutoTokenizer.from_pretrained(gpt2)
    text = "我们去海边 away"
    found = words_of(bytewise(text).encodings[0], text)
    assert len(set(found)) == 6, "five characters and a word"
    assert found == sorted(found)


@pytest.mark.parametrize("method", [None, "lora", "prefix", "bottleneck"])
@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm"])
def test_documents_in_a_block_do_not_see_each_other(kind, method, bert, gpt2):
    model, tokenizer = load(kind, bert if kind == "masked_lm" else gpt2)
    if method:
        torch.manual_seed(1)
        options = {"num_virtual_tokens": 3} if method == "prefix" else {}
        adapterlab.attach(model, method, **options)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            torch.nn.init.normal_(parameter, std=0.5)
    model.eval()
    texts = ["the statement is executed", "a sea of rain walked to us", "expression"]

    def logits(task, texts):
        rows = task.encode(Dataset.from_dict({"text": texts}), tokenizer, 60, name="train")
        assert len(rows) == 1
        batch = task.collator(tokenizer)(list(rows))
        with torch.no_grad():
            return model(input_ids=batch["input_ids"], **task.reading(model, batch)).logits[0]

    apart = prepared(kind, model, tokenizer)
    alone = torch.cat([logits(apart, [text]) for text in texts])
    assert torch.allclose(logits(apart, texts), alone, atol=1e-4)
    together = prepared(kind, model, tokenizer, borders=False)
    assert not torch.allclose(logits(together, texts), alone, atol=1e-2)


@pytest.mark.parametrize("architecture", ["roberta", "distilbert", "albert", "electra", "deberta-v2", "modernbert"])
def test_every_encoder_is_pretrained(architecture, tiny, bert):
    """Those that can keep documents apart give a document the logits that it has alone; the others say so."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    model = tiny(architecture, "MaskedLM")
    adapterlab.attach(model, "lora")
    task = prepared("masked_lm", model, tokenizer)
    assert task.apart == (architecture not in ("deberta-v2", "modernbert"))
    ids = torch.randint(5, 90, (1, 24), generator=torch.Generator().manual_seed(0))
    document = torch.tensor([[0] * 10 + [1] * 14])
    batch = {"document": document, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        packed = model(input_ids=ids, **task.reading(model, batch)).logits[0, 10:]
        alone = model(input_ids=ids[:, 10:]).logits[0]
    assert torch.allclose(packed, alone, atol=1e-4) == task.apart
    labels = ids.masked_fill(torch.arange(24) % 5 != 0, -100)
    given = {**batch, "input_ids": ids, "labels": labels, "words": document}
    loss, _ = task.forward(model, given)
    with torch.no_grad():
        whole = model(input_ids=ids, **task.reading(model, batch)).logits
    expected = torch.nn.functional.cross_entropy(whole[labels != -100], labels[labels != -100])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4), "the head read the masked tokens only"
    if not task.apart:
        assert any("see each other" in note for note in task.notes)
        with pytest.raises(adapterlab.AdapterLabError, match="borders"):
            prepared("masked_lm", model, tokenizer, borders=True)


RECIPE = {
    "version": 1,
    "adapter": {"method": "lora"},
    "task": {"type": "masked_lm"},
    "optim": {"lr": 1e-3, "max_steps": 2, "precision": "fp32"},
}


def recipe_of(model, data, **task):
    return {**RECIPE, "model": {"name": model}, "data": data, "task": {**RECIPE["task"], **task}}


@pytest.mark.parametrize(
    ("how", "texts"),
    [
        ("auto", ["one\ntwo", "three", "four\nfive"]),
        ("blank_lines", ["one\ntwo", "three", "four\nfive"]),
        ("lines", ["one", "two", "three", "four", "five"]),
    ],
)
def test_blank_lines_part_documents(how, texts, bert, tmp_path):
    (tmp_path / "a.txt").write_text("\n\none\ntwo\n\n\nthree\n \nfour\nfive\n")
    data = {"train": str(tmp_path / "a.txt"), "eval": str(tmp_path / "a.txt")}
    recipe = load_recipe(recipe_of(bert, data, documents=how))
    task = TASKS.get("masked_lm")(options={"documents": how})
    assert load_splits(recipe.data, task, 0).train["text"][:] == texts
    streamed = recipe.data.model_copy(update={"streaming": True})
    found = [text for _, text in load_splits(streamed, task, 0).train.documents()]
    assert sorted(found) == sorted(texts)
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    lines = recipe.data.model_copy(update={"train": str(tmp_path / "b.txt")})
    joined = ["one\ntwo"] if how == "blank_lines" else ["one", "two"]
    assert load_splits(lines, task, 0).train["text"][:] == joined


def test_every_place_of_a_stream_can_be_gone_on_from(bert, tmp_path):
    from adapterlab.tasks.streamed import Blocks, Mixed

    model, tokenizer = load("masked_lm", bert)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOMAIN[:12]))
    (tmp_path / "b.txt").write_text("\n\n".join(DOMAIN[12:20]))
    task = prepared("masked_lm", model, tokenizer)

    def blocks():
        parts = []
        for name in ("a.jsonl", "b.txt"):
            data = {"train": str(tmp_path / name), "eval": str(tmp_path / "b.txt"), "streaming": True}
            splits = load_splits(load_recipe(recipe_of(bert, data)).data, task, 3)
            parts.append(task.encode(splits.train, tokenizer, 32, name="train"))
        assert all(isinstance(part, Blocks) for part in parts)
        return Mixed(*parts, 0.3)

    whole = blocks()
    walk = iter(whole)
    rows = [next(walk) for _ in range(230)]  # more than a pass over each
    assert all(len(row["input_ids"]) == 32 for row in rows)
    for place in (1, 2, 17, 50, 119, 190):
        resumed = blocks()
        resumed.go_on(json.loads(json.dumps(whole.state_after(place))))
        again = iter(resumed)
        assert [next(again) for _ in range(30)] == rows[place : place + 30]
        assert resumed.state_after(place + 30) == whole.state_after(place + 30)


def without_mask(bert, folder):
    shutil.copytree(bert, folder / "bert")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=f"{bert}/tokenizer.json", pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    tokenizer.save_pretrained(folder / "bert")
    return str(folder / "bert")


def failing(folder, bert, case):
    (folder / "empty.jsonl").write_text('{"text": " "}\n{"text": ""}\n')
    train, held_out, general = write_corpora(folder)
    data = {"train": train, "eval": held_out, "max_length": 32}
    return {
        "empty": recipe_of(bert, {**data, "train": str(folder / "empty.jsonl")}),
        "long": recipe_of(bert, {**data, "max_length": 100}),
        "share": recipe_of(bert, {**data, "eval": 0.1, "streaming": True}),
        "endless": {**recipe_of(bert, {**data, "streaming": True}), "optim": {"lr": 1e-3}},
        "no_mask": recipe_of(without_mask(bert, folder), data),
        "decoder": recipe_of(bert.replace("bert", "gpt2"), data),
        "encoder": recipe_of(bert, data, type="causal_lm"),
        "replay": {**recipe_of(bert, {**data, "replay": {"train": general}}), "task": {"type": "classification"}},
        "numbers": recipe_of(bert, {**data, "train": str(folder / "numbers.jsonl")}),
        "column": recipe_of(bert, {**data, "streaming": True, "columns": {"text": "txt"}}),
    }[case]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("empty", r"2 of 2 rows can't be used: 2 with no text \(lines 1, 2\)"),
        ("long", r"data.max_length=100.*more than the backbone's 64 positions"),
        ("share", "no share of it can be held out"),
        ("endless", "set optim.max_steps"),
        ("no_mask", "has no mask token.*task.type=causal_lm"),
        ("decoder", "is a gpt2.*task.type=causal_lm"),
        ("encoder", "of BERT's kind.*task.type=masked_lm"),
        ("replay", "data.replay: it is for tasks that learn from raw text"),
        ("numbers", "holds a int where masked_lm needs a text"),
        ("column", "no column 'txt' for the text.*'text'"),
    ],
)
def test_what_cannot_be_pretrained_on_is_refused(case, told, bert, gpt2, tmp_path):
    (tmp_path / "numbers.jsonl").write_text('{"text": 4}\n')
    with pytest.raises(adapterlab.AdapterLabError, match=f"(?s){told}"):
        adapterlab.run({**failing(tmp_path, bert, case), "run": {"dir": str(tmp_path / "run")}})
    assert not (tmp_path / "run").exists()
