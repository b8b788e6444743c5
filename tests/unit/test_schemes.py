"""Spans and tags turn into each other, and find the pieces of a tokenizer, whatever the text holds."""

from __future__ import annotations

from itertools import pairwise

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterlab.tasks.alignment import find_words, read_windows
from adapterlab.tasks.schemes import SCHEMES, detect, faults, spans_of, write
from adapterlab.tasks.sentences import read_sentence

ENTITY_SCHEMES = [scheme for scheme in SCHEMES if scheme not in ("plain", "io")]


@st.composite
def spans_in(draw):
    """Words' number, and spans that don't overlap."""
    size = draw(st.integers(1, 12))
    spans, place = [], 0
    while place < size:
        end = draw(st.integers(place + 1, size))
        if draw(st.booleans()):
            spans.append((place, end, draw(st.sampled_from(["PER", "LOC", "A-B"]))))
        place = end
    return size, spans


@given(spans_in(), st.sampled_from(ENTITY_SCHEMES))
def test_spans_to_tags_and_back(case, scheme):
    size, spans = case
    tags = write(spans, size, scheme)
    assert len(tags) == size
    assert spans_of(tags, scheme) == spans
    assert faults(tags, scheme) == []


@given(st.lists(spans_in(), min_size=1, max_size=5), st.sampled_from(ENTITY_SCHEMES))
def test_a_detected_scheme_writes_the_tags_it_was_seen_in(cases, scheme):
    rows = [write(spans, size, scheme) for size, spans in cases]
    found = detect(rows)
    if found == "plain":
        assert all(tag == "O" for tags in rows for tag in tags)
    else:
        assert all(write(spans_of(tags), len(tags), found) == tags for tags in rows)


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        ([["B-PER", "I-PER", "O", "B-LOC"]], "iob2"),
        ([["I-PER", "I-PER", "B-PER", "O"]], "iob1"),
        ([["B-PER", "E-PER", "S-LOC"]], "iobes"),
        ([["B-PER", "I-PER", "L-PER", "U-LOC"]], "bilou"),
        ([["B-PER", "M-PER", "E-PER", "S-LOC"]], "bmes"),
        ([["NN", "VB", "-LRB-"]], "plain"),
        ([["PER", "PER", "O"]], "plain"),
        ([["B-PER", "I-PER"]] * 9 + [["I-PER", "O"]], "iob2"),
    ],
)
def test_schemes_are_told_apart(rows, scheme):
    assert detect(rows) == scheme


def test_invalid_sequences_are_read_as_conlleval_reads_them_and_found():
    tags = ["O", "I-PER", "I-LOC", "B-LOC", "I-LOC"]
    assert spans_of(tags) == [(1, 2, "PER"), (2, 3, "LOC"), (3, 5, "LOC")]
    assert faults(tags, "iob2") == [1, 2]
    assert spans_of(["PER", "PER", "O", "LOC"], "io") == [(0, 2, "PER"), (3, 4, "LOC")]


def bert():
    """A WordPiece tokenizer with few pieces, so that words split or are unknown; it drops control characters."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdeé北京.,-'", *(f"##{c}" for c in "abcde")]
    return transformers.BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)})


def bytes_():
    """A byte-level BPE tokenizer, as GPT-2's and RoBERTa's: no special tokens, pieces hold the blank in front."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["ab abc a bad cab"] * 9, vocab_size=290, min_frequency=1)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="!", unk_token="!")
    made.pad_token = made.eos_token
    return made


TOKENIZERS = {"bert": bert(), "bytes": bytes_()}
TEXTS = st.text(
    st.one_of(st.sampled_from("abcde  .,-'é北京\u0301\u200b\x00"), st.characters(codec="utf-8")),
    max_size=40,
)


@given(TEXTS)
def test_words_hold_all_that_shows_in_order(text):
    words = find_words(text)
    assert all(start < end for start, end in words)
    assert all(one[1] <= other[0] for one, other in pairwise(words))
    covered = {place for start, end in words for place in range(start, end)}
    assert all(text[place].isspace() or not text[place].isprintable() for place in set(range(len(text))) - covered)


def test_words_of_many_scripts():
    text = "Merkel's U.S.-based naïve हिन्दी 北京 e\u0301a x\u200by"
    words = [text[start:end] for start, end in find_words(text)]
    assert words == [
        "Merkel", "'", "s", "U", ".", "S", ".", "-", "based", "naïve", "हिन्दी", "北", "京", "e\u0301a", "x", "y",
    ]  # fmt: skip


@st.composite
def texts_with_spans(draw):
    text = draw(TEXTS)
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pairs = [(a, b) for a, b in zip(places[::2], places[1::2], strict=False) if find_words(text[a:b])]
    return text, [{"start": a, "end": b, "label": draw(st.sampled_from("XY"))} for a, b in pairs]


@given(texts_with_spans())
def test_character_spans_to_tags_and_back(case):
    """But for blanks at their ends, which hold no words, spans come back as they were."""
    text, spans = case
    sentence = read_sentence(text, spans, "iob2")
    found = [(sentence.words[a][0], sentence.words[b - 1][1], label) for a, b, label in spans_of(sentence.tags)]
    assert len(found) == len(spans)
    for (start, end, label), span in zip(found, spans, strict=True):
        assert label == span["label"]
        assert span["start"] <= start < end <= span["end"]
        assert not find_words(text[span["start"] : start])
        assert not find_words(text[end : span["end"]])


@settings(max_examples=60)
@given(texts_with_spans(), st.sampled_from(sorted(TOKENIZERS)), st.integers(8, 20), st.integers(0, 3))
def test_every_word_has_a_piece_in_one_of_the_windows_and_no_piece_is_anothers(case, kind, limit, stride):
    text, spans = case
    sentence = read_sentence(text, spans, "iob2")
    tokenizer = TOKENIZERS[kind]
    windows = list(read_windows(tokenizer, [text], [sentence.words], limit, stride))
    heads = {word for window in windows for word in window.heads}
    shows = {
        word
        for word, (start, end) in enumerate(sentence.words)
        if tokenizer(text[start:end], add_special_tokens=False).input_ids
    }
    assert shows <= heads
    for window in windows:
        assert len(window.owners) == len(window.inputs["input_ids"]) <= limit
        assert sorted(owner for owner in window.owners if owner >= 0) == [o for o in window.owners if o >= 0]
        for word, place in window.heads.items():
            assert window.owners[place] <= word
