"""Documents to pairs of segments, right and wrong; models with a head for them; what can't be done is refused."""

from __future__ import annotations

import json
import random

import pytest
import torch
import transformers
from corpora import DOMAIN, tiny_bert
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import adapterlab
from adapterlab.data import load_splits
from adapterlab.recipe import load_recipe
from adapterlab.tasks import TASKS
from adapterlab.tasks.packing import Pieces
from adapterlab.tasks.sentence_pairs import Pairer, split_sentences
from adapterlab.training.trainer import best_metric

KINDS = ["next", "order"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("sentences") / "bert")


@pytest.fixture(scope="module")
def tokenizer(bert):
    return transformers.AutoTokenizer.from_pretrained(bert)


def prepared(kind, model, tokenizer, **options):
    task = TASKS.get("masked_lm")(options={"sentences": kind, **options})
    task.prepare(model, tokenizer)
    return task


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "no." (Why?) She left.', ['He said "no."', "(Why?)", "She left."]),
        ("a line\n\n another one \nthe last", ["a line", "another one", "the last"]),
        ("It costs 3.50, e.g. today. 12 more", ["It costs 3.50, e.g. today.", "12 more"]),
        ("\u6211\u4eec\u53bb\u3002\u4ed6\u4eec\u6765\uff01", ["\u6211\u4eec\u53bb\u3002", "\u4ed6\u4eec\u6765\uff01"]),
    ],
)
def test_where_sentences_end(text, sentences):
    assert split_sentences(text) == sentences


def document(number, lengths):
    ids = [1000 * (number + 1) + place for place in range(sum(lengths))]
    ends = [sum(lengths[: count + 1]) for count in range(len(lengths))]
    return Pieces(ids, list(range(len(ids))), ends)


def segments(block):
    """The tokens of both segments, without the special ones."""
    found = ([], [])
    for token, segment in zip(block.input_ids, block.document, strict=True):
        if token >= 1000:
            found[segment].append(token)
    return found


@given(
    documents=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=9), min_size=2, max_size=6),
    size=st.integers(16, 60),
    kind=st.sampled_from(KINDS),
)
@settings(max_examples=80, deadline=None)
def test_pairs_are_two_parts_of_one_document_and_wrong_ones_are_not(documents, size, kind):
    made = [document(number, lengths) for number, lengths in enumerate(documents)]
    pairer = Pairer(kind, size, ([1], [2], [3]), 7)
    pairs = [*(pair for one in made for pair in pairer.take(one)), *pairer.rest()]
    read = set()
    for pair in pairs:
        first, second = segments(pair)
        read |= {*first, *second}
        assert first
        assert first + second == list(range(first[0], first[0] + len(first) + len(second))), "in a row"
        assert first[-1] + 1 == second[0]
        wrong = segments(pair.wrong)
        if kind == "order":
            assert wrong == (second, first)
        else:
            assert wrong[0] == first
            assert wrong[1]
            assert wrong[1][0] // 1000 != first[0] // 1000, "of another document"
        for block in (pair, pair.wrong):
            assert len(block.input_ids) <= size
            assert block.input_ids[0] == 1
            assert block.input_ids[-1] == 3
            assert block.input_ids.count(2) == 1
            assert [token for token, word in zip(block.input_ids, block.words, strict=True) if word < 0] == [1, 2, 3]
    long = [one for one, lengths in zip(made, documents, strict=True) if len(lengths) > 1]
    assert {token for one in long for token in one.ids} <= read, "no text is lost"


