"""Preparing rows (cache, processes), long texts and the statistics of what came out."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from adapterlab.data import load_splits
from adapterlab.data.preparing import Preparation, encode_rows
from adapterlab.data.statistics import as_tables, describe
from adapterlab.data.tokenizing import identity, settle, tokenise
from adapterlab.errors import ConfigError, DataError
from adapterlab.recipe import load_recipe
from adapterlab.recipe.schema import DataSection
from adapterlab.tasks import Task

WORDS = {
    word: number for number, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", *(f"w{i}" for i in range(50))])
}


def make_tokenizer(words=WORDS):
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", model_max_length=64)


@pytest.fixture
def tokenizer():
    return make_tokenizer()


def text(first: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(first, first + count))


def upper(batch):
    if calls := os.environ.get("UPPER_CALLS"):
        with Path(calls).open("a") as file:
            file.write(f"{os.getpid()}\n")
    return {"upper": [value.upper() for value in batch["text"]]}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    path = tmp_path / "calls"
    path.write_text("")
    monkeypatch.setenv("UPPER_CALLS", str(path))
    return lambda: path.read_text().split()


# encode_rows


def rows(count: int = 20) -> Dataset:
    return Dataset.from_dict({"text": [f"row {i}" for i in range(count)]})


def encode(dataset, **options):
    return encode_rows(dataset, upper, description="Preparing", **options)["upper"][:]


def test_rows_are_encoded_once_and_then_taken_from_the_cache(tmp_path, calls):
    folder = str(tmp_path / "cache")
    expected = [f"ROW {i}" for i in range(20)]
    for _ in range(2):
        assert encode(rows(), cache=folder, fingerprint=["a", 1]) == expected
    assert len(calls()) == 1
    assert encode(rows(), cache=folder, fingerprint=["a", 2]) == expected  # other options
    assert encode(rows(21), cache=folder, fingerprint=["a", 1])[20] == "ROW 20"  # other rows
    assert encode(rows().select(range(5, 15)), cache=folder, fingerprint=["a", 1]) == expected[5:15]
    assert len(calls()) == 4


def test_without_a_cache_nothing_is_written(tmp_path, calls, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home")
    for cache in (False, True, False, True):  # so few rows aren't worth keeping
        encode(rows(), cache=cache)
    assert len(calls()) == 4
    assert not (tmp_path / "home").exists()


def test_the_shared_cache_forgets_what_nobody_used_for_a_month(tmp_path, calls, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    encode(rows(5000), cache=True)
    [kept] = (tmp_path / "adapterlab").glob("*.arrow")
    old = tmp_path / "adapterlab" / "old.arrow"
    old.write_text("x")
    month = time.time() - 31 * 24 * 3600
    for file in (old, kept):
        os.utime(file, (month, month))
    before = len(calls())
    assert encode(rows(5000), cache=True)[4999] == "ROW 4999"
    assert len(calls()) == before
    assert kept.exists()
    assert not old.exists()


def test_a_cache_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache: the folder '.*file/x' can't be written"):
        encode(rows(), cache=str(tmp_path / "file/x"))


def test_workers_share_the_rows_in_order(tmp_path, calls):
    for _ in range(2):
        found = encode(rows(50), workers=2, cache=str(tmp_path / "cache"))
        assert found == [f"ROW {i}" for i in range(50)]
    assert len(set(calls()) - {str(os.getpid())}) == 2
    assert len(calls()) == 2
    encode(rows(50), workers="auto")  # too few to pay for processes
    assert calls()[2:] == [str(os.getpid())]


def test_no_bar_where_there_is_no_terminal(capfd):
    encode(rows())
    assert capfd.readouterr().err == ""


# The tokenizer's identity


def test_identity_is_that_of_what_it_gives(tokenizer):
    before = identity(tokenizer)
    tokenizer(["w1 w2 w3"], truncation=True, max_length=3)
    assert identity(tokenizer) == identity(make_tokenizer()) == before
    assert identity(make_tokenizer({**WORDS, "more": len(WORDS)})) != before
    tokenizer.add_tokens(["other"])
    assert identity(tokenizer) != before


# Long texts


def test_cut_texts_are_counted_exactly(tokenizer):
    columns = tokenise(tokenizer, [text(0, 6), text(0, 7)], max_length=8)
    assert columns["cut"] == [False, True]
    assert [len(ids) for ids in columns["input_ids"]] == [8, 8]
    pairs = tokenise(tokenizer, ["w1", "w1"], [text(0, 4), text(0, 5)], max_length=8, truncation="only_second")
    assert pairs["cut"] == [False, True]


def test_windows_overlap_by_the_stride_and_name_their_row(tokenizer):
    columns = tokenise(tokenizer, [text(0, 10), text(20, 3)], max_length=8, long_texts="window", stride=2)
    assert columns["row"] == [0, 0, 1]
    first, second, other = ([i - 4 for i in ids[1:-1]] for ids in columns["input_ids"])
    assert (first, second, other) == ([0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9], [20, 21, 22])
    pairs = tokenise(
        tokenizer, ["w1 w2"], [text(10, 9)], max_length=10, long_texts="window", stride=1, truncation="only_second",
        return_offsets_mapping=True,
    )  # fmt: skip
    assert pairs["row"] == [0, 0]
    assert all(ids[1:3] == [5, 6] for ids in pairs["input_ids"])
    assert len(pairs["offset_mapping"]) == 2


def test_windows_without_room_are_refused(tokenizer):
    with pytest.raises(DataError, match=r"data\.stride=6 leaves windows .* 2 of them special.* less than 6"):
        tokenise(tokenizer, ["w1"], max_length=8, long_texts="window", stride=6)
    with pytest.raises(ConfigError, match="windows get nowhere"):
        load_recipe("quickstart", ["data.long_texts=window", "data.max_length=32"])


def test_settling_words_what_became_of_long_texts():
    def settled(columns, choice):
        return settle(
            Dataset.from_dict(columns), name="train", max_length=8, long_texts=choice, locate=lambda rows: f"at {rows}"
        )

    found, count, note = settled({"x": [1, 2], "cut": [False, True]}, "cut")
    assert (found.column_names, count) == (["x"], 1)
    assert note == "train: 50.0% of 2 texts cut to 8 tokens (data.max_length)."
    assert settled({"x": [1], "cut": [False]}, "refuse")[1:] == (0, None)
    with pytest.raises(DataError, match=r"train: 1 of 2 texts have more than 8 tokens \(at \[1\]\)"):
        settled({"x": [1, 2], "cut": [False, True]}, "refuse")
    _, count, note = settled({"x": [1, 2, 3, 4], "row": [0, 0, 1, 2]}, "window")
    assert (count, note) == (0, "train: 1 texts longer than 8 tokens read in 2 windows.")


def classify(tmp_path, **options):
    lines = [f"{text(i, 10 if i == 7 else 2)},{'np'[i % 2]}" for i in range(20)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    data = DataSection(train=str(tmp_path / "a.csv"), eval=str(tmp_path / "a.csv"), max_length=8, **options)
    task = Task.from_recipe(load_recipe("quickstart").task, data)
    splits = load_splits(data, task, 0)
    task.fit(splits)
    return task, splits


def test_classification_cuts_or_refuses_long_texts_by_file_and_line(tmp_path, tokenizer):
    task, splits = classify(tmp_path)
    encoded = task.encode(splits.train, tokenizer, 8, name="train")
    assert task.cut == {"train": 1}
    assert "cut" not in encoded.column_names
    assert "train: 5.0% of 20 texts cut to 8 tokens (data.max_length)." in task.notes
    task, splits = classify(tmp_path, long_texts="refuse")
    with pytest.raises(DataError, match=r"1 of 20 texts have more than 8 tokens \(line 9\)"):
        task.encode(splits.train, tokenizer, 8, name="train")
    with pytest.raises(ConfigError, match="classification can't read texts in windows"):
        classify(tmp_path, long_texts="window", stride=2)


def test_classification_uses_the_cache_of_its_recipe(tmp_path, tokenizer):
    folder = tmp_path / "cache"
    task, splits = classify(tmp_path, cache=str(folder))
    first = task.encode(splits.train, tokenizer, 8, name="train")
    [file] = folder.iterdir()
    made = file.stat().st_ino, file.read_bytes()
    task, splits = classify(tmp_path, cache=str(folder))
    assert task.encode(splits.train, tokenizer, 8, name="train").to_list() == first.to_list()
    assert task.cut == {"train": 1}
    assert (file.stat().st_ino, file.read_bytes()) == made
    task.encode(splits.train, tokenizer, 7, name="train")
    assert len(list(folder.iterdir())) == 2
    assert Task.from_state(task.state()).preparation == Preparation()  # predicting keeps nothing


def _words(row: int) -> str:
    return text(row, 12 if row == 7 else 3)


ROWS = {
    "tagging": lambda n: {"tokens": _words(n).split(), "tags": ["AB"[n % 2]] * (12 if n == 7 else 3)},
    "relation": lambda n: {"text": _words(n), "head": [0, 2], "tail": [3, 5], "label": "ab"[n % 2]},
    "qa": lambda n: {"question": "w1", "context": _words(n), "answers": {"text": [f"w{n}"], "answer_start": [0]}},
    "multiple_choice": lambda n: {"question": _words(n), "choices": ["w1", "w2"], "answer": n % 2},
    "similarity": lambda n: {"text": _words(n), "text_pair": "w1", "score": n % 2},
    "instruction": lambda n: {"prompt": _words(n), "completion": "w1 w2"},
    "seq2seq": lambda n: {"source": _words(n), "target": _words(n)},
}


@pytest.mark.parametrize("kind", ROWS)
def test_other_tasks_use_cache_and_workers_and_tell_the_same(kind, tmp_path):
    """Row 8 is too long: its note counts it, whoever tokenised it, and when."""
    file, folder = tmp_path / "rows.jsonl", tmp_path / "cache"
    file.write_text("\n".join(json.dumps(ROWS[kind](n)) for n in range(20)), encoding="utf-8")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[E1]", "[/E1]", "[E2]", "[/E2]"])

    def prepared(**settings):
        data = DataSection(train=str(file), eval=str(file), max_length=11, stride=2, **settings)
        options = {"stride": 2} if kind == "qa" else {"max_target_length": 11} if kind == "seq2seq" else {}
        task = Task.from_recipe(SimpleNamespace(type=kind, metrics=None, model_extra=options), data)
        splits = load_splits(data, task, 0)
        task.fit(splits)
        return task.encode(splits.train, tokenizer, 11, name="train").to_list(), task.notes

    rows, notes = prepared(cache=False)
    assert len(rows) >= (19 if kind == "instruction" else 20)
    assert any(" 1 of 20 " in note or "5.0% of 20" in note for note in notes)
    assert prepared(cache=str(folder)) == (rows, notes)
    [kept] = folder.iterdir()
    made = kept.stat().st_ino
    assert prepared(cache=str(folder)) == (rows, notes)
    assert [file.stat().st_ino for file in folder.iterdir()] == [made]
    assert prepared(cache=False, workers=2) == (rows, notes)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.workers=0", "must be auto, or a number of processes"),
        ("data.workers=many", "must be auto, or a number of processes"),
        ("data.cache=3", "must be true, false or the path of a folder"),
    ],
)
def test_settings_that_cannot_be_are_explained(override, said):
    with pytest.raises(ConfigError, match=said):
        load_recipe("quickstart", [override])


# Statistics


def test_statistics_of_lengths_and_classes():
    encoded = Dataset.from_dict({"input_ids": [[1] * n for n in range(1, 101)], "labels": [0, 0, 0, 1] * 25})
    found = describe(encoded, cut=5, labels=["neg", "pos", "none"])
    assert (found.rows, found.mean, found.median, found.longest, found.cut_share) == (100, 50.5, 50.5, 100, 0.05)
    assert found.p95 == pytest.approx(95.05)
    assert found.classes == {"neg": 75, "pos": 25, "none": 0}
    table = as_tables({"train": found, "eval": describe(encoded.select(range(4)), labels=["neg", "pos", "none"])})
    assert "| train | 100 | 50.5 | 50.5 | 95.05 | 100 | 5.0% |" in table
    assert "| eval | 4 | 2.5 | 2.5 | 3.85 | 4 |  |" in table
    assert "| train | 75 (75.0%) | 25 (25.0%) | 0 (0.0%) |" in table


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([[-100, 0, 1], [1, 1, -100]], {"a": 1, "b": 3}),  # a tag a token; the loss passes over -100
        ([[1.0, 0.0], [1.0, 1.0]], {"a": 2, "b": 1}),  # several labels a row
        ([0.5, 2.5], {}),  # numbers
    ],
)
def test_statistics_of_other_kinds_of_labels(labels, classes):
    encoded = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 2, "labels": labels})
    assert describe(encoded, labels=["a", "b"]).classes == classes


def test_statistics_of_candidates_measure_each():
    found = describe(Dataset.from_dict({"input_ids": [[[1], [1, 2]], [[1] * 6, [1, 2, 3]]]}))
    assert (found.rows, found.mean, found.longest, found.classes) == (2, 3.0, 6, {})
