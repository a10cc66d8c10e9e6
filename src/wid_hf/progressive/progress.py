"""The state of a progressive training: which indices were dropped when, which are dropped next, how rows fade.

Takes a plan, a `WidSchedule` and the wide model's compactors. The controller calls `advance` after each optimizer step
and shrinks the model when `finished`. Everything that a resumed run needs is a buffer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..arithmetic import in_float64, place_of
from ..coupling import Dim, Plan
from ..coupling.dims import leaves
from ..coupling.index_sets import axis_factors, leaf_sums
from ..coupling.plan import Key, key
from ..errors import WidError
from ..layers import Compactor, compactor_axes, shrinking_leaves
from .penalty import fade, pull_by_moments
from .schedule import Kind, Timeline, WidSchedule

NOT_DROPPED = -1  # in place of the step at which an index was dropped


class Progress(nn.Module):
    """The index sets of a progressive training, which become smaller step by step.

    It is in exactly one of four states:

    - *wide*: nothing is dropped yet.
    - *dropping*: some indices are dropped and fade; more will be dropped.
    - *fading*: all indices that must go are dropped, but not all their rows are zero.
    - *finished*: all these rows are zero. `narrow` says whether the model has been shrunk since.

    Attributes:
        steps: optimizer steps seen, `()` int64.
        narrow: whether the model is the narrow one, `()` bool.
        timeline: what happens when; None until `begin`.
        last_drop: the step after which indices were last dropped; None if this process has seen none.
    """

    steps: Tensor
    narrow: Tensor

    def __init__(self, plan: Plan, schedule: WidSchedule, device: torch.device) -> None:
        super().__init__()
        self.plan = plan
        self.schedule = schedule
        self.timeline: Timeline | None = None
        self.last_drop: int | None = None
        self.leaves = shrinking_leaves(plan)
        outer = set(plan.under.values())
        self.kinds: list[Kind] = [
            "width" if leaf in plan.under else "head" if leaf in outer else "stream" for leaf in self.leaves
        ]
        self.names = _names(plan, self.leaves, self.kinds)
        for at, leaf in enumerate(self.leaves):
            shape = (plan.under[leaf].size, leaf.size) if leaf in plan.under else (leaf.size,)
            self.register_buffer(f"dropped_{at}", torch.full(shape, NOT_DROPPED, device=device))
            if schedule.selection == "importance":
                self.register_buffer(f"importance_{at}", torch.zeros(shape, dtype=torch.float32, device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("narrow", torch.tensor(False, device=device))

    def begin(self, total_steps: int | None) -> None:
        """Fix what happens at which step.

        Raises:
            ConfigError: see `WidSchedule.timeline`.
        """
        self.timeline = self.schedule.timeline(total_steps)

    @property
    def due(self) -> int | None:
        """The step at which the last dropped row is zero, None before `begin`."""
        return self.timeline.shrink_step if self.timeline is not None else None

    @property
    def finished(self) -> bool:
        """Whether every index that must go is dropped and its rows are zero."""
        return self.due is not None and int(self.steps) >= self.due

    def index_sets(self) -> dict[Dim, Tensor]:
        """Return the indices that each leaf keeps now: `(k,)`, or `(n_outer, k)` inside heads."""
        return {leaf: _where(self._dropped(at) == NOT_DROPPED) for at, leaf in enumerate(self.leaves)}

    def final_index_sets(self, wide: nn.Module) -> dict[Dim, Tensor]:
        """Return the indices that each leaf would keep if all that must go were dropped now."""
        scores = self._scores(wide)
        return {
            leaf: _where(~_lowest(score, leaf.size - self.plan.targets[leaf]))
            for leaf, score in zip(self.leaves, scores, strict=True)
        }

    def advance(self, wide: nn.Module, step: int) -> bool:
        """Drop indices and fade dropped rows as the schedule says after step `step`; return whether index sets changed.

        A step that was seen before changes nothing; what belongs to skipped steps is done as well.

        Raises:
            WidError: the step is before the last one seen.
        """
        assert self.timeline is not None, "begin comes first"
        seen = int(self.steps)
        if step < seen:
            raise WidError(
                f"Step {step} comes after step {seen}. Call wid_step once after each optimizer step, with steps that "
                "count up."
            )
        if step == seen or self.narrow:
            self.steps.fill_(step)
            return False
        grown = self.timeline.increment(step) > self.timeline.increment(seen)
        if grown:
            self._choose(wide, step)
            self.last_drop = step
        self._fade(wide, seen, step)
        self.steps.fill_(step)
        return grown

    def before_optimizer(self, wide: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Use or change the gradients of compactors before a step of the optimizer, if the schedule needs it."""
        if self.schedule.selection == "importance":
            self._note_importance(wide)
        if self.schedule.penalty == "adam_moment":
            matrices = [(compactor.matrix, rows) for compactor, rows in self._dropped_rows(wide)]
            pull_by_moments(optimizer, matrices, self.schedule.strength)

    def figures(self, wide: nn.Module | None) -> dict[str, float]:
        """Return figures for a log: kept indices of each coupled dimension (mean over layers), norm of the fading rows.

        The penalty is the share that the most recently dropped rows have lost by now.

        Args:
            wide: the wide model; None once it is narrow.
        """
        figures: dict[str, float] = {}
        for at, name in enumerate(self.names):
            kept = (self._dropped(at) == NOT_DROPPED).sum(-1).cpu().double().mean()
            figures[f"wid/kept/{name}"] = float(kept)
        fading = torch.zeros(())
        if wide is not None:
            for compactor, rows in self._dropped_rows(wide):
                norm = in_float64(compactor.matrix.detach()[rows]).square().sum()
                fading = fading.to(norm) + norm
        figures["wid/dropped_norm"] = float(fading) ** 0.5
        if self.timeline is not None and self.schedule.penalty == "decoupled":
            last = max(int(self._dropped(at).max()) for at in range(len(self.leaves)))
            left = (
                self.timeline.remaining(int(self.steps) - last, self.schedule.strength) if last != NOT_DROPPED else 1.0
            )
            figures["wid/penalty"] = 1 - left
        return figures

    def _dropped(self, at: int) -> Tensor:
        return self.get_buffer(f"dropped_{at}")

    def _choose(self, wide: nn.Module, step: int) -> None:
        """Drop the indices of lowest score. A dropped index whose score rose comes back, unless its rows are zero."""
        assert self.timeline is not None
        increment = self.timeline.increment(step)
        for at, (leaf, score) in enumerate(zip(self.leaves, self._scores(wide), strict=True)):
            final = self.plan.targets[leaf]
            kept = self.timeline.kept(leaf.size, final, increment, self.kinds[at])
            dropped = self._dropped(at)
            dead = (
                (dropped != NOT_DROPPED)
                & (step - dropped >= self.timeline.decay)
                & (self.schedule.penalty == "decoupled")
            )
            lowest = _lowest(score.masked_fill(dead.to(score.device), -1.0), leaf.size - kept).to(dropped.device)
            dropped.copy_(torch.where(lowest, torch.where(dropped == NOT_DROPPED, step, dropped), NOT_DROPPED))

    def _fade(self, wide: nn.Module, seen: int, step: int) -> None:
        """Multiply dropped rows by the factor of the penalty between two steps."""
        assert self.timeline is not None
        if self.schedule.penalty == "adam_moment" and step < self.timeline.shrink_step:
            return
        factors = {leaf: self._left(self._dropped(at).cpu(), seen, step) for at, leaf in enumerate(self.leaves)}
        for compactor, left in self._rows(wide, factors):
            fade(compactor.matrix, left)

    def _left(self, dropped: Tensor, seen: int, step: int) -> Tensor:
        assert self.timeline is not None
        left = torch.ones(dropped.shape, dtype=torch.float64)
        for when in dropped[dropped != NOT_DROPPED].unique().tolist():
            before = self.timeline.remaining(max(0, seen - when), self.schedule.strength)
            after = self.timeline.remaining(step - when, self.schedule.strength)
            ends = self.schedule.penalty == "adam_moment"  # this penalty alone never reaches zero
            left[dropped == when] = after / before if before and not ends else 0.0
        return left

    def _scores(self, wide: nn.Module) -> list[Tensor]:
        """Return the score of every index of every leaf; the lowest are dropped."""
        if self.schedule.selection == "importance":
            return [self.get_buffer(f"importance_{at}") for at in range(len(self.leaves))]
        rows = {c: in_float64(c.matrix.detach()).norm(dim=1) for c, _ in compactor_axes(wide, self.plan)}
        return self._sums(wide, rows)

    def _note_importance(self, wide: nn.Module) -> None:
        """Add `(sum of gradient x value)^2` over all rows that share an index: the first-order cost of dropping it.

        The estimate is that of Molchanov et al. 2019, arXiv 1906.10771.
        """
        products = {
            c: in_float64(c.matrix.detach() * c.matrix.grad).sum(dim=1)
            for c, _ in compactor_axes(wide, self.plan)
            if c.matrix.grad is not None
        }
        for at, score in enumerate(self._sums(wide, products)):
            importance = self.get_buffer(f"importance_{at}")
            importance.add_(score.square().to(importance))

    def _sums(self, wide: nn.Module, rows: Mapping[Compactor, Tensor]) -> list[Tensor]:
        """Return, for each leaf, values of the rows of compactors summed over all rows that share an index."""
        sums: dict[Dim, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        for compactor, dim in compactor_axes(wide, self.plan):
            if compactor in rows:
                for leaf, values in leaf_sums(self.plan, dim, rows[compactor]):
                    sums[leaf] = sums[leaf].to(values.device) + values
        shapes = [self._dropped(at).shape for at in range(len(self.leaves))]
        return [
            sums[leaf].expand(shape).to(place_of(self.steps.device))
            for leaf, shape in zip(self.leaves, shapes, strict=True)
        ]

    def _rows(self, wide: nn.Module, factors: Mapping[Dim, Tensor]) -> Iterator[tuple[Compactor, Tensor]]:
        """Yield every compactor with the product of the leaves' `factors` for each of its rows `(n,)`, on the CPU."""
        computed: dict[Key, Tensor] = {}  # most compactors of a model share a few dimensions
        for compactor, dim in compactor_axes(wide, self.plan):
            if key(dim) not in computed:
                computed[key(dim)] = axis_factors(self.plan, dim, factors)
            yield compactor, computed[key(dim)]

    def _dropped_rows(self, wide: nn.Module) -> Iterator[tuple[Compactor, Tensor]]:
        """Yield every compactor with the numbers of its dropped rows, `(dropped,)`, on its device."""
        kept = {leaf: (self._dropped(at).cpu() == NOT_DROPPED).double() for at, leaf in enumerate(self.leaves)}
        for compactor, share in self._rows(wide, kept):
            yield compactor, (share == 0).nonzero()[:, 0].to(compactor.matrix.device)


def _lowest(score: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` lowest entries along the last axis; among equals, of the later ones."""
    order = score.flip(-1).argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, score.shape[-1] - 1 - order, True)


def _where(mask: Tensor) -> Tensor:
    """Return the indices where `mask` is true along the last axis; every row has the same number of them."""
    return mask.nonzero()[:, -1].view(*mask.shape[:-1], -1)


def _names(plan: Plan, shrinking: list[Dim], kinds: list[Kind]) -> list[str]:
    """Return for each leaf the first weight axis with it, without layer numbers, and what the leaf counts in it."""
    names: dict[Dim, str] = {}
    for weight, axes in plan.axes.items():
        for axis, dim in enumerate(axes):
            for leaf in leaves(dim):
                names.setdefault(leaf, f"{weight}[{axis}]")
    parts = {"stream": "", "head": " heads", "width": " width"}
    return [re.sub(r"\.\d+\.", ".*.", names[leaf]) + parts[kind] for leaf, kind in zip(shrinking, kinds, strict=True)]