def test_lengths_do_not_tell_which_pairs_are_wrong(bert, tokenizer):
    model = transformers.BertForPreTraining.from_pretrained(bert)
    rows = prepared("next", model, tokenizer).encode(Dataset.from_dict({"text": DOMAIN}), tokenizer, 64, name="train")
    assert len(rows) > 80
    right, wrong = (sum(map(len, rows[name])) / len(rows) for name in ("input_ids", "wrong_ids"))
    assert wrong == pytest.approx(right, rel=0.08)
    full = [sum(len(ids) > 40 for ids in rows[name]) / len(rows) for name in ("input_ids", "wrong_ids")]
    assert full[0] == pytest.approx(full[1], abs=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_pairs_are_fixed_and_those_to_train_on_are_drawn(kind, bert, tokenizer):
    from adapterlab.tasks.sentence_head import arranged

    model = transformers.BertForPreTraining.from_pretrained(bert)
    texts = Dataset.from_dict({"text": DOMAIN[:16]})
    held, again = (prepared(kind, model, tokenizer).encode(texts, tokenizer, 48, name="eval") for _ in range(2))
    assert held.to_dict() == again.to_dict()
    assert sum(held["wrong"]) == pytest.approx(len(held) / 2, abs=0.5), "guessing is right in half of them"

    torch.manual_seed(3)
    train, other = (prepared(kind, model, tokenizer).encode(texts, tokenizer, 48, name="train") for _ in range(2))
    assert train.to_dict() == other.to_dict()
    torch.manual_seed(4)
    assert prepared(kind, model, tokenizer).encode(texts, tokenizer, 48, name="train").to_dict() != train.to_dict()
    task = prepared(kind, model, tokenizer)
    batch = task.collator(tokenizer)(list(train))
    passes = [arranged(batch) for _ in range(2)]
    assert not (passes[0]["wrong"] == passes[1]["wrong"]).all(), "each pass draws anew"
    for drawn in passes:
        assert float(drawn["wrong"].float().mean()) == pytest.approx(0.5, abs=0.15)
        for row, wrong in enumerate(drawn["wrong"].tolist()):
            ids = train[row]["wrong_ids" if wrong else "input_ids"]
            assert drawn["input_ids"][row][drawn["attention_mask"][row] == 1].tolist() == ids


@pytest.mark.parametrize("method", [None, "lora", "bottleneck"])
@pytest.mark.parametrize("name", ["Bert", "Albert", "MegatronBert", "Ernie"])
def test_the_loss_is_that_of_the_model_itself(name, method, tokenizer):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForPreTraining")(config)
    if method:
        adapterlab.attach(model, method)
        trained = {path for path, one in model.named_parameters() if one.requires_grad}
        assert any("seq_relationship" in path or "sop_classifier" in path for path in trained), "it is the task's"
        assert not any("predictions" in path for path in trained), "this head is a pretrained one"
    model.eval()
    task = prepared("order", model, tokenizer)
    rows = task.encode(Dataset.from_dict({"text": DOMAIN[:4]}), tokenizer, 48, name="eval")
    batch = task.collator(tokenizer)(list(rows))
    loss, told = task.forward(model, batch)
    label = "sentence_order_label" if name == "Albert" else "next_sentence_label"
    own = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
        token_type_ids=batch["document"].clamp(min=0), labels=batch["labels"], **{label: batch["wrong"]},
    )  # fmt: skip
    assert loss.item() == pytest.approx(own.loss.item(), rel=1e-4)
    assert told["sentences"].shape == (len(rows), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_place_of_a_stream_can_be_gone_on_from(kind, bert, tokenizer, tmp_path):
    model = transformers.BertForPreTraining.from_pretrained(bert)
    (tmp_path / "a.txt").write_text("\n\n".join(DOMAIN[:9]))
    data = {"train": str(tmp_path / "a.txt"), "eval": str(tmp_path / "a.txt"), "streaming": True}

    def blocks():
        task = prepared(kind, model, tokenizer)
        splits = load_splits(load_recipe(recipe_of(bert, data, kind)).data, task, 3)
        return task.encode(splits.train, tokenizer, 40, name="train")

    whole = blocks()
    walk = iter(whole)
    rows = [next(walk) for _ in range(170)]  # more than two passes
    for place in (1, 17, 60, 121):
        resumed = blocks()
        resumed.go_on(json.loads(json.dumps(whole.state_after(place))))
        again = iter(resumed)
        assert [next(again) for _ in range(30)] == rows[place : place + 30]


def recipe_of(model, data, kind="next", **task):
    return {
        "version": 1,
        "model": {"name": model},
        "adapter": {"method": "lora"},
        "task": {"type": "masked_lm", "sentences": kind, **task},
        "data": {"max_length": 48, **data},
        "optim": {"lr": 1e-3, "max_steps": 2, "precision": "fp32"},
    }


def other_backbone(name, tokenizer, folder):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
             "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}  # fmt: skip
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), max_position_embeddings=80, **sizes)
    getattr(transformers, f"{name}ForMaskedLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("roberta", r"RobertaForMaskedLM, which 'roberta' is pretrained as, has no head for sentences. These have one: "
         r"albert, bert, big_bird, .*task\.sentences=none"),
        ("electra", "ElectraForPreTraining, .* has no head for sentences"),
        ("modernbert", r"is a modernbert.*BERT's or ALBERT's kind; else set task\.sentences=none"),
        ("lines", r"train: no document has two sentences.*documents=blank_lines"),
        ("eval", "eval: no document has two sentences"),
        ("replay", "data.replay: train: no document has two sentences"),
        ("alone", r"train: there is one document only.*task\.sentences=order"),
        ("stream", r"the corpus: there is one document only"),
        ("short", r"data\.max_length=10: two segments need 11 at least"),
        ("borders", r"task\.borders: with task\.sentences=next a block is one pair"),
        ("metric", "sentence_accuracy needs pairs. Set task.sentences to next or order"),
        ("kind", r"task\.sentences: must be none or next or order, got 'nxt'\. Did you mean 'next'"),
    ],
)  # fmt: skip
def test_what_has_no_pairs_is_refused(case, told, bert, tokenizer, tmp_path):
    def file(name, *documents):
        (tmp_path / name).write_text("\n\n".join(documents))
        return str(tmp_path / name)

    good = file("good.txt", *DOMAIN[:8])
    lines, alone = (
        file("lines.txt", "\n".join(["no end", "here neither"])),
        file("alone.txt", "One line.\nThe next one. And a last."),
    )
    data = {"train": good, "eval": good}
    recipe = {
        "lines": lambda: recipe_of(bert, {**data, "train": lines}),
        "eval": lambda: recipe_of(bert, {**data, "eval": lines}),
        "replay": lambda: recipe_of(bert, {**data, "replay": {"train": lines, "eval": lines}}),
        "alone": lambda: recipe_of(bert, {**data, "train": alone}, documents="blank_lines"),
        "stream": lambda: recipe_of(bert, {**data, "train": alone, "streaming": True}, documents="blank_lines"),
        "short": lambda: recipe_of(bert, {**data, "max_length": 10}),
        "borders": lambda: recipe_of(bert, data, borders=True),
        "metric": lambda: recipe_of(bert, data, "none", metrics=["sentence_accuracy"]),
        "kind": lambda: recipe_of(bert, data, "nxt"),
    }.get(case)
    if recipe is None:
        names = {"roberta": "Roberta", "electra": "Electra", "modernbert": "ModernBert"}
        recipe_made = recipe_of(other_backbone(names[case], tokenizer, tmp_path / case), data)
    else:
        recipe_made = recipe()
    with pytest.raises(adapterlab.AdapterLabError, match=f"(?s){told}"):
        adapterlab.run({**recipe_made, "run": {"dir": str(tmp_path / "run")}})


