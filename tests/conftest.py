"""Shared by all tests: no network, few threads, tiny seeded models of every architecture."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import os
import types

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import transformers as T
from invented import InventedConfig

import adapterlab

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
    "albert": lambda: T.AlbertConfig(**_encoder(embedding_size=16)),
    "electra": lambda: T.ElectraConfig(**_encoder(embedding_size=16)),
    "deberta-v2": lambda: T.DebertaV2Config(**_encoder(
        relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, share_att_key=True,
        norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
    )),
    # one layer that sees everything, one that sees two tokens on each side
    "modernbert": lambda: T.ModernBertConfig(**_encoder(
        local_attention=4, layer_types=["full_attention", "sliding_attention"], cls_token_id=1, sep_token_id=2,
    )),
    "gpt2": lambda: T.GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=64, num_labels=LABELS,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "gpt_neox": lambda: T.GPTNeoXConfig(**_encoder()),
    "opt": lambda: T.OPTConfig(**_encoder(ffn_dim=64, word_embed_proj_dim=16)),
    "llama": lambda: T.LlamaConfig(**_encoder(num_key_value_heads=2)),
    "qwen2": lambda: T.Qwen2Config(**_encoder(num_key_value_heads=2)),
    "qwen3": lambda: T.Qwen3Config(**_encoder(num_key_value_heads=2, head_dim=12)),
    "mistral": lambda: T.MistralConfig(**_encoder(num_key_value_heads=2)),
    "t5": lambda: T.T5Config(
        vocab_size=VOCABULARY, d_model=HIDDEN, d_kv=8, d_ff=64, num_layers=LAYERS, num_heads=4, num_labels=LABELS,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    ),
    "bart": lambda: T.BartConfig(
        vocab_size=VOCABULARY, d_model=HIDDEN, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_ffn_dim=64,
        decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64,
        num_labels=LABELS, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    ),
    "invented": lambda: InventedConfig(num_labels=LABELS),
}  # fmt: skip
DECODERS = ("gpt2", "gpt_neox", "opt", "llama", "qwen2", "qwen3", "mistral")
NO_PREFIX = ("deberta-v2", "t5", "bart", "invented")  # prefix tuning is refused there


def refused(architecture: str, method: str, variant: str | None = None) -> bool:
    """Whether attaching a method to an architecture must be refused."""
    if method == "prefix":
        return architecture in NO_PREFIX
    return architecture == "invented" and method in ("bottleneck", "adapter") and variant not in (None, "pfeiffer")


def pytest_addoption(parser):
    parser.addoption(
        "--every-cell", action="store_true", help="leave nothing out of the table of test_methods.py: an hour"
    )


def pytest_collection_finish():
    """Spare the collector what was imported, which stays: looking through it again and again is a tenth of the time."""
    gc.collect()
    gc.freeze()


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
    """A batch of four rows of ten tokens, the first one padded; labels for classification.

    Each row ends in one end-of-text token: T5 and BART classify by it.
    """
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (4, 10), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    ids[0, 6], ids[1:, 9] = 2, 2
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


@pytest.fixture
def peft_finds_the_cache(monkeypatch):
    """Let peft 0.21 run prefixes: it looks for an argument `past_key_values`, which transformers 5.24 calls `cache`."""

    def signature(function):
        found = inspect.signature(function)
        parameters = found.parameters.values()
        return found.replace(
            parameters=[p.replace(name="past_key_values") if p.name == "cache" else p for p in parameters]
        )

    import peft

    monkeypatch.setattr(peft.peft_model, "inspect", types.SimpleNamespace(signature=signature))


def prepared(tiny, architecture, method, head="SequenceClassification", **options):
    """Return a tiny model in eval mode with an adapter that does something, and that drops nothing out in training."""
    model = adapterlab.attach(tiny(architecture, head), method, **options)
    randomize(model, std=0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.eval()


def gradients_of(model, loss):
    """Return the gradients of what is trained, by name, where there are any."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in trained], allow_unused=True)
    return {name: gradient for (name, _), gradient in zip(trained, found, strict=True) if gradient is not None}


def randomize(model, seed=3, std=0.3):
    """Give everything trainable random values: an untrained LoRA changes nothing, so it would test nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
