"""P-tuning: virtual tokens that a small network makes (Liu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any, Literal

import peft
import torch
from pydantic import AliasChoices, BeforeValidator, Field, model_validator
from torch import nn

from adapterlab.adapters.base import MethodConfig, register_method
from adapterlab.adapters.prompt import PromptEmbedding, PromptMethod
from adapterlab.backbones import Backbone


class PTuningConfig(MethodConfig):
    """Options of P-tuning."""

    num_virtual_tokens: int = Field(20, ge=1, description="length P of the prompt")
    encoder: Annotated[
        Literal["mlp", "lstm", "none"],
        BeforeValidator(lambda given: given.lower() if isinstance(given, str) else given),
    ] = Field(
        "mlp",
        validation_alias=AliasChoices("encoder", "encoder_reparameterization_type"),
        description="network that makes the prompt, folded away when saved; 'none' trains the prompt as it is",
    )
    encoder_hidden_size: int | None = Field(
        None, ge=1, description="width of that network; the embeddings' size if left out"
    )
    encoder_num_layers: int = Field(2, ge=1, description="layers of the LSTM")
    encoder_dropout: float = Field(0.0, ge=0, lt=1, description="dropout between the layers of the LSTM")

    @model_validator(mode="after")
    def _lstm_only(self) -> PTuningConfig:
        given = {"encoder_num_layers": self.encoder_num_layers != 2, "encoder_dropout": self.encoder_dropout > 0}
        idle = [name for name, differs in given.items() if differs]
        if self.encoder != "lstm" and idle:
            raise ValueError(f"{' and '.join(idle)}: only encoder='lstm' has it, and this is encoder='{self.encoder}'")
        if self.encoder_dropout and self.encoder_num_layers == 1:
            raise ValueError("encoder_dropout: it acts between the LSTM's layers, and encoder_num_layers is 1")
        return self


class PromptEncoder(PromptEmbedding):
    """Makes P virtual tokens from trained embeddings h: MLP(h_i), or the paper's MLP([LSTM(h_0:i) : LSTM(h_i:P)])."""

    def __init__(self, size: int, config: PTuningConfig) -> None:
        super().__init__(config.num_virtual_tokens, size)
        hidden = config.encoder_hidden_size or size
        self.lstm: nn.LSTM | None = None
        self.mlp: nn.Sequential | None = None
        if config.encoder == "lstm":
            layers, dropout = config.encoder_num_layers, config.encoder_dropout
            self.lstm = nn.LSTM(size, hidden, layers, dropout=dropout, bidirectional=True, batch_first=True)
            widths = [2 * hidden, 2 * hidden, size]
        elif config.encoder == "mlp":
            widths = [size, hidden, hidden, size]
        if config.encoder != "none":
            steps = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
            self.mlp = nn.Sequential(*[module for step in steps for module in step][:-1])

    def forward(self) -> torch.Tensor:
        """Return the prompt, (P, embedding size)."""
        prompt = self.embedding.weight
        if self.lstm is not None:
            prompt = self.lstm(prompt.unsqueeze(0))[0].squeeze(0)
        return prompt if self.mlp is None else self.mlp(prompt)


@register_method("p_tuning", aliases=("p-tuning",))
class PTuning(PromptMethod):
    """P-tuning: a network makes the P embeddings in front of the tokens', Liu et al. 2021, arXiv:2103.10385.

    The network is there for training only: the file holds the prompt that it makes, as peft's does, and an adapter
    that was loaded has encoder='none'.
    """

    summary = "embeddings in front of the tokens', made by a trained network"
    paper = "Liu et al. 2021, arXiv:2103.10385"
    Config = PTuningConfig
    peft_type = "P_TUNING"

    def encoder(self, config: PTuningConfig, words: Any) -> PromptEmbedding:
        """Return the network with its P embeddings."""
        return PromptEncoder(words.weight.shape[1], config)

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: PTuningConfig) -> dict[str, Any]:
        """Return peft's fields; the file holds the prompt itself."""
        fields = super().to_peft(model, backbone, name, config)
        return peft.PromptEncoderConfig(
            encoder_reparameterization_type="LSTM" if config.encoder == "lstm" else "MLP",
            encoder_hidden_size=config.encoder_hidden_size or fields["token_dim"],
            encoder_num_layers=config.encoder_num_layers,
            encoder_dropout=config.encoder_dropout,
            **fields,
        ).to_dict()

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read peft's fields: what the network made is in the file, the network is not."""
        plain = {"encoder": "none", "encoder_hidden_size": None, "encoder_num_layers": 2, "encoder_dropout": 0.0}
        return {"num_virtual_tokens": fields["num_virtual_tokens"], **plain}
