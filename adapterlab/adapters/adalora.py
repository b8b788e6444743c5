"""AdaLoRA: low-rank updates whose rank budget moves to where it matters (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import peft
import torch
from peft.tuners.adalora import AdaLoraLayer
from pydantic import AliasChoices, Field, model_validator
from torch import nn

from adapterlab.adapters.base import register_method
from adapterlab.adapters.lora_layer import quicken
from adapterlab.adapters.rank_budget import RankBudget
from adapterlab.adapters.targets import plain
from adapterlab.adapters.tuner import TunerConfig, TunerMethod, check_ranks
from adapterlab.backbones import Backbone, Found
from adapterlab.errors import AdapterError, ConfigError


class AdaLoraConfig(TunerConfig):
    """Options of AdaLoRA. The paper's names; steps are optimizer steps."""

    target_r: int = Field(
        8,
        ge=1,
        validation_alias=AliasChoices("target_r", "r"),
        description="average rank at the end, b(T) per matrix",
    )
    init_r: int | None = Field(None, ge=1, description="rank at the start; 1.5 x target_r if left out")
    total_step: int | None = Field(
        None, ge=1, description="T, steps of the whole run; a Trainer puts in its own count, your own loop gives it"
    )
    tinit: int | None = Field(None, ge=0, description="steps before the budget shrinks; a tenth of T if left out")
    tfinal: int | None = Field(
        None, ge=0, description="steps at the end with the final budget; three tenths of T if left out"
    )
    delta_t: int | None = Field(
        None,
        ge=1,
        validation_alias=AliasChoices("delta_t", "deltaT"),
        description="steps between two allocations",
    )
    beta1: float = Field(0.85, gt=0, lt=1, description="smoothing of the sensitivity, equation 9")
    beta2: float = Field(0.85, gt=0, lt=1, description="smoothing of the uncertainty, equation 10")
    orth_reg_weight: float = Field(0.5, ge=0, description="gamma, weight of the orthogonality term, equation 4")

    @model_validator(mode="after")
    def _check(self) -> AdaLoraConfig:
        if self.init_r is not None and self.init_r < self.target_r:
            raise ValueError(
                f"init_r ({self.init_r}) is below target_r ({self.target_r}): the budget only shrinks. "
                f"Set init_r to {self.target_r} or more, or leave it out."
            )
        return self

    @property
    def start_r(self) -> int:
        """The rank at the start, filled in."""
        return self.init_r if self.init_r is not None else max(self.target_r + 1, round(1.5 * self.target_r))


