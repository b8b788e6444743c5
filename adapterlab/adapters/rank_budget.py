"""AdaLoRA's rank budget: importance of each triplet, the cubic schedule, pruning (Zhang et al. 2023, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

Triplet = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # Q (r, in), Λ (r, 1), P (out, r)


class RankBudget(nn.Module):
    """State of the schedule, as buffers, so that it moves, copies and resumes with the model.

    All matrices' elements stand in one flat vector, so a step is a handful of tensor operations.
    """

    def __init__(self, triplets: Sequence[Triplet]) -> None:
        super().__init__()
        size = sum(tensor.numel() for triplet in triplets for tensor in triplet)
        count = sum(len(e) for _, e, _ in triplets)
        device = triplets[0][0].device
        self.register_buffer("sensitivity", torch.zeros(size, device=device))  # Ī, equation 9
        self.register_buffer("uncertainty", torch.zeros(size, device=device))  # Ū, equation 10
        self.register_buffer("keep", torch.ones(count, dtype=torch.bool, device=device))
        self.register_buffer("schedule", torch.zeros(6, dtype=torch.long))
        self.sensitivity: torch.Tensor
        self.uncertainty: torch.Tensor
        self.keep: torch.Tensor
        self.schedule: torch.Tensor  # step, T, t_i, t_f, delta, target rank per matrix
        self.matrices = len(triplets)

    def plan(
        self, total_step: int, tinit: int, tfinal: int, delta_t: int, target_r: int, *, resumes: bool = False
    ) -> None:
        """Lay out the schedule and begin it, unless a run resumes that had the same one."""
        plan = torch.tensor([total_step, tinit, tfinal, delta_t, target_r])
        if resumes and torch.equal(self.schedule[1:].cpu(), plan):
            return
        self.schedule[0] = 0
        self.schedule[1:] = plan.to(self.schedule.device)
        self.sensitivity.zero_()
        self.uncertainty.zero_()
        self.keep.fill_(True)

    @property
    def planned(self) -> bool:
        """Whether the length of the run is known."""
        return self.total_step > 0

    @property
    def total_step(self) -> int:
        """T of the paper."""
        return int(self.schedule[1])

    @property
    def tinit(self) -> int:
        """t_i of the paper."""
        return int(self.schedule[2])

    @property
    def tfinal(self) -> int:
        """t_f of the paper."""
        return int(self.schedule[3])

    @property
    def delta_t(self) -> int:
        """Steps between two allocations."""
        return int(self.schedule[4])

    def budget(self, step: int) -> int:
        """Return b(t), the number of triplets that may live at a step: equation 12."""
        start, final = len(self.keep), min(int(self.schedule[5]) * self.matrices, len(self.keep))
        shrinking = self.total_step - self.tinit - self.tfinal
        share = min(max((step - self.tinit) / max(shrinking, 1), 0.0), 1.0)
        return final + round((start - final) * (1 - share) ** 3)

    def step(self, triplets: Sequence[Triplet], beta1: float, beta2: float) -> None:
        """Count an optimizer step: update importance from the gradients, prune to this step's budget."""
        self.schedule[0] += 1
        step = int(self.schedule[0])
        last = self.total_step - self.tfinal
        if step <= last:
            now = torch.cat([_sensitivity(tensor) for triplet in triplets for tensor in triplet])
            now = now.to(self.sensitivity)
            self.sensitivity.lerp_(now, 1 - beta1)
            self.uncertainty.lerp_((now - self.sensitivity).abs(), 1 - beta2)
            if step > self.tinit and (step % self.delta_t == 0 or step == last):
                self._allocate(triplets, self.budget(step))
        if step > self.tinit:
            self._prune(triplets)

    def finish(self, triplets: Sequence[Triplet]) -> None:
        """Prune to the final budget now, unless it is reached."""
        alive = self.keep.clone()
        if int(alive.sum()) > self.budget(self.total_step):
            self._allocate(triplets, self.budget(self.total_step), alive)
        self._prune(triplets)

    def _allocate(self, triplets: Sequence[Triplet], budget: int, among: torch.Tensor | None = None) -> None:
        importance = (self.sensitivity * self.uncertainty).split(  # equation 11
            [tensor.numel() for triplet in triplets for tensor in triplet]
        )
        scores = []
        for index, (q, _, p) in enumerate(triplets):
            s_q, s_e, s_p = importance[3 * index : 3 * index + 3]
            # equation 7: the singular value's own score plus the means over its two singular vectors
            scores.append(s_e.view(-1) + s_q.view_as(q).mean(1) + s_p.view_as(p).mean(0))
        score = torch.cat(scores)
        if among is not None:
            score = score.masked_fill(~among, -1.0)
        self.keep.zero_()
        self.keep[score.topk(budget).indices] = True

    def _prune(self, triplets: Sequence[Triplet]) -> None:
        with torch.no_grad():
            for (_, e, _), keep in zip(triplets, self.keep.split([len(e) for _, e, _ in triplets]), strict=True):
                e.mul_(keep[:, None])


def _sensitivity(tensor: torch.Tensor) -> torch.Tensor:
    """Return |w · dL/dw| of each element, equation 8, flat; nothing where no gradient came."""
    if tensor.grad is None:
        return torch.zeros(tensor.numel(), device=tensor.device)
    return (tensor.detach() * tensor.grad).abs().flatten().float()