def test_one_document_does_for_the_order_of_its_sentences(bert, tokenizer):
    model = transformers.BertForPreTraining.from_pretrained(bert)
    task = prepared("order", model, tokenizer)
    assert len(task.encode(Dataset.from_dict({"text": DOMAIN[:1]}), tokenizer, 40, name="train")) > 1
    task.encode(Dataset.from_dict({"text": [*DOMAIN[:3], "One alone"]}), tokenizer, 40, name="train")
    assert any("1 documents of one sentence give no pair" in note for note in task.notes)


def test_the_best_state_may_be_that_of_the_pairs(bert):
    recipe = load_recipe({**recipe_of(bert, {"train": "a", "eval": "b"}), "eval": {"best": "sentence_accuracy"}})
    assert best_metric(recipe, TASKS.get("masked_lm").from_recipe(recipe.task, recipe.data)) == "sentence_accuracy"


WORDS = ["day", "sea", "rained", "walked", "all", "we", "on", "and", "us", "it"]


def test_the_order_of_sentences_is_learned(bert, tmp_path):
    draw = random.Random(0)
    for name, count in (("train", 300), ("eval", 80)):
        lines = [f"First {' '.join(draw.sample(WORDS, 2))}. Then {' '.join(draw.sample(WORDS, 2))}."
                 for _ in range(count)]  # fmt: skip
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    data = {"train": str(tmp_path / "train.txt"), "eval": str(tmp_path / "eval.txt"), "max_length": 24}
    recipe = recipe_of(bert, data, "order") | {
        "adapter": {"method": "full"},
        "optim": {"lr": 1e-2, "schedule": "constant", "max_steps": 90, "batch_size": 16, "precision": "fp32"},
        "eval": {"best": "sentence_accuracy"},
        "log": {"plot": False},
        "run": {"dir": str(tmp_path / "run")},
    }
    result = adapterlab.run(recipe)
    assert result.baselines["majority class"] == {"sentence_accuracy": 0.5}
    assert result.baselines["untouched backbone"]["sentence_accuracy"] < 0.7
    assert result.metrics["sentence_accuracy"] > 0.9
    from adapterlab.predicting import Predictor

    right, swapped, alone = Predictor(tmp_path / "run").predict(
        ["First sea day. Then us it.", "Then us it. First sea day.", "First sea day."]
    )
    assert right["coherence"] > 0.8
    assert swapped["coherence"] < 0.2
    assert alone["coherence"] is None
