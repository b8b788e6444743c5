"""The architectures we know by name: what the parts of their layers are called, and how those are wired.

Each entry of `KNOWN` was read off transformers' modeling file of that architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Anatomy:
    """Names inside one layer, relative to it.

    A sublayer (attention or FFN) is given the residual r and computes s, and the layer goes on with s + r: through
    a norm in post-norm layers (BERT), as it is in pre-norm layers (GPT-2, Llama), where the norm reads r instead.
    Where a layer drops s out by a function, not by a module (OPT, BART), s is meant before that dropout, and what is
    added to s is dropped out with it.

    An encoder-decoder has one anatomy for each side. Its cross-attention is no sublayer here.
    """

    layers: str  # the list of layers, relative to the base model; `*` stands for every child
    attention_in: str  # the sublayer's first module: its first input is r
    attention_out: str  # its output is s
    attention_norm: str | None  # the norm that reads s + r; None: pre-norm
    ffn_in: str
    ffn_out: str
    ffn_norm: str | None
    attention: str | None  # the module that calls transformers' attention interface; None: see `no_prefix`
    positions: str | None  # the module, in the base model, that turns position ids into embeddings or rotations
    attention_sum: str | None = None  # the module that is called with the attention's own output and r, and adds them
    encoder: str | None = None  # the module of the base model that is given embeddings and mask and runs all layers
    no_prefix: str = ""  # why no prefix can be put in front of this attention


_BERT = Anatomy(
    layers="encoder.layer",
    attention_in="attention.self",
    attention_out="attention.output.dropout",
    attention_norm="attention.output.LayerNorm",
    ffn_in="intermediate",
    ffn_out="output.dropout",
    ffn_norm="output.LayerNorm",
    attention="attention.self",
    positions="embeddings.position_embeddings",
    attention_sum="attention.output",
    encoder="encoder",
)
_DEBERTA = replace(
    _BERT,
    attention=None,
    positions=None,
    no_prefix="its disentangled attention computes scores from distances between tokens, and a prefix has no place",
    encoder=None,
)
_DISTILBERT = Anatomy(
    layers="transformer.layer",
    attention_in="attention",
    attention_out="attention",
    attention_norm="sa_layer_norm",
    ffn_in="ffn",
    ffn_out="ffn",
    ffn_norm="output_layer_norm",
    attention="attention",
    positions="embeddings.position_embeddings",
    encoder="transformer",
)
# A few layers run again and again here, so whatever is put into one of them works at each of its turns.
_ALBERT = Anatomy(
    layers="encoder.albert_layer_groups.*.albert_layers",
    attention_in="attention",
    attention_out="attention.output_dropout",
    attention_norm="attention.LayerNorm",
    ffn_in="ffn",
    ffn_out="ffn_output",
    ffn_norm="full_layer_layer_norm",
    attention="attention",
    positions="embeddings.position_embeddings",
    encoder="encoder",
)
_MODERNBERT = Anatomy(
    layers="layers",
    attention_in="attn_norm",  # an identity in the first layer
    attention_out="attn",
    attention_norm=None,
    ffn_in="mlp_norm",
    ffn_out="mlp",
    ffn_norm=None,
    attention="attn",
    positions="rotary_emb",
)
_GPT2 = Anatomy(
    layers="h",
    attention_in="ln_1",
    attention_out="attn",
    attention_norm=None,
    ffn_in="ln_2",
    ffn_out="mlp",
    ffn_norm=None,
    attention="attn",
    positions="wpe",
)
# With a parallel residual, x + attention(LN(x)) + FFN(LN'(x)), r is x for both sublayers.
_GPT_NEOX = Anatomy(
    layers="layers",
    attention_in="input_layernorm",
    attention_out="post_attention_dropout",
    attention_norm=None,
    ffn_in="post_attention_layernorm",
    ffn_out="post_mlp_dropout",
    ffn_norm=None,
    attention="attention",
    positions="rotary_emb",
)
_OPT = Anatomy(
    layers="decoder.layers",
    attention_in="self_attn_layer_norm",
    attention_out="self_attn",
    attention_norm=None,
    ffn_in="final_layer_norm",
    ffn_out="fc2",
    ffn_norm=None,
    attention="self_attn",
    positions="decoder.embed_positions",
)
_OPT_350M = replace(
    _OPT,
    attention_in="self_attn",
    attention_norm="self_attn_layer_norm",
    ffn_in="fc1",
    ffn_norm="final_layer_norm",
)
_LLAMA = Anatomy(
    layers="layers",
    attention_in="input_layernorm",
    attention_out="self_attn",
    attention_norm=None,
    ffn_in="post_attention_layernorm",
    ffn_out="mlp",
    ffn_norm=None,
    attention="self_attn",
    positions="rotary_emb",
)
_T5_ENCODER = Anatomy(
    layers="encoder.block",
    attention_in="layer.0.layer_norm",
    attention_out="layer.0.dropout",
    attention_norm=None,
    ffn_in="layer.1.layer_norm",
    ffn_out="layer.1.dropout",
    ffn_norm=None,
    attention=None,
    positions=None,
    no_prefix="its attention adds a bias for the distance between tokens, and a prefix has no place",
)
_T5_DECODER = replace(
    _T5_ENCODER, layers="decoder.block", ffn_in="layer.2.layer_norm", ffn_out="layer.2.dropout"
)  # layer.1 is cross-attention
_BART_ENCODER = replace(
    _OPT_350M,
    layers="encoder.layers",
    attention=None,
    positions=None,
    no_prefix="an encoder-decoder takes a prefix in each of three attentions, which isn't implemented",
)
_BART_DECODER = replace(_BART_ENCODER, layers="decoder.layers")

KNOWN: dict[str, tuple[Anatomy, ...]] = {
    "albert": (_ALBERT,),
    "bart": (_BART_ENCODER, _BART_DECODER),
    "bert": (_BERT,),
    "camembert": (_BERT,),
    "deberta-v2": (_DEBERTA,),
    "distilbert": (_DISTILBERT,),
    "electra": (_BERT,),
    "gpt2": (_GPT2,),
    "gpt_neox": (_GPT_NEOX,),
    "llama": (_LLAMA,),
    "mistral": (_LLAMA,),
    "modernbert": (_MODERNBERT,),
    "opt": (_OPT,),
    "qwen2": (_LLAMA,),
    "qwen3": (_LLAMA,),
    "roberta": (_BERT,),
    "t5": (_T5_ENCODER, _T5_DECODER),
    "xlm-roberta": (_BERT,),
}


def anatomies(model_type: str, config: Any) -> tuple[Anatomy, ...]:
    """Return the anatomy of each stack of layers of an architecture; none if we don't know it."""
    if model_type == "opt" and not config.do_layer_norm_before:
        return (_OPT_350M,)
    return KNOWN.get(model_type, ())
