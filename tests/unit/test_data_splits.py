"""Optional columns, row checks, label maps, groups, duplicates, overlaps and the record of splits."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterlab.data import load_rows, load_splits
from adapterlab.errors import ConfigError, DataError
from adapterlab.recipe import load_recipe
from adapterlab.recipe.schema import DataSection
from adapterlab.tasks import Classification, Multilabel


class Spans(Classification):
    """A task with a column that files may lack, and rows that can be wrong as a whole."""

    columns = {"text": "the text", "label": "its class", "end": "where a span ends"}  # noqa: RUF012
    optional = ("end",)

    def clean(self, column, value):
        return value if column == "end" else super().clean(column, value)

    def check(self, row):
        end = row.get("end")
        if end is not None and end > len(row["text"]):
            return f"the span ends at {end}, outside the text"
        return None


class Tagging(Classification):
    columns = {"tokens": "words", "tags": "their tags"}  # noqa: RUF012
    inputs = ("tokens",)
    strata = None

    def clean(self, column, value):
        return value


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def jsonl(path: Path, rows: list[dict]) -> str:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def reviews(count: int, **more) -> list[dict]:
    return [{"text": f"review number {i}", "label": "np"[i % 2], **more} for i in range(count)]


def splits(train, task=None, seed=0, **options):
    return load_splits(DataSection(train=train, **options), task or Classification(), seed)


def message(function, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# Rows


def test_optional_columns_may_lack_or_be_empty_unless_named(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", reviews(20))
    assert splits(path, Spans()).train.column_names == ["text", "label"]
    rows = [*reviews(20, end=3), {"text": "no end", "label": "n"}]
    made = splits(jsonl(tmp_path / "b.jsonl", rows), Spans())
    assert set(made.train["end"]) | set(made.eval["end"]) == {3, None}
    said = message(splits, path, Spans(), columns={"end": "stop"})
    assert "no column 'stop' for the task's end (where a span ends)" in said


def test_rows_wrong_as_a_whole_are_named_by_file_and_line(tmp_path):
    good = jsonl(tmp_path / "1.jsonl", reviews(20, end=3))
    bad = jsonl(tmp_path / "2.jsonl", [{"text": f"t{i}", "label": "n", "end": 2 + 7 * (i in (1, 3))} for i in range(5)])
    said = message(splits, [good, bad], Spans())
    assert "2 where the span ends at 9, outside the text (2.jsonl lines 2, 4)" in said
    made = splits([good, bad], Spans(), bad_rows="drop")
    assert sum(made.sizes.values()) == 23
    assert any("2 of 25 rows dropped" in note for note in made.notes)


def test_values_of_a_wrong_kind_are_named_by_line(tmp_path):
    rows = [*reviews(20), {"text": ["a", "b"], "label": "n"}, {"text": "fine", "label": {"x": 1}}]
    said = message(splits, jsonl(tmp_path / "a.jsonl", rows))
    assert "1 where column 'text' holds a list where classification needs one text per row (line 21)" in said
    assert "1 where column 'label' holds a dict where classification needs one label per row (line 22)" in said


def test_lines_that_are_no_json_can_be_dropped(tmp_path):
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in reviews(20)) + '{"text": \n')
    assert "line 21: no JSON" in message(splits, path)
    assert any("1 lines that hold no JSON object dropped (lines 21)" in n for n in splits(path, bad_rows="drop").notes)


# Labels


def test_label_map_renames_and_refuses_strangers(tmp_path):
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(20)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"text": "t20", "label": "positive"}])
    made = splits(path, label_map={"0": "negative", 1: "positive"})
    assert set(made.train["label"]) == {"negative", "positive"}
    said = message(splits, path, label_map={"0": "negative"})
    assert "data.label_map has no '1', which" in said
    assert "(lines 2, 4, 6, 8, 10 and 5 more)" in said
    assert ', and 1 other labels. It maps: 0 to negative. Add it; "1": "1" keeps it as it is.' in said
    data = DataSection(train=path, label_map={"0": "negative", "1": "positive"})
    assert load_rows(path, data, Classification(), needed=["text"])[0].num_rows == 21


def test_label_map_reaches_into_lists_of_tags(tmp_path):
    content = "".join(f"w{i} B-PERSON\nx O\n\n" for i in range(20))
    made = splits(write(tmp_path / "a.conll", content), Tagging(), label_map={"B-PERSON": "B-PER", "O": "O"})
    assert made.train["tags"][0] == ["B-PER", "O"]
    assert made.train["tokens"][0][1] == "x"


def test_label_map_from_a_recipe(tmp_path):
    recipe = load_recipe("quickstart", ["data.label_map={0: negative, 1: positive}"])
    assert recipe.data.label_map == {"0": "negative", "1": "positive"}
    assert load_recipe("quickstart", ["data.label_map.0=negative"]).data.label_map == {"0": "negative"}


# Groups


def grouped(count: int, groups: int) -> list[dict]:
    return [{**row, "author": f"author {i % groups}"} for i, row in enumerate(reviews(count))]


def test_groups_stay_on_one_side_and_classes_in_proportion(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", grouped(600, 75))
    authors = {row["text"]: row["author"] for row in grouped(600, 75)}
    made = splits(path, group_by="author", eval=0.1, test=0.2)
    sides = defaultdict(set)
    for name, rows in made.named.items():
        for text in rows["text"]:
            sides[authors[text]].add(name)
        assert Counter(rows["label"])["n"] == pytest.approx(len(rows) / 2, abs=len(rows) * 0.1)
    assert all(len(side) == 1 for side in sides.values())
    assert made.sizes["eval"] == pytest.approx(60, abs=8)
    assert made.sizes["test"] == pytest.approx(120, abs=8)
    assert splits(path, group_by="author", eval=0.1, test=0.2).test["text"][:] == made.test["text"][:]
    assert splits(path, group_by="author", eval=0.1, test=0.2, seed=1).test["text"][:] != made.test["text"][:]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab")), min_size=1, max_size=60), st.integers(0, 9))
def test_groups_are_never_split_whatever_their_sizes(rows, seed):
    from adapterlab.data.splits import draw_groups

    groups, strata = [group for group, _ in rows], [label for _, label in rows]
    left, drawn = draw_groups(groups, strata, range(len(rows)), round(len(rows) * 0.3), seed)
    assert sorted(left + drawn) == list(range(len(rows)))
    assert not {groups[row] for row in left} & {groups[row] for row in drawn}
    assert {strata[row] for row in left} == set(strata)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("aaaabbbccd"), max_size=3, unique=True), min_size=1, max_size=80),
    st.floats(0.05, 0.6),
    st.integers(0, 9),
)
def test_rows_of_several_labels_share_out_each(rows, share, seed):
    from adapterlab.data.splits import draw

    count = round(len(rows) * share)
    left, drawn = draw(rows, range(len(rows)), count, seed)
    assert sorted(left + drawn) == list(range(len(rows)))
    every, held = (Counter(label for row in part for label in rows[row]) for part in (range(len(rows)), drawn))
    assert all(held[label] < n for label, n in every.items()), "none vanishes from train"
    alone = sum(held[label] + 1 == n for label, n in every.items())
    assert count - alone <= len(drawn) <= count
    rarest = min(every, key=lambda label: (every[label], label), default=None)
    if rarest is not None and every[rarest] > 1:
        assert abs(held[rarest] - share * every[rarest]) <= 1.5
    assert draw(rows, range(len(rows)), count, seed) == (left, drawn)


def test_rare_labels_get_their_share_of_made_splits(tmp_path):
    """One row in fifty is rare; a plain draw would often leave eval without any, or train."""
    rows = [
        {"text": f"text {i}", "label": ["x"] * (i % 2) + ["y"] * (i % 3 == 0) + ["rare"] * (i % 50 == 7)}
        for i in range(400)
    ]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"text": "only one", "label": ["once"]}])
    for seed in range(5):
        made = splits(path, Multilabel(), seed=seed, eval=0.25, test=0.25)
        held = {
            name: Counter(label for labels in part["label"] for label in labels) for name, part in made.named.items()
        }
        assert (held["train"]["rare"], held["eval"]["rare"], held["test"]["rare"]) == (4, 2, 2)
        assert held["train"]["once"] == 1
        assert held["eval"]["x"] == pytest.approx(50, abs=1)
        assert held["test"]["y"] == pytest.approx(33.5, abs=1)
        assert made.sizes == {"train": 201, "eval": 100, "test": 100}
    assert made.record()["stratified_by"] == "label"
    fewer = splits(path, Multilabel(), eval=0.25, max_samples=100)
    assert 1 <= sum("rare" in labels for labels in fewer.train["label"]) <= 3
    assert len(fewer.train) == 100


def test_rare_labels_get_their_share_of_groups(tmp_path):
    rows = [
        {"text": f"text {i}", "label": ["x"] * (i % 2) + ["rare"] * (i % 40 < 2), "author": f"a{i // 4}"}
        for i in range(800)
    ]
    made = splits(jsonl(tmp_path / "a.jsonl", rows), Multilabel(), eval=0.25, group_by="author")
    held = Counter(label for labels in made.eval["label"] for label in labels)
    assert held["rare"] == pytest.approx(10, abs=2)
    assert len(made.eval) == pytest.approx(200, abs=8)


def test_the_same_labels_in_another_order_agree(tmp_path):
    rows = [{"text": f"t{i}", "label": ["x", "y"]} for i in range(20)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"text": "t0", "label": ["y", "x"]}, {"text": "t1", "label": ["y"]}])
    notes = splits(path, Multilabel()).notes
    assert any("2 rows that repeat" in note and "(1 of them under another label" in note for note in notes)


def test_groups_that_cannot_be_used_say_why(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", grouped(20, 4))
    assert "Did you mean 'author'?" in message(splits, path, group_by="autor")
    one = jsonl(tmp_path / "b.jsonl", grouped(20, 1))
    assert "in 1 groups, the largest of 20 rows, gives eval 0" in message(splits, one, group_by="author")
    gap = jsonl(tmp_path / "c.jsonl", [*grouped(20, 4), {"text": "x", "label": "n", "author": ""}])
    assert "1 with no author (data.group_by) (line 21)" in message(splits, gap, group_by="author")
    with pytest.raises(ConfigError, match="group_by says how eval and test are made"):
        load_recipe("quickstart", ["data.group_by=author", "data.eval=a.csv", "data.test=b.csv"])


# Duplicates and overlaps


def test_given_files_are_deduplicated_if_asked(tmp_path):
    train = jsonl(tmp_path / "train.jsonl", [*reviews(20), *reviews(3)])
    test = jsonl(tmp_path / "test.jsonl", [{"text": "same", "label": "n"}, {"text": "same ", "label": "p"}])
    assert splits(train, eval=test, test=test).sizes == {"train": 23, "eval": 2, "test": 2}
    made = splits(train, eval=test, test=test, deduplicate=True)
    assert made.sizes == {"train": 20, "eval": 1, "test": 1}
    assert "3 rows that repeat another row's text dropped from train." in made.notes
    assert any("dropped from test (1 of them under another label" in note for note in made.notes)


def test_overlap_is_reported_dropped_or_refused(tmp_path):
    train = jsonl(tmp_path / "train.jsonl", reviews(20))
    test = jsonl(tmp_path / "test.jsonl", [*reviews(2), {"text": "new", "label": "n"}])
    assert splits(train, eval=test).sizes["train"] == 20
    made = splits(train, eval=test, overlap="drop")
    assert made.sizes == {"train": 18, "eval": 3}
    assert "2 of the 3 different rows of eval are also in train: dropped from train." in made.notes
    said = message(splits, train, eval=test, overlap="refuse")
    assert "2 of the 3 different rows of eval are also in train (lines 1, 2)" in said
    assert "leaves nothing to train on" in message(splits, train, eval=train, overlap="drop")


# The record


def test_record_names_every_row_by_file_and_line(tmp_path):
    one, two = jsonl(tmp_path / "1.jsonl", reviews(10)), jsonl(tmp_path / "2.jsonl", reviews(30)[10:])
    made = splits([one, two], eval=0.2, max_samples=12)
    record = json.loads(json.dumps(made.record()))
    assert record["seed"] == 0
    assert record["made"] == {"eval": 0.2}
    lines = {name: Path(name).read_text().splitlines() for name in (one, two)}
    for name, split in record["splits"].items():
        texts = []
        for file in split["files"]:
            for part in file["rows"].split(","):
                first, _, last = part.partition("-")
                numbers = range(int(first), int(last or first) + 1)
                texts += [json.loads(lines[str(tmp_path / file["file"])][number - 1])["text"] for number in numbers]
        assert texts == made.named[name]["text"][:]
        assert split["rows"] == len(texts)


def test_record_verifies_that_splits_are_the_same(tmp_path):
    path, record = jsonl(tmp_path / "a.jsonl", reviews(30)), tmp_path / "splits.json"
    splits(path).write(record)
    splits(path).verify(record)
    said = message(splits(path, seed=1).verify, record)
    assert said.startswith("the rows of eval, train are not those")
    assert "recipe's data section or run.seed" in said
    jsonl(tmp_path / "a.jsonl", [*reviews(29), {"text": "other", "label": "n"}])
    assert "'a.jsonl' changed" in message(splits(path).verify, record)
    assert "is no record of splits" in message(splits(path).verify, Path(path))


def test_rows_of_splits_can_be_located(tmp_path):
    made = splits(jsonl(tmp_path / "a.jsonl", reviews(30)))
    row = int(made.eval["text"][1].split()[-1])
    assert made.locate("eval", [1]) == f"line {row + 1}"


def test_streaming_is_refused_where_rows_go_into_memory(tmp_path):
    assert "data.streaming is for pretraining" in message(splits, jsonl(tmp_path / "a", reviews(3)), streaming=True)