@register_method("adalora")
class AdaLora(TunerMethod):
    r"""AdaLoRA: `h = W x + (alpha / init_r) P Λ Q dropout(x)`, equation 3 of Zhang et al. 2023, arXiv:2303.10512.

    `Q` (`lora_A`) is (r, in), `Λ` (`lora_E`) is (r, 1) and starts at zero, `P` (`lora_B`) is (out, r). The
    singular values of least importance are set to zero on the cubic schedule of equation 12, until `target_r`
    per matrix are left on average. The gradient of `gamma R(P, Q)`, equation 4, is added before each optimizer
    step, so that whatever computes the loss needs to know nothing of it. The modules and the file format are
    peft's; the schedule is ours and drives itself from the optimizer's steps.

    A file holds the triplets that are alive and says which they are. Training that goes on from there, or a second
    run of the same model, begins with those: what is pruned stays pruned, and if `target_r` is reached the ranks
    stay as they are.
    """

    summary = "LoRA whose ranks go, while it trains, to the matrices that need them"
    paper = "Zhang et al. 2023, arXiv:2303.10512"
    Config = AdaLoraConfig
    peft_type = "ADALORA"
    marker = "lora_"
    layer_class = AdaLoraLayer

    def peft_config(self, config: AdaLoraConfig) -> peft.AdaLoraConfig:
        """Return peft's config. The schedule in it is a placeholder that peft insists on: `RankBudget` has ours."""
        return peft.AdaLoraConfig(
            target_r=config.target_r,
            init_r=config.start_r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            total_step=1,
            deltaT=config.delta_t or 1,
            beta1=config.beta1,
            beta2=config.beta2,
            orth_reg_weight=config.orth_reg_weight,
        )

    def fit(self, settings: peft.AdaLoraConfig, config: AdaLoraConfig, targets: list[Found]) -> None:
        """Refuse ranks that the targets can't have."""
        check_ranks("init_r", dict.fromkeys((t.path for t in targets), config.start_r), targets, config.oversized_rank)

    def trains(self, path: str) -> bool:
        """P, Λ and Q are trained; `ranknum` is peft's constant."""
        return ".ranknum." not in path

    def inject(self, model: nn.Module, backbone: Backbone, name: str, config: AdaLoraConfig) -> None:
        """Wrap the targets, then add the budget's state."""
        super().inject(model, backbone, name, config)
        quicken(self.own_layers(model, name).values())
        if not hasattr(model, "lora_budget"):
            model.lora_budget = nn.ModuleDict()
        budgets: Any = model.lora_budget
        budgets[name] = RankBudget(self._triplets(model, name))
        if config.total_step:
            self.on_train_begin(model, name, config, config.total_step, 0)

    def remove(self, model: nn.Module, name: str) -> None:
        """Take out the layers and the budget."""
        super().remove(model, name)
        budgets: Any = getattr(model, "lora_budget", {})
        if name in budgets:
            del budgets[name]
        if hasattr(model, "lora_budget") and not len(budgets):
            del model.lora_budget

    def on_train_begin(self, model: nn.Module, name: str, config: AdaLoraConfig, total_step: int, done: int) -> None:
        """Lay out the budget schedule over the run, from the triplets that are alive; one that resumes goes on.

        Raises:
            ConfigError: it doesn't fit into so many steps.
        """
        schedule = (config.target_r, config.tinit, config.tfinal, config.delta_t)
        triplets = self._triplets(model, name)
        self._budget(model, name).plan(triplets, total_step, *schedule, resumes=done > 0)

    def on_train_end(self, model: nn.Module, name: str, config: AdaLoraConfig) -> None:
        """Prune to the final budget, if training stopped, or its best state was reached, before the schedule did."""
        budget = self._budget(model, name)
        if budget.planned:
            budget.finish(self._triplets(model, name))

    def before_step(self, model: nn.Module, name: str, config: AdaLoraConfig) -> None:
        """Add the gradient of gamma R(P, Q), equation 4, to P's and Q's.

        R is the mean over all P and Q of ||PᵀP - I||_F and ||QQᵀ - I||_F, as peft has it (the paper sums squares);
        the gradient of ||QQᵀ - I||_F is 2 (QQᵀ - I) Q / ||QQᵀ - I||_F.

        Raises:
            AdapterError: the length of the run isn't known. Nothing has been changed then.
        """
        if not self._budget(model, name).planned:
            raise AdapterError(
                f"adapter '{name}': AdaLoRA shrinks its ranks over the whole run and must know its length. "
                "In your own loop give the number of optimizer steps, attach(model, 'adalora', total_step=N), "
                "or call adapterlab.set_total_step(model, N) before training; transformers.Trainer does it itself."
            )
        triplets = self._triplets(model, name)
        weight = config.orth_reg_weight / (2 * len(triplets))
        with torch.no_grad(), torch.autocast(triplets[0][0].device.type, enabled=False):
            for q, _, p in triplets if weight else ():
                for rows, gradient in ((q, q.grad), (p.T, None if p.grad is None else p.grad.T)):
                    if gradient is not None:
                        off = rows @ rows.T
                        off.diagonal().sub_(1)
                        off.mul_(2 * weight / torch.linalg.norm(off).clamp_min(1e-12))
                        gradient.addmm_(off, rows)

    def on_train_step(self, model: nn.Module, name: str, config: AdaLoraConfig) -> None:
        """Update importance from the gradients and the weights after the step, as peft does; prune when it's time."""
        self._budget(model, name).step(self._triplets(model, name), config.beta1, config.beta2)

    def report(self, model: nn.Module, name: str, config: AdaLoraConfig) -> str | None:
        """Say what is left of the budget, and where."""
        budget = self._budget(model, name)
        ranks = {path: int(alive.sum()) for path, _, alive in self._alive(model, name)}
        return budget.report(ranks) if budget.planned else None

    def state(self, model: nn.Module, name: str, config: AdaLoraConfig) -> dict[str, torch.Tensor]:
        """Return P, Λ and Q without the pruned triplets, as peft saves them."""
        saved: dict[str, torch.Tensor] = {}
        for path, (a, e, b), alive in self._alive(model, name):
            saved[f"{path}.lora_A"] = a.detach()[alive]
            saved[f"{path}.lora_E"] = e.detach()[alive]
            saved[f"{path}.lora_B"] = b.detach()[:, alive]
        return saved

    def load_state(self, model: nn.Module, name: str, config: AdaLoraConfig, state: dict[str, torch.Tensor]) -> None:
        """Put the kept triplets where the rank pattern says they were; a pruned Λ is zero."""
        with torch.no_grad():
            for path, (a, e, b), alive in self._alive(model, name):
                e.zero_()
                a[alive], e[alive] = state[f"{path}.lora_A"].to(a), state[f"{path}.lora_E"].to(e)
                b[:, alive] = state[f"{path}.lora_B"].to(b)

    def to_peft(self, model: nn.Module, backbone: Backbone, name: str, config: AdaLoraConfig) -> dict[str, Any]:
        """Return peft's fields, with the rank pattern that the saved tensors follow."""
        fields = super().to_peft(model, backbone, name, config)
        budget, alive = self._budget(model, name), self._alive(model, name)
        if not all(mask.all() for _, _, mask in alive):
            fields["rank_pattern"] = {f"{path}.lora_E": mask.tolist() for path, _, mask in alive}
        if budget.planned:
            fields.update(total_step=budget.total_step, tinit=budget.tinit, tfinal=budget.tfinal, deltaT=budget.delta_t)
        return fields

    def from_peft(self, fields: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Read peft's fields; a run that goes on plans its own schedule."""
        return super().from_peft(fields, keys) | {
            **dict.fromkeys(("total_step", "tinit", "tfinal", "delta_t")),
            "target_r": fields["target_r"],
            "init_r": fields["init_r"],
            "alpha": fields["lora_alpha"],
            "dropout": fields.get("lora_dropout", 0.0),
            "beta1": fields.get("beta1", 0.85),
            "beta2": fields.get("beta2", 0.85),
            "orth_reg_weight": fields.get("orth_reg_weight", 0.5),
        }

    def adopt(self, model: nn.Module, name: str, fields: dict[str, Any]) -> None:
        """Take over the saved rank pattern.

        Raises:
            ConfigError: it isn't one of the adapter's ranks.
        """
        pattern = fields.get("rank_pattern") or {}
        if not isinstance(pattern, dict):
            raise ConfigError(f"rank_pattern must be a mapping, and is a {type(pattern).__name__}.")
        budget = self._budget(model, name)
        keep = []
        for path, (_, e, _) in self._layers_of(model, name):
            mask = pattern.get(f"{path}.lora_E", [True] * len(e))
            if not isinstance(mask, list) or len(mask) != len(e) or not all(isinstance(kept, bool) for kept in mask):
                raise ConfigError(f"rank_pattern of '{path}' must be {len(e)} times true or false, as many as init_r.")
            keep += mask
        budget.keep.copy_(torch.tensor(keep, dtype=torch.bool))

    def _budget(self, model: nn.Module, name: str) -> RankBudget:
        budgets: Any = model.lora_budget
        return budgets[name]

    def _layers_of(self, model: nn.Module, name: str) -> list[tuple[str, tuple[Any, Any, Any]]]:
        return [
            (plain(path), (layer.lora_A[name], layer.lora_E[name], layer.lora_B[name]))
            for path, layer in self.layers(model).items()
            if name in layer.lora_A
        ]

    def _triplets(self, model: nn.Module, name: str) -> list[tuple[Any, Any, Any]]:
        return [triplet for _, triplet in self._layers_of(model, name)]

    def _alive(self, model: nn.Module, name: str) -> list[tuple[str, tuple[Any, Any, Any], torch.Tensor]]:
        """Return each matrix's path, its triplets, and which of them count."""
        layers = self._layers_of(model, name)
        masks = self._budget(model, name).alive([triplet for _, triplet in layers])
        return [(path, triplet, alive) for (path, triplet), alive in zip(layers, masks, strict=True)]
