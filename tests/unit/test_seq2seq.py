"""Sequence to sequence: sources with their prefix, targets as labels, and what can't work."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from folders import END, PAD, backbone

from adapterlab.errors import BackboneError
from adapterlab.pretrained import load_backbone, load_tokenizer
from adapterlab.tasks import TASKS

TEXTS = ["the quick brown fox jumps over the lazy dog", "summarize: the dog sleeps"] * 5
ROWS = [
    {"source": "the quick brown fox jumps over the lazy dog", "target": "the fox"},
    {"source": "the dog", "target": "the lazy dog sleeps"},
]


@pytest.fixture(scope="module", params=["t5", "bart"])
def opened(request, tmp_path_factory):
    folder = backbone(tmp_path_factory.mktemp("it") / request.param, request.param, TEXTS)
    tokenizer = load_tokenizer(folder)
    model, _ = load_backbone(folder, "AutoModelForSeq2SeqLM", tokenizer)
    return model.eval(), tokenizer


def task_for(model, tokenizer, **options):
    task = TASKS.get("seq2seq")(options={"max_new_tokens": 8, **options})
    task.prepare(model, tokenizer)
    return task


def batch_of(task, encoded, tokenizer):
    columns = [name for name in encoded.column_names if name[0] != "_"]
    return task.collator(tokenizer)(list(encoded.select_columns(columns)))


def test_the_prefix_is_read_and_the_target_learned_to_its_end(opened):
    model, tokenizer = opened
    task = task_for(model, tokenizer, prefix="summarize: ")
    encoded = task.encode(Dataset.from_list(ROWS), tokenizer, 64, name="train")
    for row, ids, labels in zip(ROWS, encoded["input_ids"], encoded["labels"], strict=True):
        assert tokenizer.decode(ids) == f"summarize: {row['source']}{END}"
        assert tokenizer.decode(labels) == f"{row['target']}{END}"
    batch = batch_of(task, encoded, tokenizer)
    assert (batch["labels"] == -100).any(), "padding is not learned"
    assert tokenizer.pad_token == PAD


def test_the_loss_is_the_models_own_token_by_token(opened):
    model, tokenizer = opened
    task = task_for(model, tokenizer)
    batch = batch_of(task, task.encode(Dataset.from_list(ROWS), tokenizer, 64, name="train"), tokenizer)
    with torch.no_grad():
        loss, outputs = task.forward(model, batch)
        rows = outputs.rows
        shared, _ = task.forward(model, batch, 2 * rows[:, 1].sum())
        theirs = model(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(shared, theirs / 2)
    assert rows[:, 1].tolist() == [(labels != -100).sum().item() for labels in batch["labels"]]


def test_what_is_cut_is_counted(opened):
    model, tokenizer = opened
    task = task_for(model, tokenizer, max_target_length=3)
    encoded = task.encode(Dataset.from_list(ROWS), tokenizer, 6, name="eval")
    assert max(map(len, encoded["input_ids"])) == 6
    assert max(map(len, encoded["labels"])) == 3
    assert any("sources cut to 6 tokens (data.max_length)" in note for note in task.notes)
    assert any("targets cut to 3 tokens (task.max_target_length)" in note for note in task.notes)


def test_backbones_that_cannot(opened):
    model, tokenizer = opened
    start, model.config.decoder_start_token_id = model.config.decoder_start_token_id, None
    with pytest.raises(BackboneError, match="no decoder_start_token_id"):
        task_for(model, tokenizer)
    model.config.decoder_start_token_id = start
    if getattr(model.config, "max_position_embeddings", None):
        with pytest.raises(BackboneError, match=r"max_new_tokens=1000 is more than the backbone's 128 positions"):
            task_for(model, tokenizer, max_new_tokens=1000)
