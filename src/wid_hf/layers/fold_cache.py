"""When a weight of the student is folded, and how long its fold is kept: one cache, one policy.

Takes a student with folded weights. `install` keeps folds of shared weights during each forward, `WidTrainer` keeps all
folds during an optimizer step or an evaluation, calibration keeps each fold until its maps are written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .fold_groups import FoldGroup, fold_groups
from .folded_weight import FoldedWeight, places
from .kept_folds import AtFirstUse, Formed, TogetherAtFirstUse
from .table_rows import fold_by_rows, lookups


@dataclass(frozen=True)
class FoldPolicy:
    """Until when folds are kept, and which. There are the four below; `FoldCache` says what each does.

    Attributes:
        until: the end of the `"forward"`, the `"release"` of all, or a `"write"` of the weight's own maps.
        gradients: whether a backward pass may go through the folds.
        tokens: how many tokens are looked up until then, in all. If a table has more rows and only one embedding uses
            it, each forward folds only the rows that it looks up. None: whole tables are kept.
        dtype: what the folds are cast to; the teacher's if None.
    """

    until: Literal["forward", "release", "write"]
    gradients: bool = True
    tokens: int | None = None
    dtype: torch.dtype | None = None

    @classmethod
    def for_forwards(cls) -> FoldPolicy:
        """Keep weights that are folded together or shared by several modules during each forward of the student."""
        return cls("forward")

    @classmethod
    def for_step(cls, tokens: int | None = None) -> FoldPolicy:
        """Keep every weight during one optimizer step, whose micro-batches have about `tokens` tokens in all."""
        return cls("release", tokens=tokens)

    @classmethod
    def for_evaluation(cls, dtype: torch.dtype | None = None) -> FoldPolicy:
        """Keep every weight, cast to `dtype`, during several forwards without gradients."""
        return cls("release", gradients=False, dtype=dtype)

    @classmethod
    def for_calibration(cls) -> FoldPolicy:
        """Keep every weight until its maps are written: one fold serves the paused forwards of all batches."""
        return cls("write")


class FoldCache:
    """Every `FoldedWeight` of a student, and the folds that are kept of them.

    Without a policy each use of a weight folds it. So gradient checkpointing, which computes a part of the forward
    again in the backward pass, folds again. A policy says when a fold is formed, kept and dropped:

    - `for_forwards` (set by `install`, for as long as the student lives): weights of one `FoldGroup` are formed
      together, at the first use of one of them in a forward of the whole student, a weight that several modules share
      at its first use; they are dropped when that forward returns or raises. There is one fold for uses with gradients
      and one for uses without. A checkpointed part of a forward folds each weight separately, because it is computed
      again when the forward is over.
    - `for_step` (`WidTrainer`): `keep` forms every weight at once, and each stays until `release`. Gradients are
      linear: all micro-batches but the last use leaf tensors, in which gradients add up. `open` is called before the
      last micro-batch, whose backward pass goes through the folds and adds the gradients of the leaves. This equals
      folding in every forward, up to rounding, at the cost of one fold a step; and the last forward uses every
      parameter, as `DistributedDataParallel` needs. Large lookup tables are not kept: each forward folds the rows that
      it looks up.
    - `for_evaluation` (`WidTrainer`): as for a step, without gradients, in any dtype, until `drop`.
    - `for_calibration`: a weight is formed at its first use, and stays until `forget`, called when its maps were
      written, or until `drop`.

    A fold kept for a step or an evaluation is used everywhere, also in shared weights and checkpoints. A copy of a
    student has no folds.

    Args:
        student: an installed student; each call looks its weights up again, since a student that shrinks gets new ones.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        self._folds: dict[FoldedWeight, Tensor] = {}  # with the graph that leads to the maps
        self._together: list[list[FoldedWeight]] = []  # what has one graph
        self._leaves: dict[FoldedWeight, Tensor] = {}
        self._filled: set[FoldedWeight] = set()
        self._by_rows: list[Callable[[], None]] = []

    def keep(self, policy: FoldPolicy) -> None:
        """Keep folds from now on, as `policy` says."""
        if policy.until == "forward":
            in_forwards = _InForwards(self.student)
            self.student.register_forward_pre_hook(in_forwards.begin)
            self.student.register_forward_hook(in_forwards.end, always_call=True)
        elif policy.until == "write":
            self._filled = {place.weight for place in places(self.student)}
            for weight in self._filled:
                self.forget(weight)
        else:
            self._form_all(policy)

    @contextmanager
    def keeping(self, policy: FoldPolicy) -> Iterator[FoldCache]:
        """Keep folds inside, and drop them at the end."""
        self.keep(policy)
        try:
            yield self
        finally:
            self.drop()

    def open(self) -> None:
        """Let the next backward pass go through the folds and add the gradients of the leaves."""
        for together in self._together:
            weights = [weight for weight in together if self._folds[weight].requires_grad]
            folds = [self._folds[weight] for weight in weights]
            if any(self._leaves[weight].grad is not None for weight in weights):
                folds = [*_Opened.apply(partial(self._gathered, weights), *folds)]
            for weight, folded in zip(weights, folds, strict=True):
                weight.slot = Formed(folded)

    def release(self) -> None:
        """Drop all folds; gradients of leaves that the last forward did not use go through their folds first."""
        left = [(self._folds[weight], leaf.grad) for weight, leaf in self._leaves.items() if leaf.grad is not None]
        self.drop()
        if left:
            torch.autograd.backward([folded for folded, _ in left], [gradient for _, gradient in left])

    def drop(self) -> None:
        """Let each use fold again; gradients in the leaves are lost."""
        for weight in self._filled:
            weight.slot = None
        for stop in self._by_rows:
            stop()
        self._folds, self._leaves, self._filled, self._by_rows = {}, {}, set(), []
        self._together = []

    def forget(self, weight: FoldedWeight) -> None:
        """Let the next use of `weight`, whose maps were written, form its fold again."""
        weight.slot = AtFirstUse()

    def _form_all(self, policy: FoldPolicy) -> None:
        few = self._looked_up_in_part(policy.tokens)
        originals = {place.weight: place.original for place in places(self.student) if place.weight not in few}
        with torch.set_grad_enabled(policy.gradients and torch.is_grad_enabled()):
            together = _folded_together(fold_groups(self.student, few), originals)
        self._together = [[*folds] for folds in together]
        for folds in together:
            self._folds |= folds
        for weight, folded in self._folds.items():
            # Torch chooses kernels by `requires_grad` even without gradients: the rounding must be that of a parameter.
            trains = folded.requires_grad or originals[weight].requires_grad
            leaf = folded.detach().to(policy.dtype or folded.dtype).requires_grad_(trains)
            weight.slot, self._leaves[weight] = Formed(leaf), leaf
        self._filled = set(self._folds)
        self._by_rows = [fold_by_rows(table, module) for table, module in few.items()]

    def _looked_up_in_part(self, tokens: int | None) -> dict[FoldedWeight, nn.Embedding]:
        """Return the tables that have more rows than so many tokens can look up."""
        most = inf if tokens is None else tokens
        return {table: module for table, module in lookups(self.student).items() if most < module.num_embeddings}

    def _gathered(self, weights: Sequence[FoldedWeight], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients of folds with those of their leaves, which are let go."""
        leaves = [self._leaves.pop(weight, None) for weight in weights]
        earlier = [None if leaf is None else leaf.grad for leaf in leaves]
        return [a if b is None else b if a is None else a + b for a, b in zip(gradients, earlier, strict=True)]


def _folded_together(
    groups: Sequence[FoldGroup], originals: Mapping[FoldedWeight, Tensor]
) -> list[dict[FoldedWeight, Tensor]]:
    """Return the folds of each group, then of every other weight by itself."""
    together = [group.fold() or {} for group in groups]
    grouped = {weight for folds in together for weight in folds}
    alone = [weight for weight in originals if weight not in grouped]
    return together + [{weight: weight.fold(originals[weight])} for weight in alone]


class _InForwards:
    """The hooks of a student that form its folds at first use, for one forward.

    A copy of the student has a copy of this, with its own weights.
    """

    def __init__(self, student: nn.Module) -> None:
        self._find(student)

    def begin(self, student: nn.Module, *_: Any) -> None:
        """Let the weights be folded at their first use."""
        for weight, steps in zip(self._weights, self._steps, strict=True):
            if steps[0] is not weight:  # the student has shrunk
                self._find(student)
                break
        for group in self._groups:
            slot = TogetherAtFirstUse(group)
            for weight in group.weights:
                if not isinstance(weight.slot, Formed):
                    weight.slot = slot
        for weight in self._shared:
            if not isinstance(weight.slot, Formed):
                weight.slot = AtFirstUse()

    def end(self, *_: Any) -> None:
        """Let go of the folds."""
        for weight in self._weights:
            if not isinstance(weight.slot, Formed):
                weight.slot = None

    def _find(self, student: nn.Module) -> None:
        everything = list(places(student))
        users = Counter(place.weight for place in everything)
        first = {place.weight: place for place in reversed(everything)}
        self._groups = fold_groups(student)
        grouped = {weight for group in self._groups for weight in group.weights}
        self._shared = [weight for weight, count in users.items() if count > 1 and weight not in grouped]
        # Lists, for torch.compile guards what it reaches by a dictionary's keys by identity, folds among it.
        self._weights = [*first]
        self._steps: list[Any] = [place.module.parametrizations[place.attribute] for place in first.values()]  # type: ignore[index]


class _Opened(torch.autograd.Function):
    """Folds that were formed together, unchanged, whose gradients are changed on their way back to the folds.

    A hook on a fold would also change the results of `torch.autograd.grad` elsewhere.
    """

    @staticmethod
    def forward(
        ctx: Any, gathered: Callable[[Sequence[Tensor | None]], list[Tensor | None]], *folds: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.gathered = gathered
        return tuple(folded.view_as(folded) for folded in folds)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.gathered(gradients)
