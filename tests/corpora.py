"""Tiny backbones with tokenizers of their own, and small corpora, for the tests of pretraining."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path

import tokenizers
import torch
import transformers

DOMAIN = [text[:700] for _, text in sorted(pydoc_data.topics.topics.items())][:40]
GENERAL = [f"On day {day} we walked to the sea, and it rained on all {day} of us." for day in range(60)]


def tiny_bert(folder: Path) -> str:
    """Save a random BERT of 64 positions, with a WordPiece tokenizer; return the folder."""
    pieces = tokenizers.BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator([*DOMAIN[:20], *GENERAL, "statement " * 9], vocab_size=600, min_frequency=1)
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(sorted(pieces.get_vocab(), key=pieces.get_vocab().get)))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return str(folder)


def tiny_gpt2(folder: Path) -> str:
    """Save a random GPT-2 of 64 positions, with a byte-level BPE tokenizer that has no padding; return the folder."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator([*DOMAIN[:20], *GENERAL], vocab_size=600, min_frequency=1)
    folder.mkdir()
    bpe.save(str(folder / "tokenizer.json"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    tokenizer.save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def write_corpora(folder: Path) -> tuple[str, str, str]:
    """Write the domain's text to train on (jsonl) and to hold out (jsonl), and general text (txt)."""
    for name, texts in (("train", DOMAIN[:34]), ("held_out", DOMAIN[34:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "general.txt").write_text("\n\n".join(GENERAL) + "\n")
    return str(folder / "train.jsonl"), str(folder / "held_out.jsonl"), str(folder / "general.txt")
