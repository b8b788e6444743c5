"""Streams: the same rows as reading whole, in bounded memory, with an exact resume."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterlab.data import read_table
from adapterlab.data.stream import Stream
from adapterlab.errors import DataError


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def message(function, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def corpus(folder: Path, files: int = 3, rows: int = 7) -> str:
    for i in range(files):
        write(folder / f"{i}.jsonl", "".join(json.dumps({"text": f"file {i} row {j}"}) + "\n" for j in range(rows)))
    return str(folder)


CONTENTS = {
    "a.csv": 'text,label\r\n"two\nlines, ""quoted""",x\r\n\r\nplain,y,\r\nlast,é\r\n',
    "semicolon.csv": "text;label\na;b\nc;d\n",
    "a.tsv": 'text\tlabel\n"so good\tpos\nbad\tneg\n',
    "quoted.tsv": 'text\tlabel\n"two\nlines"\tpos\nbad\tneg\n',
    "a.jsonl": '{"text": "cut \\ud83d", "n": 1}\n\n{"text": "é", "n": 2}',
    "bom.csv": b"\xef\xbb\xbftext,label\na,b\nc,d\n",
    "latin.txt": ("plain\n" * 3 + "café\n\nend").encode("latin-1"),
    "a.txt": "one\r\n\r\nthree\n",
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", CONTENTS)
def test_streams_give_the_rows_of_whole_files_from_every_place(tmp_path, name, packing):
    content = CONTENTS[name] if isinstance(CONTENTS[name], bytes) else CONTENTS[name].encode()
    packed = {"": bytes, ".gz": gzip.compress, ".zst": lambda b: pa.compress(b, "zstd", asbytes=True)}[packing](content)
    path = write(tmp_path / (name + packing), packed)
    expected = read_table(path).to_list()
    assert list(Stream(path)) == expected
    for count in range(len(expected) + 1):
        stopped = Stream(path)
        assert list(itertools.islice(stopped, count)) == expected[:count]
        resumed = Stream(path)
        resumed.restore(json.loads(json.dumps(stopped.state())))
        assert list(resumed) == expected[count:]


