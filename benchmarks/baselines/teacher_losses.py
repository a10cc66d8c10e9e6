"""Losses from a teacher for a stock student of its own: logits, MiniLMv2's relations, TinyBERT's layers, states.

Takes a wid model, whose teacher is followed and whose plan says where attention is, and what the forwards of student
and teacher showed; gives a term for the training loss. Other than in `losses`, the student's weights are not made
from the teacher's, so nothing lifts its states but maps that are learned beside it. Called by `DistillingTrainer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from math import gcd, sqrt
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from wid_hf.calibration.batches import prepared
from wid_hf.coupling.trace import quiet_forward
from wid_hf.errors import TeacherError
from wid_hf.training.losses.counting import attended_positions, counted_positions, full, mean_of, rows_of, shares
from wid_hf.training.losses.following import following_loss
from wid_hf.training.losses.heads import Heads, Rows, query_and_key_rows, value_rows
from wid_hf.training.losses.logits import counted_logits_loss
from wid_hf.training.losses.relations import relation_loss
from wid_hf.training.losses.watching import Seen, pairs, refuse_detached, watch

RELATION_WIDTH = 8  # of a relation head in the student, at least: MiniLMv2 has 48 for 384 numbers


class TeacherLoss(nn.Module, ABC):
    """How far a stock student is from a teacher: a mean over the labels of a batch, or over its attended positions.

    Its parameters, if it has any, are learned together with the student and thrown away afterwards.

    Attributes:
        forward_arguments: keyword arguments for both forwards.
        watched: names of the modules whose outputs the loss looks at.
    """

    forward_arguments: ClassVar[Mapping[str, Any]] = {}
    watched: frozenset[str] = frozenset()

    @abstractmethod
    def forward(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the loss of one micro-batch.

        Args:
            student: what its forward showed.
            teacher: what the teacher's showed.
            inputs: keyword arguments of both forwards.
        """


