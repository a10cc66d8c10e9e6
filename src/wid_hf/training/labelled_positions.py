"""Language-model heads that run on labelled positions only, so that no unused logits are computed.

Takes a stock model with a language-model head and a batch with labels; gives a context in which the model's own
forward has the same loss as without, from fewer logits. Called by `WidTrainer` and the evaluation.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..arithmetic import full_float32
from ..coupling.trace import quiet_forward

NO_LABEL = -100  # transformers' mark for positions that are not predicted
LOGITS_AT_ONCE = 2**25  # 128 MiB in float32

_log = logging.getLogger(__name__)


def shifts_labels(model: PreTrainedModel) -> bool:
    """Return whether logits at a position predict the label of the next one, by `Trainer`'s label smoothing rule."""
    named = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()  # GPT-2 has no loss_type
    causal = named or str(getattr(model, "loss_type", "")).startswith("ForCausalLM")
    return causal and not model.config.is_encoder_decoder


class LabelledPositions:
    """Lets the head of a model run on labelled positions only.

    The model's forward is unchanged. While it runs, hooks give its head the hidden states `(1, m, hidden)` of the `m`
    positions that have a label instead of all `(b, s, hidden)`, with their labels `(1, m)`. If this makes too many
    logits, or those of more than half of all positions, the head processes the positions in pieces, and the gradients
    of each piece are computed before the next one's logits. Both ways are tried on a part of the first batch that
    needs them; if the loss is not that of the stock forward, or the trial fails, a line in the log says so and the
    stock forward runs from then on.

    Args:
        model: a stock model, or a `PeftModel` around it.
        logits_at_once: with more logits than these the positions are processed in pieces.
        shifts: whether logits predict the label of the next position; if None, as the model's class does.
    """

    def __init__(self, model: nn.Module, logits_at_once: int = LOGITS_AT_ONCE, *, shifts: bool | None = None) -> None:
        self.model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._vocabulary = None if _compiled(model, self.model) else _vocabulary(self.model)
        self._rows = max(1, logits_at_once // self._vocabulary) if self._vocabulary else None
        self._shifts = (
            isinstance(self.model, PreTrainedModel) and shifts_labels(self.model) if shifts is None else shifts
        )
        self._divides = False  # whether the model divides its loss by num_items_in_batch
        self._proved: dict[bool, bool] = {}  # by whether positions are processed in pieces

    @contextmanager
    def only(self, inputs: Mapping[str, Any], *, together: bool = False) -> Iterator[bool]:
        """Let the forward on `inputs` inside run the head on their labelled positions.

        Its loss is that of the stock forward, and 0 if no position has a label. Its logits are `(1, m, vocabulary)`,
        row by row (and one more if labels are shifted); if positions are processed in pieces, those of one position.

        Args:
            inputs: keyword arguments of the forward, with labels `(b, s)`; the forward itself may be called without.
            together: never process the positions in pieces.

        Yields:
            Whether it does so; False if the stock forward runs.
        """
        if self._rows is None or not _label_per_token(inputs):
            yield False
            return
        picked = _Picked(inputs["labels"], self._shifts)
        most = max(1, min(self._rows, inputs["labels"].numel() // 2))
        rows = most if len(picked.targets) > most and not together else None
        if rows is not None and not self._holds(inputs, in_pieces=True):
            rows = None
        if rows is None and not self._holds(inputs, in_pieces=False):
            yield False
            return
        with self._hooked(picked, rows):
            yield True

    @contextmanager
    def _hooked(self, picked: _Picked, rows: int | None) -> Iterator[None]:
        """Run the head on `picked`, `rows` at a time, or all at once if None."""
        items: Tensor | int | None = None
        total: Tensor | None = None

        def give_labels(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            nonlocal items
            items = kwargs.get("num_items_in_batch")
            if kwargs.get("labels") is not None:
                kwargs = {**kwargs, "labels": picked.labels(picked.targets[: rows and 1])}
            if picked.empty:  # num_items_in_batch may be 0
                kwargs = {name: value for name, value in kwargs.items() if name != "num_items_in_batch"}
            return args, kwargs

        def give_states(_: nn.Module, __: Any, output: Any) -> Any:
            nonlocal total
            states = output[0].flatten(0, 1)[picked.places]
            if rows is not None:
                total = self._in_pieces(output, states, picked, rows)
                states = states[:1]
            return _with_first(output, picked.states(states))

        def give_loss(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            if kwargs.get("labels") is None:
                return output
            if total is not None:
                return _with_first(
                    output, total / (items if self._divides and items is not None else len(picked.targets))
                )
            return _with_first(output, output[0] * 0) if picked.empty else output

        hooks = [
            self.model.register_forward_pre_hook(give_labels, with_kwargs=True),
            self.model.base_model.register_forward_hook(give_states),
            self.model.register_forward_hook(give_loss, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _in_pieces(self, output: Any, states: Tensor, picked: _Picked, rows: int) -> Tensor:
        """Return the loss summed over all positions, never with the logits of more than `rows`.

        Gradients are computed piece by piece as well, since the backward pass needs the logits. Weights are folded
        once, and the gradients of a piece end at the folds.
        """
        head, body = _head_alone(self.model)
        recording = torch.is_grad_enabled()
        with parametrize.cached():
            read = [weight for weight in _weights(self.model, outside=self.model.base_model) if weight.requires_grad]
            read = read if recording else []
            of_weights: list[Tensor | None] = [None] * len(read)
            of_states, total = [], states.new_zeros((), dtype=torch.float32)
            for piece, targets in zip(states.split(rows), picked.targets.split(rows), strict=True):
                given = piece.detach().requires_grad_(recording)
                body.output = _only_first(output, picked.states(given))
                loss = head.forward(labels=picked.labels(targets))[0] * len(targets)
                total += loss.detach()
                if recording:
                    of_piece, *found = torch.autograd.grad(loss, [given, *read], allow_unused=True)
                    of_states.append(of_piece)
                    of_weights = [_add(a, b) for a, b in zip(of_weights, found, strict=True)]
        if not recording:
            return total
        return _Summed.apply(total, [torch.cat(of_states), *of_weights], states, *read)

    def _holds(self, inputs: Mapping[str, Any], *, in_pieces: bool) -> bool:
        """Return whether the loss is the stock forward's; tried once, on a part of the first batch."""
        if in_pieces not in self._proved:
            part = self._part(inputs)
            picked = _Picked(part["labels"], self._shifts)
            if picked.empty or len(picked.targets) < 1 + in_pieces:
                return False  # too short for a trial
            why = self._differs(part, picked, in_pieces)
            self._proved[in_pieces] = why is None
            if why is not None:
                way = "labelled positions in pieces" if in_pieces else "labelled positions only"
                _log.warning("%s does not run its head on %s: %s", type(self.model).__name__, way, why)
        return self._proved[in_pieces]

    def _differs(self, part: Mapping[str, Any], picked: _Picked, in_pieces: bool) -> str | None:
        """Return why the loss of `part` is not the stock forward's, or None if it is."""
        model, count = self.model, len(picked.targets)
        rows = -(-count // 2) if in_pieces else None
        calls = [dict(part)]
        if any(each.kind is each.VAR_KEYWORD for each in inspect.signature(model.forward).parameters.values()):
            calls.append({**part, "num_items_in_batch": picked.targets.new_tensor(3 * count)})
        try:
            with quiet_forward(model), full_float32(), torch.autocast(picked.targets.device.type, enabled=False):
                stock = [float(model(**call)[0]) for call in calls]
                self._divides = not _same(stock[0], stock[-1], model.dtype)
                with self._hooked(picked, rows):
                    found = [float(model(**call)[0]) for call in calls]
        except Exception as error:  # an unknown model may raise anything
            return f"{type(error).__name__}: {error}"
        if all(_same(a, b, model.dtype) for a, b in zip(found, stock, strict=True)):
            return None
        return f"its loss is {found}, that of the stock forward {stock}"

    def _part(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return half of the positions of one row, with labels for two of three positions.

        This keeps the logits of the trial few. The row is the one with the most attended positions.
        """
        size, length = inputs["labels"].shape
        mask = inputs.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.shape == (size, length) else torch.ones(size, length)
        row = int(mask.sum(1).argmax())
        kept = length // 2 if length >= 6 else length
        start = 0 if mask[row, 0] else length - kept

        def cut(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != size:
                return value
            per_position = value.ndim > 1 and value.shape[1] == length
            return value[row : row + 1, start : start + kept] if per_position else value[row : row + 1]

        places = torch.arange(kept, device=inputs["labels"].device)
        labels = torch.where(places % 3 == 0, NO_LABEL, places.remainder(self._vocabulary or 1))[None]
        return {name: cut(value) for name, value in inputs.items()} | {"labels": labels}


class _Picked:
    """The labelled positions of a batch, row by row.

    Attributes:
        places: `(m,)` which of the `b * s` positions predict a label.
        targets: `(m,)` the labels.
        empty: no position has a label; then the first one is used with an arbitrary label.
        shifts: the model predicts each label from the position before.
    """

    def __init__(self, labels: Tensor, shifts: bool) -> None:
        labels = (functional.pad(labels[:, 1:], (0, 1), value=NO_LABEL) if shifts else labels).flatten()
        self.places = labels.ne(NO_LABEL).nonzero()[:, 0]
        self.empty = not len(self.places)
        if self.empty:
            self.places = self.places.new_zeros(1)
        self.targets = labels[self.places].clamp(min=0) if self.empty else labels[self.places]
        self.shifts = shifts

    def states(self, rows: Tensor) -> Tensor:
        """Return hidden states `(r, n)` of labelled positions as one row of a batch, to be used with `labels`."""
        return torch.cat([rows, rows[:1]])[None] if self.shifts else rows[None]

    def labels(self, targets: Tensor) -> Tensor:
        """Return labels `(r,)` as one row of a batch; if the model shifts labels, after a first one that it drops."""
        return functional.pad(targets, (1, 0), value=NO_LABEL)[None] if self.shifts else targets[None]


class _Given(nn.Module):
    """Replaces a model's body and returns a given output."""

    output: Any

    def forward(self, *_: Any, **__: Any) -> Any:
        """Return `output`."""
        return self.output


class _Summed(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: Sequence[Tensor | None], *_: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        return None, None, *(None if gradient is None else gradient * factor for gradient in ctx.saved_tensors)


def _head_alone(model: nn.Module) -> tuple[nn.Module, _Given]:
    """Return a copy of `model` that shares all its modules but the body, and the module that replaces the body."""
    head, body = copy(model), _Given()
    head._modules = {name: body if part is model.base_model else part for name, part in model._modules.items()}
    return head, body


def _weights(model: nn.Module, *, outside: nn.Module) -> list[Tensor]:
    """Return every weight of `model` as its modules use it, folded, except those of `outside`."""
    made: dict[nn.Module, Any] = {
        module: module.parametrizations for module in model.modules() if is_parametrized(module)
    }
    left_out = {*outside.modules(), *(part for each in made.values() for part in each.modules())}
    found: dict[int, Tensor] = {}
    for module in model.modules():
        if module not in left_out:
            names = [name for name, _ in module.named_parameters(recurse=False)]
            weights = [getattr(module, name) for name in (*names, *made.get(module, ()))]
            found |= {id(weight): weight for weight in weights}
    return list(found.values())


def _vocabulary(model: nn.Module) -> int | None:
    """Return how many logits a position has, or None for a model without a body and a language-model head."""
    if not isinstance(model, PreTrainedModel) or model.base_model is model or model.get_output_embeddings() is None:
        return None
    return getattr(model.config.get_text_config(), "vocab_size", None)


def _compiled(*models: nn.Module) -> bool:
    """Return whether the forward of a whole model is compiled; it then keeps the hooks of its first call."""
    return any(getattr(model, "_compiled_call_impl", None) is not None for model in models)


def _label_per_token(inputs: Mapping[str, Any]) -> bool:
    labels, tokens = inputs.get("labels"), inputs.get("input_ids", inputs.get("inputs_embeds"))
    if not isinstance(labels, Tensor) or not isinstance(tokens, Tensor) or "shift_labels" in inputs:
        return False
    return labels.ndim == 2 and labels.shape == tokens.shape[:2]


def _with_first(output: Any, tensor: Tensor) -> Any:
    """Return a module's output with another first tensor."""
    if isinstance(output, dict):
        return type(output)(**{**output, next(iter(output)): tensor})
    return (tensor, *output[1:])


def _only_first(output: Any, tensor: Tensor) -> Any:
    """Return the same kind of output with only `tensor`; losses from other outputs of the body are then missed."""
    return type(output)(**{next(iter(output)): tensor}) if isinstance(output, dict) else (tensor,)


def _add(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    if total is None or gradient is None:
        return total if gradient is None else gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
    return total.add_(gradient)


def _same(loss: float, stock: float, dtype: torch.dtype) -> bool:
    """Return whether two losses differ only by rounding: of the logits, if the losses are below 1."""
    tolerance = max(1e-6, torch.finfo(dtype).eps)
    return abs(loss - stock) <= tolerance * max(1.0, abs(stock))
