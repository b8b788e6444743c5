"""Shared by all tests: no network, few threads, tiny seeded models of every architecture."""

from __future__ import annotations

import copy
import functools
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers as T

VOCABULARY, LAYERS, HIDDEN, LABELS = 97, 2, 32, 3


def _encoder(**extra):
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "num_labels": LABELS,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **extra,
    }


CONFIGS = {
    "bert": lambda: T.BertConfig(**_encoder()),
    "roberta": lambda: T.RobertaConfig(**_encoder()),
    "distilbert": lambda: T.DistilBertConfig(
        vocab_size=VOCABULARY, dim=HIDDEN, n_layers=LAYERS, n_heads=4, hidden_dim=64, num_labels=LABELS,
        max_position_embeddings=64, pad_token_id=0,
    ),
    "gpt2": lambda: T.GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=64, num_labels=LABELS,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "llama": lambda: T.LlamaConfig(**_encoder(num_key_value_heads=2)),
}  # fmt: skip
DECODERS = ("gpt2", "llama")


@pytest.fixture(autouse=True)
def _threads(request):
    """Tiny models are faster on one thread; real ones, in tests/recipes, take what there is."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if "recipes" in str(request.path) else 1)
    yield
    torch.set_num_threads(before)


@functools.cache
def _pristine(architecture: str, head: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = CONFIGS[architecture]()
    if head == "QuestionAnswering":
        config.num_labels = 2  # start and end
    return getattr(T, f"AutoModelFor{head}").from_config(config).eval()


@pytest.fixture
def tiny():
    """tiny(architecture, head="SequenceClassification") gives a fresh copy of a seeded tiny model, in eval mode."""
    return lambda architecture, head="SequenceClassification": copy.deepcopy(_pristine(architecture, head))


@pytest.fixture
def batch():
    """A batch of four rows of ten tokens, the first one padded; labels for classification."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (4, 10), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 1])}


@pytest.fixture
def logits(batch):
    """logits(model) runs the batch through a model in eval mode, without its labels."""

    def run(model):
        model.eval()
        with torch.no_grad():
            return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    return run


@pytest.fixture
def train(batch):
    """train(model, steps) takes AdamW steps on the batch and returns the losses."""

    def run(model, steps=10, lr=1e-2, labels=None):
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
        losses = []
        for _ in range(steps):
            loss = model(**(batch if labels is None else {**batch, "labels": labels})).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    return run


def randomize(model, seed=3, std=0.3):
    """Give everything trainable random values: an untrained LoRA changes nothing, so it would test nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
