"""Embedding tables of which only the rows that a batch looks up are folded.

A table of 30,522 rows costs more to fold than a small encoder's whole step; a batch looks up a few hundred. Used by
`FoldCache` during a training step; forwards without gradients use whole tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .compactor import Compactor
from .folded_weight import FoldedWeight, KeptFold, places


class _Rows(KeptFold):
    """The fold of some rows of a table, in the order given.

    Args:
        rows: their numbers.
        before: what filled the slot before, and fills it afterwards.
    """

    def __init__(self, rows: Tensor, before: KeptFold | None) -> None:
        self.rows, self.before = rows, before

    def of(self, weight: FoldedWeight, original: Tensor) -> Tensor:
        return weight.fold(original[self.rows])


def lookups(student: nn.Module) -> dict[FoldedWeight, nn.Embedding]:
    """Return the tables whose rows may be folded separately, with the module that looks them up.

    Such a table is looked up by one stock `nn.Embedding` and used nowhere else (no tied decoder), and its rows do not
    shrink.
    """
    everything = list(places(student))
    users = Counter(place.weight for place in everything)
    return {
        place.weight: place.module
        for place in everything
        if isinstance(place.module, nn.Embedding)
        and _is_plain(place.module)
        and users[place.weight] == 1
        and _keeps_its_rows(place.weight)
    }


def fold_by_rows(table: FoldedWeight, module: nn.Embedding) -> Callable[[], None]:
    """Let `module` fold only the rows that it looks up, until the function that is returned is called.

    Its own forward still looks them up, in a table with one row per looked-up token, in their order. The padding token
    has another row after these, so that it gets no gradient, as in the stock module.
    """
    padding = module.padding_idx
    first = 0 if padding is None else padding + 1

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        numbers: Tensor = args[0] if args else kwargs["input"]
        is_small = numbers.numel() + first < module.num_embeddings
        if not is_small or not torch.is_grad_enabled():
            return args, kwargs
        places = torch.arange(first, first + numbers.numel(), device=numbers.device).view(numbers.shape)
        rows = numbers.flatten()
        if padding is not None:
            places = torch.where(numbers == padding, padding, places)
            rows = torch.cat([rows.new_full((first,), padding), rows])
        table.slot = _Rows(rows, table.slot)
        return (places,), {}

    def after(*_: Any) -> None:
        if isinstance(table.slot, _Rows):
            table.slot = table.slot.before

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, always_call=True),
    ]

    def stop() -> None:
        after()
        for handle in handles:
            handle.remove()

    return stop


def _keeps_its_rows(table: FoldedWeight) -> bool:
    return set(table.maps) == {"1"} and isinstance(table.maps["1"], Compactor) and table.shift is None


def _is_plain(module: nn.Embedding) -> bool:
    # Parametrizing gives the module its own class, a subclass that inherits the forward.
    stock = type(module).forward is nn.Embedding.forward
    return stock and module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
