"""The second pass over a calibrated student: layer by layer, by gradient, and then the head.

Takes teacher and student with batches; changes the student's maps in place. Called by the tuner after `initialize`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ...coupling.plan import Plan
from ...coupling.trace import Trace, quiet_forward
from ...layers.fold_cache import FoldCache, FoldPolicy
from ..batches import Batch, prepared
from ..division import first_tokens
from ..norm_scale import scaling_vector
from ..padding import Padding
from ..precision import Precision
from ..report import HEAD, RefinedPart
from .descent import Fit, Schedule, descend
from .find_layers import find_layers
from .head import HeadLoss, Maps
from .losses import relative_error
from .pieces import Pieces, can_be_divided
from .plain_weights import PlainWeights, chosen_in, chosen_outside
from .saved_parts import SavedParts
from .streams import Streams, stream_of
from .tensor_store import Stored, TensorStore

RATE = 0.05
HEAD_RATE = 0.03
MOST_STEPS = 300
HEAD_STEPS = 100
VECTOR_STEPS = 40  # of a head that has no matrix: the vector before a decoder's tied table
VECTOR_TOKENS = 16 << 10  # enough for such a head
IN_MEMORY = 4 << 30  # bytes of streams; more lie in files
NOT_BETTER = "no better on held-out texts"
NO_WEIGHT = "no weight of its own shrinks"
NO_TIME = "no time left"
WITH_HEAD = "scales scores: refined with the head"
NOT_CUT = "cannot be cut out of the forward"


@dataclass(frozen=True)
class Refinement:
    """One refinement.

    Attributes:
        parts: layers in the order of the forward, then the head.
        seconds: wall time.
    """

    parts: tuple[RefinedPart, ...]
    seconds: float


def refine(
    teacher: nn.Module,
    student: nn.Module,
    trace: Trace,
    plan: Plan,
    batches: Iterable[Batch],
    *,
    maps: Maps,
    steps: int | Literal["auto"],
    precision: Precision,
    batch_size: int = 64,
    seconds: float | None = None,
    folder: Path | None = None,
    in_memory: int = IN_MEMORY,
) -> Refinement:
    """Train each layer of a calibrated student by itself to return what the teacher's layer returns, then the head.

    A layer is called with what the refined layers before it make. It trains by Adam as a plain layer, and the change of
    each of its weights is written back into the weight's maps. Where that does not make the error on held-out texts
    smaller, the layer stays as it was. Tables, weights that are shared, and weights that do not shrink stay. A layer
    that ends with the vector before a tied table's scores trains with the head alone: that vector has the scale that is
    right for the scores, which is not that of the teacher's stream.

    Args:
        teacher: is not changed.
        student: an installed student at its start.
        trace: of the teacher.
        plan: sizes of the student.
        batches: keyword arguments of forwards.
        maps: gives the map `(k, n)` from teacher to student of an axis by its tree.
        steps: optimizer steps of a layer, at most; "auto" is 40 and one more for every two texts, at most 300. With 0
            only what stands behind the layers is trained.
        precision: of the forwards.
        batch_size: texts in a step, about.
        seconds: time that all may take; each layer gets an equal share of what is left. None for no limit.
        folder: finished layers are saved here, and a later call with the same start goes on behind them.
        in_memory: bytes of streams that may be in memory; more lie in files of a temporary folder.

    Raises:
        DataError: fewer than two texts, or the forward of a model raised on a batch.
        OutputError: `folder` holds the refinement of another start, or cannot be written.
    """
    began = time.monotonic()
    deadline = None if seconds is None else began + seconds
    batches = list(batches)
    pieces = Pieces.of(batches)
    count = min(MOST_STEPS, 40 + pieces.texts // 2) if steps == "auto" else steps
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        precision.full(),
        quiet_forward(teacher),
        quiet_forward(student),
        FoldCache(student).keeping(FoldPolicy.for_calibration()) as cache,
        TensorStore(in_memory) as store,
    ):
        layers = find_layers(student, trace, plan, pieces.all[0], precision)
        few = first_tokens(batches, VECTOR_TOKENS)
        if not count and can_be_divided(few) and _is_of_vectors(chosen_outside(student, plan, layers), plan):
            pieces = Pieces.of(few)
        saved = SavedParts.of(folder, student, pieces, count, batch_size) if folder is not None else None
        refiner = _Refiner(
            Streams(teacher, layers, pieces.all, store, precision),
            Streams(student, layers, pieces.all, store, precision),
            trace,
            plan,
            pieces,
            maps,
            layers,
            cache,
            store,
            saved,
            batch_size,
        )
        parts = []
        if not count:
            refiner.skip_layers()
        for at, layer in enumerate(layers if count else ()):
            parts.append(refiner.layer(layer, count, _share(deadline, len(layers) - at + 1)))
        # The stream behind the last layer is not all that counts: where a tied table reads it, the scale that is right
        # for the scores differs from the teacher's. So the last layer trains once more with the head.
        parts.append(refiner.head(layers[:-1] if count else layers, count, deadline))
    return Refinement(tuple(parts), time.monotonic() - began)


def _share(deadline: float | None, parts: int) -> float | None:
    """Return the deadline of the next of `parts` parts that share the time that is left."""
    now = time.monotonic()
    return None if deadline is None else now + (deadline - now) / parts


def _is_of_vectors(names: Iterable[str], plan: Plan) -> bool:
    return all(len(plan.axes[name]) == 1 for name in names)


@dataclass
class _Refiner:
    """Refines one part of a student after the other."""

    teacher: Streams
    student: Streams
    trace: Trace
    plan: Plan
    pieces: Pieces
    maps: Maps
    layers: Sequence[str]
    cache: FoldCache
    store: TensorStore
    saved: SavedParts | None
    batch_size: int

    def layer(self, name: str, steps: int, deadline: float | None) -> RefinedPart:
        """Refine a layer, and lead both streams through it."""
        wanted = self._wanted(name)
        inputs = self.student.inputs(name)
        chosen = {} if self._scales_scores(name) else chosen_in(self.student.model, self.plan, name)
        weights = PlainWeights(self.student.model, chosen, self.cache)
        # Of prepared batches, without labels: those of a masked language model say what counts in its scores, and its
        # layers have to make something of every token.
        paddings = [Padding(prepared(self.student.model, piece)) for piece in self.pieces.all]

        def loss(at: int) -> Tensor:
            made = stream_of(self.student.call(name, inputs[at]))
            return relative_error(made, wanted[at].get(made.device), paddings[at])

        schedule = Schedule(steps, RATE, self.pieces.in_a_step(self.batch_size), deadline)
        part = self._refined(name, weights, loss, schedule)
        self.student.follow(name, inputs)
        if name == self.layers[-1]:
            self.student.open(name, inputs)
        return part

    def skip_layers(self) -> None:
        """Lead both streams through all layers, which stay as they are."""
        for streams in (self.teacher, self.student):
            streams.follow_all()

    def head(self, without: Sequence[str], steps: int, deadline: float | None) -> RefinedPart:
        """Refine everything that is in none of the layers `without`, and that changes outputs behind the last one.

        For `steps`, or as many more as a head needs by itself.
        """
        if not self.student.can_be_cut:
            return RefinedPart(HEAD, nan, nan, 0, 0.0, 0.0, NOT_CUT)
        chosen = chosen_outside(self.student.model, self.plan, without)
        loss = HeadLoss(self.teacher, self.student, self.trace, self.maps, self.pieces)
        weights = PlainWeights(self.student.model, chosen, self.cache)
        with weights.used():
            reached = loss.reached(weights.leaves)
        if not reached:
            return RefinedPart(HEAD, nan, nan, 0, 0.0, 0.0, NO_WEIGHT)
        weights.keep_only(reached)
        least = HEAD_STEPS if any(leaf.ndim > 1 for leaf in weights.tensors) else VECTOR_STEPS
        return self._refined(HEAD, weights, loss, Schedule(max(steps, least), HEAD_RATE, 1, deadline))

    def _scales_scores(self, layer: str) -> bool:
        """Return whether a vector of the layer is the last before the scores of a table that is also looked up."""
        tied = [each for each in self.plan.weight_inputs if each.weight in self.plan.looked_up]
        shrunk = [each for each in tied if self.plan.size(self.plan.dim_of(each)) < self.plan.dim_of(each).size]
        vectors = [scaling_vector(self.plan, each) for each in shrunk]
        return any(vector is not None and vector.startswith(f"{layer}.") for vector in vectors)

    def _refined(
        self, name: str, weights: PlainWeights, loss: Callable[[int], Tensor], schedule: Schedule
    ) -> RefinedPart:
        """Train and write back the weights of a part, or leave them."""
        began = time.monotonic()
        if not weights.leaves:
            return RefinedPart(name, nan, nan, 0, 0.0, 0.0, WITH_HEAD if self._scales_scores(name) else NO_WEIGHT)
        if self.saved is not None and name in self.saved:
            weights.load(self.saved.state(name))
            return self.saved.part(name)
        fit = Fit(weights.tensors, loss, self.pieces, weights.project_)
        with weights.used():
            found = descend(fit, schedule, f"Refining {name}")
        before, lost, note = weights.state(), 0.0, ""
        after = found.after
        if found.after < found.before:
            lost = weights.write()
            after = fit.held_out_error()
        if not after < found.before:
            weights.load(before)
            after, lost, note = found.before, 0.0, NO_TIME if not found.steps else NOT_BETTER
        part = RefinedPart(name, found.before, after, found.steps, lost, time.monotonic() - began, note)
        if self.saved is not None and found.steps:
            self.saved.save(part, weights.state())
        return part

    def _wanted(self, layer: str) -> list[Stored]:
        """Lead the teacher's stream through a layer, and return it in the student's coordinates."""
        map_ = self.maps(self.trace.module_outputs[layer][-1])
        made = self.teacher.follow(layer, self.teacher.inputs(layer))
        device = self.teacher.device
        return [self.store.put(_mapped(stream_of(each.get(device)), map_)) for each in made]


def _mapped(stream: Tensor, map_: Tensor) -> Tensor:
    full = torch.promote_types(stream.dtype, torch.float32)
    return stream.to(full) @ map_.to(stream.device, full).T
