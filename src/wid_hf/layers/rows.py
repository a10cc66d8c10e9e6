"""Embedding tables of which only the rows that a batch looks up are folded.

A table of 30,522 rows costs more to fold than a small encoder's whole step; a batch looks up a few hundred. Used by
`held` while a step is trained; outputs of everything else come from whole tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .compactors import Compactor, FoldedWeight


def lookups(student: nn.Module) -> dict[FoldedWeight, nn.Embedding]:
    """Return the tables whose rows may be folded one by one, with the module that looks them up.

    Such a table is looked up by one stock `nn.Embedding` and used nowhere else (no tied decoder), and keeps its rows.
    """
    found, users = {}, Counter[FoldedWeight]()
    for module in student.modules():
        if not parametrize.is_parametrized(module):
            continue
        lists: Any = module.parametrizations
        made = {name: steps[0] for name, steps in lists.items() if isinstance(steps[0], FoldedWeight)}
        users.update(made.values())
        if isinstance(module, nn.Embedding) and _is_plain(module) and "weight" in made:
            table = made["weight"]
            if set(table.maps) == {"1"} and isinstance(table.maps["1"], Compactor) and table.shift is None:
                found[table] = module
    return {table: module for table, module in found.items() if users[table] == 1}


def fold_by_rows(table: FoldedWeight, module: nn.Embedding) -> Callable[[], None]:
    """Let `module` fold only the rows that it looks up, until the function that is returned is called.

    Its own forward still looks them up: in a table of one row per looked-up number, in their order. The number of
    padding has a row of its own below these, so that it gets no gradient, as ever.
    """
    padding = module.padding_idx
    first = 0 if padding is None else padding + 1

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        numbers: Tensor = args[0] if args else kwargs["input"]
        if not torch.is_grad_enabled() or numbers.numel() + first >= module.num_embeddings:
            return args, kwargs
        places = torch.arange(first, first + numbers.numel(), device=numbers.device).view(numbers.shape)
        rows = numbers.flatten()
        if padding is not None:
            places = torch.where(numbers == padding, padding, places)
            rows = torch.cat([rows.new_full((first,), padding), rows])
        table.rows = rows
        return (places,), {}

    def after(*_: Any) -> None:
        table.rows = None

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, always_call=True),
    ]

    def stop() -> None:
        table.rows = None
        for handle in handles:
            handle.remove()

    return stop


def _is_plain(module: nn.Embedding) -> bool:
    # Parametrizing gives the module a class of its own, a subclass that inherits the forward.
    stock = type(module).forward is nn.Embedding.forward
    return stock and module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
