"""CoNLL, SQuAD, packed files, folders and encodings, through `read_table`."""
# ruff: noqa: RUF001 (texts in the alphabets of the world)

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterlab.data import load_splits, read_table
from adapterlab.errors import DataError
from adapterlab.recipe.schema import DataSection
from adapterlab.tasks import Classification

ROWS = "text,label\n" + "".join(f"review number {i},{'np'[i % 2]}\n" for i in range(20))


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def message(function, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def splits(train, **options):
    return load_splits(DataSection(train=train, **options), Classification(), 0)


# CoNLL


@pytest.mark.parametrize("ending", ["conll", "bio", "iob"])
@pytest.mark.parametrize(
    "content",
    [
        "-DOCSTART- -X- O O\n\nAnna NNP B-PER\nsings VBZ O\n\n\nIn IN O\nParis NNP B-LOC\n",
        "# id 1\nAnna\tB-PER\nsings\tO\n\n# id 2\nIn\tO\r\nParis\tB-LOC",
        "-DOCSTART-\nAnna  B-PER\nsings O \n \nIn O\nParis B-LOC\n-DOCSTART-\n",
    ],
)
def test_conll_is_a_row_a_sentence(tmp_path, ending, content):
    table = read_table(write(tmp_path / f"a.{ending}", content))
    assert table[:] == {"tokens": [["Anna", "sings"], ["In", "Paris"]], "tags": [["B-PER", "O"], ["O", "B-LOC"]]}


def test_conll_words_may_hold_blanks_between_tabs_and_hashes_may_be_words(tmp_path):
    table = read_table(write(tmp_path / "a.conll", "# a comment\nNew York\tB-LOC\n#\tO\n#tag\tO\n\nno\u00a0break\tO\n"))
    assert table["tokens"][:] == [["New York", "#", "#tag"], ["no\u00a0break"]]


def test_ragged_conll_is_refused_with_its_lines_or_its_sentence_dropped(tmp_path):
    path = write(tmp_path / "a.conll", "a B-X\n\nb O\nc NN O\nd\n\ne O\n")
    said = message(read_table, path)
    assert "line 4: 'c NN O' has 3 columns where the first word's line has 2, separated by blanks" in said
    assert "lines that don't fit: 4, 5" in said
    assert "data.bad_rows=drop" in said
    assert "line 1: 'just' has one column" in message(read_table, write(tmp_path / "b.conll", "just\nwords\n"))

    class Tags(Classification):
        columns = {"tokens": "words", "tags": "their tags"}  # noqa: RUF012
        inputs = ("tokens",)
        strata = None

        def clean(self, column, value):
            return value

    tail = "".join(f"\nw{i} O\n" for i in range(9))
    made = load_splits(DataSection(train=write(Path(path), Path(path).read_text() + tail), bad_rows="drop"), Tags(), 0)
    assert sum(made.sizes.values()) == 11
    assert any("1 sentences with ragged lines dropped (lines 4, 5)" in note for note in made.notes)


# SQuAD


def squad(**changes):
    answer = {"text": "Paris", "answer_start": 11}
    first = {"id": "1", "question": "Where?", "answers": [answer, answer]}
    second = {"id": "2", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": [answer]}
    paragraph = {"context": "She was in Paris.", "qas": [{**first, **changes}, second]}
    return {"version": "v2.0", "data": [{"title": "Anna", "paragraphs": [paragraph]}]}


def test_squad_is_a_row_a_question(tmp_path):
    table = read_table(write(tmp_path / "dev.json", json.dumps(squad())))
    assert table[0] == {
        "id": "1",
        "title": "Anna",
        "context": "She was in Paris.",
        "question": "Where?",
        "answers": {"text": ["Paris", "Paris"], "answer_start": [11, 11]},
        "is_impossible": False,
    }
    assert table[1]["answers"] == {"text": [], "answer_start": []}
    assert table[1]["is_impossible"] is True


def test_squad_without_answers_and_broken(tmp_path):
    unanswered = squad()
    del unanswered["data"][0]["paragraphs"][0]["qas"][0]["answers"]
    assert read_table(write(tmp_path / "test.json", json.dumps(unanswered)))["answers"][0] is None
    said = message(read_table, write(tmp_path / "a.json", json.dumps(squad(question=None))))
    assert "article 1, paragraph 1, question 1: 'question' is missing" in said
    said = message(read_table, write(tmp_path / "b.json", json.dumps(squad(answers=[{"text": "x"}]))))
    assert "question 1: 'answer_start' is missing" in said


# Packed files and folders


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.conll", "a.parquet", "a.txt"])
def test_every_format_may_be_packed(tmp_path, name):
    rows = {"text": ["one", "two"]}
    plain = tmp_path / name
    if name == "a.parquet":
        import datasets

        datasets.Dataset.from_dict(rows).to_parquet(plain)
    else:
        contents = {
            "a.csv": "text\none\ntwo\n", "a.jsonl": '{"text": "one"}\n{"text": "two"}\n', "a.txt": "one\ntwo\n",
            "a.conll": "one O\n\ntwo O\n",
        }  # fmt: skip
        write(plain, contents[name])
    expected = read_table(str(plain))[:]
    content = plain.read_bytes()
    zst = write(tmp_path / f"{name}.zst", pa.compress(content, "zstd", asbytes=True))
    assert read_table(write(tmp_path / f"{name}.gz", gzip.compress(content)))[:] == expected
    assert read_table(zst)[:] == expected
    cut = write(tmp_path / f"cut.{name}.zst", Path(zst).read_bytes()[:-3])
    assert "can't be read: Truncated" in message(read_table, cut)


def test_a_folder_is_its_data_files_in_order(tmp_path):
    write(tmp_path / "rows/b.csv", "text,label\nthird,n\n")
    write(tmp_path / "rows/a.csv.gz", gzip.compress(b"text,label\nfirst,n\nsecond,p\n"))
    for other in ("README.txt", "picture.png", "old/c.csv", ".hidden.csv"):
        write(tmp_path / "rows" / other, "text,label\nno,n\n")
    assert read_table(str(tmp_path / "rows"))["text"][:] == ["first", "second", "third"]
    write(tmp_path / "rows/c.csv", ROWS)
    notes = splits(str(tmp_path / "rows")).notes
    assert notes[0] == "rows/: 3 files read (a.csv.gz, b.csv, c.csv); skipped: README.txt, old/, picture.png."
    said = message(splits, str(tmp_path / "rows"), columns={"text": "txt"})
    assert "no column 'txt'" in said
    write(tmp_path / "rows/d.csv", "text,label\n,n\n")
    assert "1 with no text (d.csv line 2)" in message(splits, str(tmp_path / "rows"))


def test_folders_that_mix_things_are_refused(tmp_path):
    write(tmp_path / "kinds/a.csv", ROWS)
    write(tmp_path / "kinds/b.jsonl", "{}")
    assert f"{tmp_path}/kinds/*.csv or {tmp_path}/kinds/*.jsonl" in message(read_table, str(tmp_path / "kinds"))
    for name in ("train-1.csv", "test.csv"):
        write(tmp_path / "sides" / name, ROWS)
    assert "files to measure on (test.csv)" in message(read_table, str(tmp_path / "sides"))
    write(tmp_path / "none/a.png", "x")
    assert "holds no data file" in message(read_table, str(tmp_path / "none"))
    assert "It holds: a.png" in message(read_table, str(tmp_path / "none"))


# Encodings

TEXTS = {
    "gb18030": "这个产品的质量非常好，我很喜欢，下次还会再买。",
    "big5": "這個產品的品質非常好，我很喜歡，下次還會再買。",
    "shift_jis": "この製品はとても良いです。また買いたいと思います。",
    "euc-jp": "この製品はとても良いです。また買いたいと思います。",
    "euc-kr": "이 제품은 정말 좋습니다. 다시 구매하고 싶습니다.",
    "koi8-r": "Очень хороший фильм, всем рекомендую посмотреть его вечером.",
    "cp1251": "Очень хороший фильм, всем рекомендую посмотреть его вечером.",
    "cp1250": "Děkuji, film byl velmi dobrý, příliš žluťoučký kůň úpěl.",
    "cp1253": "Πολύ καλή ταινία, τη συνιστώ σε όλους όσους την ψάχνουν.",
    "cp1252": "Le café est très bon, l’été à la plage était génial.",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_encodings_of_the_world_are_detected_and_noted(tmp_path, encoding):
    ascii_lines = "".join(f"plain line {i}\n" for i in range(3000))
    content = ascii_lines + "".join(f"{TEXTS[encoding]} {i}\n" for i in range(5))
    assert read_table(write(tmp_path / "a.txt", content.encode(encoding)))["text"][3000] == f"{TEXTS[encoding]} 0"
    path = tmp_path / "a.csv"
    labelled = "text,label\n" + "".join(f"{TEXTS[encoding].replace(',', '')} {i},{'np'[i % 2]}\n" for i in range(20))
    [note, _] = splits(write(path, labelled.encode(encoding)), eval=0.1).notes[0].split(" If texts")
    assert "a.csv is not UTF-8 (line 2); read as" in note


@given(st.binary(min_size=1, max_size=60).filter(lambda b: b"\x00" not in b and b.strip()))
def test_any_bytes_are_read_or_refused_by_name(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("any") / "a.txt", content)
    try:
        rows = read_table(path).num_rows
    except DataError as error:
        rows = "a.txt" in str(error)
    assert rows