class LogitsLoss(TeacherLoss):
    """Logits at positions that have labels: `T^2 KL(teacher / T, student / T)`, as in `losses`."""

    def __init__(self, wid_model: PeftModel, student: PreTrainedModel, temperature: float = 2.0) -> None:
        super().__init__()
        self.teacher, self.temperature = (wid_model.base_model.teacher,), temperature  # a tuple: it is no part of this

    def forward(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean over labels."""
        counted = counted_positions(self.teacher[0], inputs)
        return mean_of(counted_logits_loss(student, teacher, counted, self.temperature))


class _RowLoss(TeacherLoss):
    """A loss of rows as a whole, each of which counts as often as it has labels."""

    def __init__(self, wid_model: PeftModel) -> None:
        super().__init__()
        self.teacher = (wid_model.base_model.teacher,)

    def forward(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean over rows."""
        refuse_detached(student)
        losses = self.of_rows(student, teacher, inputs)
        return (shares(counted_positions(self.teacher[0], inputs), inputs).to(losses) * losses).sum()

    @abstractmethod
    def of_rows(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the loss of each row `(b,)`."""


class RelationsLoss(_RowLoss):
    """MiniLMv2: relations among queries, among keys and among values of the last layer.

    The mean of three `KL(softmax(T T^T / sqrt(d)) || softmax(S S^T / sqrt(k)))`, over as many relation heads as divide
    both widths and leave the student's at least `RELATION_WIDTH` wide. Source: Wang et al., MiniLMv2 (arXiv
    2012.15828), section 3.1.

    Raises:
        TeacherError: the plan shows no queries, keys and values of the shape `(batch, positions, width)`.
    """

    def __init__(self, wid_model: PeftModel, student: PreTrainedModel) -> None:
        super().__init__(wid_model)
        self.layers = _attention_of(wid_model)
        self.watched = frozenset(name for rows in self.layers for name, *_ in rows)

    def of_rows(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean over queries, keys and values of the last layer that both ran."""
        shown = _by_module(student, teacher)
        ran = [rows for rows in self.layers if all(shown[name] for name, *_ in rows)]
        losses = [torch.zeros(rows_of(inputs), device=self.teacher[0].device)] if not ran else []
        for name, of_teacher, of_student in ran[-1] if ran else ():
            mine, theirs = shown[name][-1]
            heads = relation_heads(of_student.stop - of_student.start, of_teacher.stop - of_teacher.start)
            parts = mine[..., of_student.start : of_student.stop], theirs[..., of_teacher.start : of_teacher.stop]
            losses.append(relation_loss(*parts, attended_positions(self.teacher[0], theirs, inputs), heads))
        return torch.stack(losses).mean(0)


class LayersLoss(_RowLoss):
    """TinyBERT: hidden states of all layers through learned maps, and attention scores.

    The mean square over attended positions of `S M - T`, with one map for embeddings and one for all layers, and of
    the differences of `q k^T / sqrt(d)`, whose heads are averaged in groups where the numbers of heads differ; each is
    the mean over layers. Source: Jiao et al., TinyBERT (arXiv 1909.10351), section 3.1; student and teacher are equally
    deep, so that layers go one to one.

    Raises:
        TeacherError: the teacher returns no hidden states of one width, or the plan shows no queries and keys.
    """

    forward_arguments: ClassVar[Mapping[str, Any]] = {"output_hidden_states": True}

    def __init__(self, wid_model: PeftModel, student: PreTrainedModel) -> None:
        super().__init__(wid_model)
        self.rows = [(queries, keys) for queries, keys, _ in _attention_of(wid_model)]
        self.watched = frozenset(name for both in self.rows for name, *_ in both)
        inputs = wid_model.base_model.student_plan.trace.examples[0].inputs
        theirs, mine = (_hidden_widths(model, inputs) for model in (self.teacher[0], student))
        if len(theirs) < 2 or len(set(theirs)) > 1 or len(set(mine)) > 1 or len(theirs) != len(mine):
            raise TeacherError(
                f"{type(student).__name__} returns hidden states of widths {theirs}, and TinyBERT's loss compares "
                "layers of one width. Take another method."
            )
        dtype = torch.promote_types(student.dtype, torch.float32)
        self.embeddings = nn.Linear(mine[0], theirs[0], bias=False, dtype=dtype)
        self.layers = nn.Linear(mine[0], theirs[0], bias=False, dtype=dtype)

    def of_rows(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean over layers of what is missed of hidden states, and that of attention scores, added up."""
        states = []
        for at, (mine, theirs) in enumerate(
            zip(student.output.hidden_states, teacher.output.hidden_states, strict=True)
        ):
            mapped = (self.layers if at else self.embeddings)(full(mine))
            attended = attended_positions(self.teacher[0], theirs, inputs).unsqueeze(-1)
            states.append(_mean_square(mapped - full(theirs), attended))
        scores = []
        shown = _by_module(student, teacher)
        for (queries, of_teacher, of_student), (keys, keys_of_teacher, keys_of_student) in self.rows:
            for (my_q, their_q), (my_k, their_k) in zip(shown[queries], shown[keys], strict=True):
                mine = attention_scores(my_q, my_k, of_student, keys_of_student)
                theirs = attention_scores(their_q, their_k, of_teacher, keys_of_teacher)
                groups = gcd(mine.shape[1], theirs.shape[1])
                attended = attended_positions(self.teacher[0], their_q, inputs)
                difference = _grouped(mine, groups) - _grouped(theirs, groups)
                scores.append(_mean_square(difference, attended[:, None, :, None] & attended[:, None, None, :]))
        of_states = torch.stack(states).mean(0)
        return of_states + torch.stack(scores).mean(0) if scores else of_states


class StatesLoss(TeacherLoss):
    """For a headless student whose outputs are some of its teacher's coordinates, or turned: `following_loss`."""

    def __init__(self, wid_model: PeftModel, student: PreTrainedModel) -> None:
        super().__init__()
        self.wid_model = (wid_model.base_model,)  # a tuple keeps it out of this module's parameters

    def forward(self, student: Seen, teacher: Seen, inputs: Mapping[str, Any]) -> Tensor:
        """Return the loss of the batch as a whole."""
        mine, theirs = student.output.last_hidden_state, teacher.output.last_hidden_state
        wid = self.wid_model[0]
        attended = attended_positions(wid.teacher, theirs, inputs)
        return following_loss(mine, wid.map_outputs(theirs), theirs, attended, cosine_weight=1.0)


LOSSES: dict[str, Callable[[PeftModel, PreTrainedModel], TeacherLoss]] = {
    "logits": LogitsLoss,
    "relations": RelationsLoss,
    "layers": LayersLoss,
    "states": StatesLoss,
}


def relation_heads(student: int, teacher: int) -> int:
    """Return the largest number that divides both widths and leaves the student's parts `RELATION_WIDTH` or more."""
    common = gcd(student, teacher)
    return max(n for n in range(1, common + 1) if common % n == 0 and (n == 1 or student // n >= RELATION_WIDTH))


def attention_scores(queries: Tensor, keys: Tensor, of_queries: Heads, of_keys: Heads) -> Tensor:
    """Return `q k^T / sqrt(d)` `(b, heads, s, s)` of what modules returned, before any position turns it.

    Args:
        queries: `(b, s, n)`.
        keys: `(b, s, m)`; where they have fewer heads, each meets several of the queries' in turn.
        of_queries: which of the n are queries.
        of_keys: which of the m are keys.
    """
    q, k = (
        full(tensor)[..., part.start : part.stop].unflatten(-1, (part.heads, -1)).transpose(1, 2)
        for tensor, part in ((queries, of_queries), (keys, of_keys))
    )
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return q @ k.mT / sqrt(q.shape[-1])


def _attention_of(wid_model: PeftModel) -> list[tuple[Rows, Rows, Rows]]:
    """Return queries, keys and values of every layer that the plan shows, in order."""
    planned, teacher = wid_model.base_model.student_plan, wid_model.base_model.teacher
    values = list(dict.fromkeys(value_rows(planned.plan)))  # shared layers read theirs several times
    found = [(*both, of) for both, of in zip(query_and_key_rows(planned.plan, planned.trace), values, strict=False)]
    names = {name for rows in found for name, *_ in rows}
    inputs = prepared(teacher, planned.trace.examples[0].inputs)
    with quiet_forward(teacher), watch(teacher, [], names) as seen:
        teacher(**inputs)
    fitting = {name for (name, _), tensor in seen.returned.items() if tensor.ndim == 3}
    if not found or len(values) != len(found) or not names <= fitting or teacher.config.is_encoder_decoder:
        raise TeacherError(
            f"{type(teacher).__name__} has no attention whose queries, keys and values are each returned as (batch, "
            "positions, width), layer by layer, so neither relations nor attention scores can be compared. Take the "
            "method logit-kd."
        )
    return found


def _hidden_widths(model: PreTrainedModel, inputs: Mapping[str, Any]) -> list[int]:
    with quiet_forward(model):
        states = getattr(model(**prepared(model, inputs), output_hidden_states=True), "hidden_states", None)
    return [state.shape[-1] for state in states or () if state.ndim == 3]


def _by_module(student: Seen, teacher: Seen) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Return what each module returned in the student and in the teacher, call by call."""
    shown: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for (name, _), both in pairs(student, student.returned, teacher.returned).items():
        shown[name].append(both)
    return shown


def _grouped(scores: Tensor, groups: int) -> Tensor:
    """Return `scores (b, heads, s, s)` with neighbouring heads averaged, `(b, groups, s, s)`."""
    return scores.unflatten(1, (groups, -1)).mean(2)


def _mean_square(difference: Tensor, counted: Tensor) -> Tensor:
    """Return per row `(b,)` the mean square of the entries that count; `counted` has size 1 where all do."""
    counted = counted.expand_as(difference)
    return (difference.square() * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)
