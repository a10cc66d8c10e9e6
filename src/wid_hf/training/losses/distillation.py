"""Optional losses from the frozen teacher: its logits, its hidden states through the lift, its value relations.

Takes a wid model whose teacher's weights do not train, and batches; gives a term for the training loss. The teacher
is the very tensors that the student is folded from, so there is no second copy. Called by `WidTrainer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from math import gcd, sqrt
from typing import Any, NoReturn

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ...calibration.lockstep import prepared
from ...coupling import Dim
from ...coupling.plan import Key, key
from ...coupling.trace import quiet_forward
from ...coupling.weight_inputs import WeightInput
from ...errors import DataError, TeacherError, TrainingError
from ...layers import Compactor, IndexSelect, folded_weights
from ..labelled_positions import NO_LABEL, LabelledPositions, shifts_labels
from .heads import Rows, value_rows

LOSSES = ("logits", "hidden", "relations")

Place = tuple[str, int]  # a weight and one of its axes
Call = tuple[str, int]  # a module, and how often it was called before in the same forward


@dataclass
class Seen:
    """What one forward showed.

    Attributes:
        read: the tensors that modules read, in order, by call.
        returned: the tensors that modules returned.
        ran: whether the model's own call was seen, without which nothing can be.
        recorded: False where some of these were made without gradients.
        output: what the model returned.
        labelled: whether its logits are those of labelled positions only, as `LabelledPositions` makes them.
    """

    read: dict[Call, Tensor] = field(default_factory=dict)
    returned: dict[Call, Tensor] = field(default_factory=dict)
    ran: bool = False
    recorded: bool = True
    output: Any = None
    labelled: bool = False


class Distillation:
    """How far a student is from its teacher: means over the labels of a batch, or over its attended positions.

    Args:
        model: what `get_wid_model` returned; its teacher runs in evaluation mode, without gradients.
        losses: some of `"logits"`, `"hidden"`, `"relations"`; their sum is the term.
        temperature: of the logits.

    Attributes:
        labelled: how the teacher's head is kept to labelled positions; None where all positions of it are compared.

    Raises:
        TeacherError: the teacher has no logits, hidden states or values that could be compared.
    """

    def __init__(self, model: PeftModel, losses: Collection[str], temperature: float = 2.0) -> None:
        self._wid = model.base_model
        self.losses, self.temperature = tuple(losses), temperature
        # Hidden states are compared where the head reads them as well, at all positions.
        self.labelled = LabelledPositions(self._wid.teacher) if "hidden" not in losses else None
        # Modules that read hidden states, and the map by which those of student and teacher are compared: a `Compactor`
        # lifts the student's, a `IndexSelect` selects among the teacher's; None where they are equally wide.
        self._readers: dict[Call, Place | None] = {}
        self._values: list[Rows] = []  # of each layer, in order
        self._probe()

    def is_of(self, model: PeftModel, losses: Collection[str], temperature: float) -> bool:
        """Return whether it was made from these."""
        return (model.base_model, tuple(losses), temperature) == (self._wid, self.losses, self.temperature)

    @property
    def _of_states(self) -> bool:
        return "hidden" in self.losses or "relations" in self.losses

    def watching(self) -> AbstractContextManager[Seen]:
        """Note what the student reads and returns in the forward inside; leave no hook behind."""
        return self._watched(self._wid.model)

    @torch.no_grad()
    def target(self, inputs: Mapping[str, Any]) -> Seen:
        """Run the teacher, in evaluation mode, its language-model head on labelled positions only where that does."""
        teacher = self._wid.teacher.eval()
        picked = nullcontext(False) if self.labelled is None else self.labelled.only(inputs, together=True)
        with picked as labelled, self._watched(teacher) as seen:
            seen.output = teacher(**prepared(teacher, inputs))
        seen.labelled = labelled
        return seen

    def loss(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the sum of the losses of one batch.

        What belongs to a row as a whole (hidden states, relations) counts as often as the row has labels. So every
        loss is a mean over labels, and those of micro-batches, each multiplied by its part of the labels, add up to
        that of one large batch.

        Args:
            student: what its forward showed `watching`.
            teacher: what `target` showed.
            inputs: keyword arguments of both forwards.

        Raises:
            DataError: labels that do not go with the logits one by one.
            TrainingError: the student's forward did not show what the teacher's did.
        """
        counted = counted_positions(self._wid.teacher, inputs)
        terms = []
        if "logits" in self.losses:
            refuse_scores(inputs, teacher.output.logits)
            terms.append(mean_of(counted_logits_loss(student, teacher, counted, self.temperature)))
        if self._of_states:
            refuse_detached(student)
            share = shares(counted, inputs).to(self._wid.teacher.device)
            if "hidden" in self.losses:
                terms.append((share * self._of_hidden(student, teacher, inputs)).sum())
            if "relations" in self.losses:
                terms.append((share * self._of_relations(student, teacher, inputs)).sum())
        return torch.stack(terms).sum()

    def _of_hidden(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return per row the mean over all states of what is missed of the teacher's; 0 where both ran no layer."""
        made, losses, done = folded_weights(self._wid.model), [], set()
        shown = pairs(student, student.read, teacher.read)
        for call, (mine, theirs) in shown.items():
            # Queries, keys and values read one tensor: the first of them lifts it. Others read something else as well.
            if call not in self._readers or id(theirs) in done:
                continue
            done.add(id(theirs))
            lifted, wanted = mine, theirs
            if (place := self._readers[call]) is not None:
                chooser = made[place[0]].maps[str(place[1])]
                if isinstance(chooser, Compactor):
                    lifted = mine.to(chooser.matrix.dtype) @ chooser.matrix
                elif isinstance(chooser, IndexSelect):
                    wanted = theirs[..., chooser.indices]
            losses.append(missed_energy(lifted, wanted, attended_positions(theirs, inputs)))
        return torch.stack(losses).mean(0) if losses else self._nothing(inputs)

    def _of_relations(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return per row the loss of the last layer that both ran: training may skip layers (layerdrop)."""
        shown = {name: both for (name, _), both in pairs(student, student.returned, teacher.returned).items()}
        ran = [values for values in self._values if values[0] in shown]
        if not ran:
            return self._nothing(inputs)
        name, *stretches = ran[-1]
        mine, theirs = shown[name]
        # A student that is still wide has the teacher's stretch.
        of_student, of_teacher = (
            next(each for each in stretches if each.width == tensor.shape[-1]) for tensor in (mine, theirs)
        )
        return relation_loss(
            mine[..., of_student.start : of_student.stop],
            theirs[..., of_teacher.start : of_teacher.stop],
            attended_positions(theirs, inputs),
            gcd(of_student.heads, of_teacher.heads),
        )

    def _nothing(self, inputs: Mapping[str, Any]) -> Tensor:
        return torch.zeros(rows_of(inputs), device=self._wid.teacher.device)

    def _watched(self, model: nn.Module) -> AbstractContextManager[Seen]:
        return watch(model, {name for name, _ in self._readers}, {name for name, *_ in self._values})

    # What is compared, found once from the plan and one tiny forward of the teacher.

    def _probe(self) -> None:
        teacher = self._wid.teacher
        inputs = prepared(teacher, self._wid.student_plan.trace.examples[0].inputs)
        states = {"output_hidden_states": True} if "hidden" in self.losses else {}
        modules = [path for path, _ in teacher.named_modules() if path]
        with quiet_forward(teacher), watch(teacher, self._candidates(), modules) as seen:
            seen.output = teacher(**inputs, **states)
        if self._of_states and teacher.config.is_encoder_decoder:
            self._refuse(
                "has two sequences, of encoder and decoder, where these losses need one", "hidden", "relations"
            )
        if "logits" in self.losses:
            logits = getattr(seen.output, "logits", None)
            if logits is None or logits.shape[-1] < 2:
                self._refuse("returns no logits of two or more classes", "logits")
        rows = rows_of(inputs)
        if "hidden" in self.losses:
            # Call by call: DeBERTa-v2's keys read hidden states, and then the table of relative positions.
            fitting = [call for call, tensor in seen.read.items() if tensor.ndim == 3 and len(tensor) == rows]
            places = dict(self._read_from(self._streams(seen)))
            self._readers = {call: places[call[0]] for call in fitting if call[0] in places}
            if not self._readers:
                self._refuse("has no weight that reads hidden states of (batch, positions, width)", "hidden")
        if "relations" in self.losses:
            returned = {name for (name, _), each in seen.returned.items() if each.ndim == 3 and len(each) == rows}
            self._values = [values for values in value_rows(self._wid.plan) if values[0] in returned]
            if not self._values:
                self._refuse("has no attention whose values are returned as (batch, positions, width)", "relations")

    def _refuse(self, why: str, *losses: str) -> NoReturn:
        asked, others = ([f'"{n}"' for n in LOSSES if (n in losses) is inside] for inside in (True, False))
        raise TeacherError(
            f"{type(self._wid.teacher).__name__} {why}, so distillation cannot compare {' and '.join(asked)}. "
            f"Leave that out; distillation also takes {' and '.join(others)}."
        )

    def _candidates(self) -> dict[str, WeightInput]:
        """Return every module that holds a weight which is read, under all its names."""
        if "hidden" not in self.losses:
            return {}
        read = {read.weight: read for read in self._wid.plan.weight_inputs if not read.routed}
        names = self._wid.student_plan.trace.aliases
        return {name.rpartition(".")[0]: read[first] for name, first in names.items() if first in read}

    def _streams(self, seen: Seen) -> set[Key]:
        """Return the dimensions of the hidden states that the teacher returns."""
        outputs = self._wid.student_plan.trace.module_outputs
        fields = [value for name, value in seen.output.items() if name.endswith("hidden_states")]
        states = {id(state) for value in fields if isinstance(value, (tuple, list)) for state in value}
        if not states:
            self._refuse("returns no hidden states (output_hidden_states=True)", "hidden")
        return {
            key(outputs[path][-1])
            for (path, _), tensor in seen.returned.items()
            if id(tensor) in states and path in outputs
        }

    def _read_from(self, streams: set[Key]) -> Iterator[tuple[str, Place | None]]:
        """Yield each module that reads one of `streams`, with the map that compares what it reads."""
        plan = self._wid.plan
        fitted = {plan.weight_inputs[at].weight for at in plan.fitted}
        for path, read in self._candidates().items():
            dim = plan.axes[read.weight][read.axis]
            if key(dim) not in streams:
                continue
            if plan.size(dim) == dim.size:
                yield path, None
            elif read.weight in fitted:
                yield path, (read.weight, read.axis)
            elif (place := self._choice(dim)) is not None:  # a tied decoder's columns write as well as read
                yield path, place

    def _choice(self, dim: Dim) -> Place | None:
        """Return a weight that only follows the index set of `dim`, as normalisation weights do, and its axis."""
        for name, compaction in folded_weights(self._wid.model).items():
            for axis, chooser in compaction.maps.items():
                if isinstance(chooser, IndexSelect) and key(self._wid.plan.axes[name][int(axis)]) == key(dim):
                    return name, int(axis)
        return None


def counted_positions(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor | None:
    """Return which positions `(b, s)`, or rows `(b,)`, have labels; attended ones where there are no labels.

    None where the batch has neither: then all count.
    """
    labels, mask = inputs.get("labels"), inputs.get("attention_mask")
    if not isinstance(labels, Tensor):
        return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
    if labels.is_floating_point():  # numbers to be met, of which none stands for "no label"
        return torch.ones_like(labels, dtype=torch.bool)
    counted = labels.ne(NO_LABEL)
    return functional.pad(counted[:, 1:], (0, 1)) if shifts_labels(model) and counted.ndim > 1 else counted


def shares(counted: Tensor | None, inputs: Mapping[str, Any]) -> Tensor:
    """Return the part `(b,)` that each row has of what counts in a batch."""
    rows = rows_of(inputs)
    weights = torch.ones(rows) if counted is None else counted.reshape(rows, -1).sum(1)
    return weights / weights.sum().clamp(min=1)


def mean_of(losses: Tensor) -> Tensor:
    """Return the mean of `losses (n,)`; 0 where there are none."""
    return losses.sum() / max(len(losses), 1)


def refuse_scores(inputs: Mapping[str, Any], logits: Tensor) -> None:
    """Refuse to compare logits as those of classes that exclude each other where labels are scores for each class.

    Raises:
        DataError: multi-label classification, or a regression to several numbers.
    """
    labels = inputs.get("labels")
    if isinstance(labels, Tensor) and labels.is_floating_point() and labels.shape == logits.shape:
        raise DataError(
            'distillation "logits" compares probabilities of classes that exclude each other, but here each of '
            f"{logits.shape[-1]} outputs has a label of its own (multi-label classification, or regression). Leave "
            '"logits" out for this task.'
        )


def counted_logits_loss(student: Seen, teacher: Seen, counted: Tensor | None, temperature: float) -> Tensor:
    """Return `logits_loss` of the positions or rows that count, `(n,)`.

    Raises:
        DataError: labels that do not go with the logits one by one.
    """
    mine, theirs = (_counted_logits(seen, counted) for seen in (student, teacher))
    return logits_loss(mine, theirs, temperature)


def _counted_logits(seen: Seen, counted: Tensor | None) -> Tensor:
    """Return the logits `(n, classes)` of the positions or rows that count."""
    logits: Tensor = seen.output.logits
    if counted is None:
        return logits.flatten(0, -2)
    if seen.labelled:  # in the order of the positions, with one more where labels are shifted or none is there
        return logits.flatten(0, -2)[: int(counted.sum())]
    if counted.shape != logits.shape[:-1]:
        raise DataError(
            f'distillation "logits" needs one label for each row of classes: logits {tuple(logits.shape)} take labels '
            f"{tuple(logits.shape[:-1])}, but labels or mask are {tuple(counted.shape)}. With several labels per row, "
            'leave "logits" out.'
        )
    return logits[counted]


def logits_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `T^2 KL(softmax(t / T) || softmax(s / T))` per row `(n,)` of logits `(n, classes)`.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.
    """
    mine, theirs = (functional.log_softmax(full(logits) / temperature, -1) for logits in (student, teacher))
    return temperature**2 * _divergence(theirs, mine)


def missed_energy(student: Tensor, teacher: Tensor, attended: Tensor) -> Tensor:
    """Return per row `(b,)` the share `|s - t|^2 / |t|^2` over attended positions, of states `(b, s, n)`."""
    mask = attended.unsqueeze(-1)
    student, teacher = full(student), full(teacher)
    energy = (teacher.square() * mask).sum((1, 2)).clamp(min=torch.finfo(teacher.dtype).tiny)
    return ((student - teacher).square() * mask).sum((1, 2)) / energy


def relation_loss(student: Tensor, teacher: Tensor, attended: Tensor, heads: int) -> Tensor:
    """Return per row `(b,)` the mean of `KL(VR_teacher || VR_student)` over attended positions and relation heads.

    `VR = softmax(V V^T / sqrt(d))` per relation head, over attended positions; `d` is the width that a relation head
    has in that model. Source: Wang et al., MiniLM (arXiv 2002.10957), equations 7 and 8, and MiniLMv2
    (arXiv 2012.15828), section 3.1, for heads split anew.

    Args:
        student: values `(b, s, k)`; `k` is a multiple of `heads`.
        teacher: values `(b, s, n)`; `n` is a multiple of `heads`.
        attended: `(b, s)`.
        heads: number of relation heads.
    """
    mine, theirs = (_relations(full(values), attended, heads) for values in (student, teacher))
    divergence = _divergence(theirs, mine).mean(1) * attended  # (b, s)
    return divergence.sum(1) / attended.sum(1).clamp(min=1)


def _relations(values: Tensor, attended: Tensor, heads: int) -> Tensor:
    """Return logarithms of the value relations `(b, heads, s, s)`."""
    split = values.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ split.mT / sqrt(split.shape[-1])
    return scores.masked_fill(~attended[:, None, None, :], torch.finfo(scores.dtype).min).log_softmax(-1)


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return `KL(teacher || student)` of log-probabilities over the last axis."""
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def full(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 or more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def rows_of(inputs: Mapping[str, Any]) -> int:
    """Return how many examples a batch has."""
    return len(next(value for value in inputs.values() if isinstance(value, Tensor) and value.ndim))


def attended_positions(state: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Return which positions of `state (b, s, n)` are no padding."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == state.shape[:2]:
        return mask.bool()
    return torch.ones(state.shape[:2], dtype=torch.bool, device=state.device)


def pairs(
    student: Seen, shown: Mapping[Call, Tensor], wanted: Mapping[Call, Tensor]
) -> dict[Call, tuple[Tensor, Tensor]]:
    """Return what both forwards showed, by call, in the student's order.

    A student that trains may skip layers at random (layerdrop), of which nothing is returned then.

    Args:
        student: what the student's forward showed.
        shown: of that, what is to be compared.
        wanted: the same of the teacher.

    Raises:
        TrainingError: the student's forward cannot be watched.
    """
    if not student.ran or not wanted:
        raise TrainingError(
            "The student's forward did not show the modules that distillation compares: it was compiled, or called "
            'past its hooks. Distil "logits" only.'
        )
    return {call: (mine, wanted[call]) for call, mine in shown.items() if call in wanted}


def refuse_detached(seen: Seen) -> None:
    """Refuse what a forward showed without gradients."""
    if not seen.recorded:
        raise TrainingError(
            'No gradient reaches the states that distillation compares: all but "logits" needs gradient '
            'checkpointing with {"use_reentrant": False}, or none.'
        )


@contextmanager
def watch(model: nn.Module, readers: Collection[str], returning: Collection[str]) -> Iterator[Seen]:
    """Note the first tensor that each of `readers` is given and that each of `returning` returns."""
    seen = Seen()
    read: Counter[str] = Counter()
    returned: Counter[str] = Counter()

    def note_run(module: nn.Module, args: Any) -> None:
        seen.ran = True

    def note_read(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                seen.read[name, read[name]] = args[0]
            read[name] += 1
            seen.recorded &= torch.is_grad_enabled()

        return hook

    def note_returned(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(first, Tensor):
                seen.returned[name, returned[name]] = first
            returned[name] += 1
            seen.recorded &= torch.is_grad_enabled()

        return hook

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(note_run).remove)
        for name in readers:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(note_read(name)).remove)
        for name in returning:
            stack.callback(model.get_submodule(name).register_forward_hook(note_returned(name)).remove)
        yield seen
