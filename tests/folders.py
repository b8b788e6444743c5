"""Tiny backbones as folders: seeded weights of an architecture beside a tokenizer trained on the texts at hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers
import transformers
from conftest import CONFIGS

END, PAD = "<|end|>", "<|pad|>"
CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def backbone(
    folder: Path,
    architecture: str,
    texts: Iterable[str],
    *,
    sharp: bool = False,
    chat: bool = False,
    positions: int = 128,
) -> str:
    """Write a folder that `from_pretrained` reads, and return its path.

    T5's and BART's tokenizers end a text themselves; the others add nothing, and have no padding token. A sharp model
    has random weights so large that it can be certain of a word, though its head stays as it is.
    """
    model = "Seq2SeqLM" if architecture in ("t5", "bart") else "CausalLM"
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=400, min_frequency=2, special_tokens=[END, PAD])
    bpe = bpe._tokenizer
    if model == "Seq2SeqLM":
        bpe.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, bpe.token_to_id(END))]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, bos_token=END, **({"pad_token": PAD} if model == "Seq2SeqLM" else {})
    )
    tokenizer.chat_template = CHAT if chat else None
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    config = CONFIGS[architecture]()
    config.vocab_size = len(tokenizer) + 8  # some architectures' own tokenizers add to what was saved
    config.eos_token_id = config.bos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "dropout_rate", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    if hasattr(config, "max_position_embeddings"):
        config.max_position_embeddings = positions
    if model == "Seq2SeqLM":
        config.decoder_start_token_id = tokenizer.pad_token_id
    for name in ("initializer_range", "init_std"):
        if sharp and hasattr(config, name):
            setattr(config, name, 0.2)
    transformers.set_seed(0)
    weights = getattr(transformers, f"AutoModelFor{model}").from_config(config)
    if sharp:
        weights.get_output_embeddings().weight.data.normal_(std=3 if architecture == "t5" else 1)
    weights.save_pretrained(folder)
    return str(folder)