def test_parquet_is_streamed_by_row_groups_with_names_of_classes(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = {"text": [str(i) for i in range(10)], "label": [i % 2 for i in range(10)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet", batch_size=3)
    path = str(tmp_path / "a.parquet")
    stream = Stream(path)
    assert list(itertools.islice(stream, 4))[3] == {"text": "3", "label": "pos"}
    assert stream.place == "a.parquet row 4"
    resumed = Stream(path)
    resumed.restore(stream.state())
    assert [row["text"] for row in resumed] == ["4", "5", "6", "7", "8", "9"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shuffle=st.integers(0, 25), stop=st.integers(0, 45), seed=st.integers(0, 3), bad=st.sets(st.integers(0, 6)))
def test_resume_is_exact_however_it_is_shuffled_and_stopped(tmp_path, shuffle, stop, seed, bad):
    folder = corpus(tmp_path / "c")
    lines = Path(folder, "1.jsonl").read_text().splitlines(keepends=True)
    write(Path(folder, "1.jsonl"), "".join("no json\n" if i in bad - {0} else line for i, line in enumerate(lines)))

    def passes():
        return Stream(folder, bad_rows="drop", shuffle=shuffle, seed=seed)

    def texts(stream):
        while stream.epoch < 2:
            yield from ((row["text"], stream.place) for row in stream)

    whole = passes()
    expected = list(texts(whole))
    half = len(expected) // 2
    assert sorted(expected[:half]) == sorted(expected[half:])
    stopped, resumed = passes(), passes()
    first = list(itertools.islice(texts(stopped), stop))
    resumed.restore(stopped.state())
    assert first + list(texts(resumed)) == expected
    assert resumed.dropped == whole.dropped == 2 * len(bad - {0})
    if shuffle > 20:
        assert expected[:half] != expected[half:]  # a new order in each pass


def test_changed_corpora_are_refused_by_name(tmp_path):
    folder = corpus(tmp_path / "c")
    stream = Stream(folder)
    next(iter(stream))
    state, second = stream.state(), Path(folder, "1.jsonl")
    os.utime(second, ns=(0, 10**18))
    assert "'1.jsonl' was written since" in message(Stream(folder).restore, state)
    assert "touch -d @" in message(Stream(folder).restore, state)
    content = second.read_text()
    second.write_text(content.replace("row 3", "row 9"))
    os.utime(second, ns=(0, state["files"][1]["mtime_ns"]))
    assert "'1.jsonl' was changed" in message(Stream(folder).restore, state)
    second.write_text(content)
    os.utime(second, ns=(0, state["files"][1]["mtime_ns"]))
    Stream(folder).restore(state)
    write(Path(folder, "3.jsonl"), content)
    assert "'3.jsonl' is new" in message(Stream(folder).restore, state)
    Path(folder, "3.jsonl").unlink()
    second.unlink()
    assert "'1.jsonl' is gone" in message(Stream(folder).restore, state)
    state = Stream(corpus(tmp_path / "c")).state()
    assert "stopped with seed=0" in message(Stream(folder, seed=1).restore, state)
    assert "lacks shuffle" in message(Stream(folder).restore, {k: v for k, v in state.items() if k != "shuffle"})


def test_bad_rows_are_named_by_file_and_line_or_dropped(tmp_path):
    good = write(tmp_path / "1.csv", "text,label\na,b\n")
    bad = write(tmp_path / "2.csv", 'text,label\n"c\n1",d\ne,f,g\nh,i\n')
    assert "2.csv': line 4 has 3 fields where the header names 2" in message(list, Stream([good, bad]))
    stream = Stream([good, bad], bad_rows="drop")
    assert [row["text"] for row in stream] == ["a", "c\n1", "h"]
    assert stream.dropped == 1
    broken = write(tmp_path / "a.jsonl", '{"text": "a"}\n\n["b"]\n')
    assert "a.jsonl', line 3: a list where an object" in message(list, Stream(broken))
    late = write(tmp_path / "late.txt", b"fine\n" * 300_000 + b"caf\xe9\n")
    assert "late.txt' is not utf-8: line 300001 holds bytes" in message(list, Stream(late))
    cut = gzip.compress("".join(f"line {i * i}\n" for i in range(150_000)).encode(), 1)[:-1000]
    assert "cut.txt.gz' can't be read after line" in message(list, Stream(write(tmp_path / "cut.txt.gz", cut)))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "", "is empty"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", 'text\n"open\n', "never closes"),
        ("a.csv", "text,text\na,b\n", "names a column twice"),
        ("a.json", "[]", "known: .csv, .tsv, .jsonl"),
        ("a.txt", "text\n".encode("utf-16"), "iconv -f utf-16 -t utf-8"),
        ("a.txt", b"PK\x00\x00", "no text file"),
        ("a.parquet", "x", "no readable Parquet file"),
        ("a.parquet.gz", gzip.compress(b"x", mtime=0), "unpack it"),
    ],
)
def test_files_that_cannot_be_streamed_are_refused_at_once(tmp_path, name, content, expected):
    assert expected in message(Stream, write(tmp_path / name, content))


def test_what_cannot_be_streamed_together_is_refused_at_once(tmp_path):
    one, two = write(tmp_path / "1.csv", "text\na\n"), write(tmp_path / "2.csv", "texts\na\n")
    assert "only one of them has: text, texts" in message(Stream, [one, two])
    assert "download its files" in message(Stream, "hub:org/set")
    assert "Did you mean 'refuse'?" in message(Stream, one, bad_rows="refused")
    assert Stream(one).columns == ["text"]


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "big.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for i in range(15_000):
            file.write(json.dumps({"text": f"{i} " * 100}) + "\n")
    stream = Stream(str(path), shuffle=100)
    next(iter(stream))
    tracemalloc.start()
    count = sum(1 for _ in stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 14_999
    assert peak < 4_000_000
