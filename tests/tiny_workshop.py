"""A folder to train in within seconds: a tiny BERT with a tokenizer, a data set that it can learn, a recipe."""

from __future__ import annotations

import csv
from pathlib import Path

WORDS = ["good", "great", "fine", "lovely", "bad", "awful", "poor", "nasty", "the", "film", "was", "truly", "a"]


def furnish(root: Path) -> Path:
    """Put model/, train.csv (64 rows) and tiny.yaml into a folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

    set_seed(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (root / "vocab.txt").write_text("\n".join(tokens))
    BertTokenizerFast(str(root / "vocab.txt")).save_pretrained(root / "model")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokens), max_position_embeddings=32, **sizes)).save_pretrained(root / "model")
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "stars"])
        for index in range(64):
            word, other = WORDS[index % 8], WORDS[8 + index % 5]
            writer.writerow(
                [
                    f"{other} film was {word} {WORDS[8 + index // 8 % 5]} {'truly ' * (index // 16)}",
                    ["no", "yes"][index % 8 < 4],
                ]
            )
    (root / "tiny.yaml").write_text(
        "version: 1\n"
        "model: {name: model}\n"
        "adapter: {method: lora, r: 4, dropout: 0}\n"
        "task: {type: classification, metrics: [accuracy]}\n"
        "data: {train: train.csv, eval: 0.2, test: 0.2, columns: {text: review, label: stars}, max_length: 16}\n"
        "optim: {lr: 1e-2, epochs: 8, batch_size: 8, precision: fp32}\n"
    )
    return root
