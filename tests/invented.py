"""An architecture that adapterlab can't know by name: only its list of equal layers shows what it is.

A decoder-like encoder with names and wiring of its own (one norm for attention and FFN, which run side by side). It
saves, loads, and checkpoints gradients as transformers' own models do.
"""

from __future__ import annotations

from typing import ClassVar

import transformers as T
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput


class InventedConfig(T.PreTrainedConfig):
    model_type = "invented"
    vocab_size: int = 97
    width: int = 32
    storeys: int = 2
    eyes: int = 4
    pad_token_id: int | None = 0
    attribute_map: ClassVar = {"hidden_size": "width", "num_hidden_layers": "storeys", "num_attention_heads": "eyes"}


class Gaze(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.eyes = config.eyes
        self.look = nn.Linear(config.width, 3 * config.width)
        self.tell = nn.Linear(config.width, config.width)

    def forward(self, x, mask):
        q, k, v = self.look(x).view(*x.shape[:2], self.eyes, -1).transpose(1, 2).chunk(3, dim=-1)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.tell(seen.transpose(1, 2).reshape(x.shape))


class Storey(GradientCheckpointingLayer):
    def __init__(self, config):
        super().__init__()
        self.calm = nn.LayerNorm(config.width)
        self.gaze = Gaze(config)
        self.widen = nn.Linear(config.width, 2 * config.width)
        self.narrow = nn.Linear(2 * config.width, config.width)

    def forward(self, x, mask):
        calm = self.calm(x)
        return (x + self.gaze(calm, mask) + self.narrow(nn.functional.gelu(self.widen(calm))),)


class InventedPreTrainedModel(T.PreTrainedModel):
    config_class = InventedConfig
    base_model_prefix = "tower"
    supports_gradient_checkpointing = True
    _supports_sdpa = True


class InventedModel(InventedPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width, padding_idx=config.pad_token_id)
        self.storeys = nn.ModuleList([Storey(config) for _ in range(config.storeys)])
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask=None, **kwargs):
        x = self.words(input_ids)
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        for storey in self.storeys:
            x = storey(x, mask)[0]
        return BaseModelOutput(last_hidden_state=x)


class InventedForSequenceClassification(InventedPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.tower = InventedModel(config)
        self.verdict = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        states = self.tower(input_ids, attention_mask).last_hidden_state
        logits = self.verdict(states[:, 0])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


T.AutoConfig.register("invented", InventedConfig)
T.AutoModel.register(InventedConfig, InventedModel)
T.AutoModelForSequenceClassification.register(InventedConfig, InventedForSequenceClassification)
