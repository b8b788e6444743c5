"""AdaLoRA's rank budget: importance of each triplet, the cubic schedule, pruning (Zhang et al. 2023, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from adapterlab.errors import ConfigError

Triplet = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # Q (r, in), Λ (r, 1), P (out, r)


class RankBudget(nn.Module):
    """State of the schedule, as buffers, so that it moves, copies and resumes with the model.

    All matrices' elements stand in one flat vector, so a step is a handful of tensor operations. `keep` are the
    triplets that the last allocation chose, `open` those among which it may choose: a triplet that was pruned
    before this run, in an adapter that was loaded or trained already, stays pruned.
    """

    def __init__(self, triplets: Sequence[Triplet]) -> None:
        super().__init__()
        size = sum(tensor.numel() for triplet in triplets for tensor in triplet)
        count = sum(len(e) for _, e, _ in triplets)
        device = triplets[0][0].device
        self.register_buffer("sensitivity", torch.zeros(size, device=device))  # Ī, equation 9
        self.register_buffer("uncertainty", torch.zeros(size, device=device))  # Ū, equation 10
        self.register_buffer("keep", torch.ones(count, dtype=torch.bool, device=device))
        self.register_buffer("open", torch.ones(count, dtype=torch.bool, device=device))
        self.register_buffer("schedule", torch.zeros(6, dtype=torch.long))
        self.sensitivity: torch.Tensor
        self.uncertainty: torch.Tensor
        self.keep: torch.Tensor
        self.open: torch.Tensor
        self.schedule: torch.Tensor  # steps done, T, t_i, t_f, delta, target rank per matrix
        self.matrices = len(triplets)

    def plan(
        self,
        triplets: Sequence[Triplet],
        total_step: int,
        target_r: int,
        tinit: int | None = None,
        tfinal: int | None = None,
        delta_t: int | None = None,
        *,
        resumes: bool = False,
    ) -> None:
        """Lay out the schedule; what is `None` is chosen. It begins now, with what is alive, unless a run resumes.

        Raises:
            ConfigError: it doesn't fit into so many steps.
        """
        resumes = resumes and int(self.schedule[0]) > 0
        start = self.open if resumes else torch.cat(self.alive(triplets))
        rank = int(start.sum()) / self.matrices
        tinit = total_step // 10 if tinit is None else tinit
        tfinal = 3 * total_step // 10 if tfinal is None else tfinal
        if rank <= target_r:
            tinit = tfinal = 0  # there is nothing to shrink, so nothing that may not fit
        elif tinit + tfinal >= total_step:
            raise ConfigError(
                f"tinit: the AdaLoRA schedule doesn't fit: tinit {tinit} + tfinal {tfinal} = {tinit + tfinal} of "
                f"{total_step} steps, which leaves none in which the rank could shrink from {rank:.3g} to "
                f"{target_r}. Lower tinit or tfinal (or leave them out), or train longer."
            )
        delta_t = delta_t or max(1, min(10, (total_step - tinit - tfinal) // 20))
        self.schedule[1:] = torch.tensor([total_step, tinit, tfinal, delta_t, target_r])
        if not resumes:
            self.schedule[0] = 0
            self.sensitivity.zero_()
            self.uncertainty.zero_()
            self.keep.copy_(start)
            self.open.copy_(start)

    def alive(self, triplets: Sequence[Triplet]) -> list[torch.Tensor]:
        """Return for each matrix which of its triplets count: those kept, and those pruned but trained on since."""
        masks = self.keep.split([len(e) for _, e, _ in triplets])
        return [keep | (e.detach() != 0).flatten() for keep, (_, e, _) in zip(masks, triplets, strict=True)]

    def report(self, ranks: Mapping[str, int]) -> str:
        """Say in a line what is left of the budget, given the rank of each matrix, and where."""
        kept, final = sum(ranks.values()), self.budget(self.total_step)
        most, none = max(ranks, key=lambda path: ranks[path]), [path for path, rank in ranks.items() if not rank]
        few = ", ".join(none[:3]) + (f" and {len(none) - 3} more" if len(none) > 3 else "")
        return (
            f"AdaLoRA's budget {'reached' if kept <= final else f'of {final} not reached'}: {kept} of "
            f"{len(self.keep)} triplets kept, {kept / len(ranks):.1f} per matrix; most in {most} ({ranks[most]})"
            + (f", none in {few}." if none else ".")
        )

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
        """Return b(t), the number of triplets that may live at a step: equation 12.

        The paper prints `1 - (t - t_i - t_f) / (T - t_i - t_f)`, which would jump at both ends; its authors' code and
        peft's have `1 - (t - t_i) / (T - t_i - t_f)`, rounded down, and so has this.
        """
        _, total, tinit, tfinal, _, target_r = self.schedule.tolist()
        start = int(self.open.sum())
        final = min(target_r * self.matrices, start)
        share = min(max((step - tinit) / max(total - tinit - tfinal, 1), 0.0), 1.0)
        return int((start - final) * (1 - share) ** 3 + final)

    def step(self, triplets: Sequence[Triplet], beta1: float, beta2: float) -> None:
        """Count an optimizer step: update importance from the gradients, prune to this step's budget if it's time.

        Between two allocations a pruned triplet is trained on and may come back at the next one (section 4 of the
        paper); from `T - t_f` on the choice stands.
        """
        self.schedule[0] += 1
        step, total, tinit, tfinal, delta_t, _ = self.schedule.tolist()
        last = total - tfinal
        if step < last:
            self._observe(triplets, beta1, beta2)
        allocates = tinit < step <= last and (step % delta_t == 0 or step == last)
        if allocates:
            self._allocate(triplets, self.budget(step), self.open)
        self._prune(triplets, self.keep if allocates or step > last else self.open)

    def finish(self, triplets: Sequence[Triplet]) -> None:
        """Prune to the final budget now, unless it is reached or no step has told what is important."""
        final = self.budget(self.total_step)
        if int(self.schedule[0]) and int(self.keep.sum()) > final:
            self._allocate(triplets, final, self.keep.clone())
        self._prune(triplets, self.keep)

    def _observe(self, triplets: Sequence[Triplet], beta1: float, beta2: float) -> None:
        now = torch.cat([_product(tensor) for triplet in triplets for tensor in triplet]).to(self.sensitivity)
        now.abs_().nan_to_num_(0.0, 0.0, 0.0)  # an overflow in fp16 must not stay in the averages for good
        self.sensitivity.lerp_(now, 1 - beta1)
        self.uncertainty.lerp_(now.sub_(self.sensitivity).abs_(), 1 - beta2)

    def _allocate(self, triplets: Sequence[Triplet], budget: int, among: torch.Tensor) -> None:
        importance = (self.sensitivity * self.uncertainty).split(  # equation 11
            [tensor.numel() for triplet in triplets for tensor in triplet]
        )
        scores = []
        for index, (q, _, p) in enumerate(triplets):
            s_q, s_e, s_p = importance[3 * index : 3 * index + 3]
            # equation 7: the singular value's own score plus the means over its two singular vectors
            scores.append(s_e.view(-1) + s_q.view_as(q).mean(1) + s_p.view_as(p).mean(0))
        chosen = torch.cat(scores).masked_fill(~among, -1.0).topk(budget).indices
        self.keep.zero_()
        self.keep[chosen] = True

    def _prune(self, triplets: Sequence[Triplet], keep: torch.Tensor) -> None:
        with torch.no_grad():
            for (_, e, _), kept in zip(triplets, keep.split([len(e) for _, e, _ in triplets]), strict=True):
                e.mul_(kept[:, None])


def _product(tensor: torch.Tensor) -> torch.Tensor:
    """Return w · dL/dw of each element, whose magnitude is equation 8, flat; zero where no gradient came."""
    if tensor.grad is None:
        return torch.zeros(tensor.numel(), device=tensor.device)
    return (tensor.detach() * tensor.grad).flatten()
