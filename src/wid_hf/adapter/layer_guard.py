"""Refuses a student or teacher whose layers were replaced after the student was made.

Takes two models when the student is made; checks them at each training forward and at the merge.
"""

from __future__ import annotations

from collections.abc import Iterable

from peft import PeftModel
from torch import nn

from ..errors import WidError

OTHER_LAYERS = (
    "{}: the layers of a wid model are computed from its teacher's. Change the teacher before get_wid_model "
    "(teacher.resize_token_embeddings(...), teacher.classifier = ...), or the student after merge_and_unload()."
)
Holders = tuple[tuple[str, nn.Module, int | None], ...]  # path, module, rows if it is a table


class LayerGuard:
    """Remembers which module holds each weight of two models, and refuses any other module in its place.

    Another layer would not be computed from the teacher's weights, so it would not be merged.

    Args:
        student: the model that trains.
        teacher: the model that its weights are folded from.
        weights: names of weights that both have.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, weights: Iterable[str]) -> None:
        paths = sorted({name.rpartition(".")[0] for name in weights})
        self._student, self._teacher = student, teacher
        self._of_student, self._of_teacher = _holders(student, paths), _holders(teacher, paths)

    def check(self, wrapper: PeftModel | None) -> None:
        """Refuse models in which a layer is not the one that was there at the start.

        Args:
            wrapper: the `PeftModel` around the student, if it is known; modules set on it would do nothing.

        Raises:
            WidError: names the first replaced layer, and says when it may be replaced.
        """
        if path := _replaced(self._student, self._of_student):
            raise WidError(OTHER_LAYERS.format(f"`{path}` of the wid model was replaced or resized"))
        if path := _replaced(self._teacher, self._of_teacher):
            raise WidError(
                f"`{path}` of the teacher was replaced or resized after get_wid_model, and the student cannot follow. "
                "Make a wid model of the teacher as it is now, or put the layer back."
            )
        for name in wrapper._modules if wrapper is not None else ():
            if name != "base_model" and hasattr(self._student, name):
                raise WidError(OTHER_LAYERS.format(f"`{name}` was set on the wid model, where nothing uses it"))


def _holders(model: nn.Module, paths: Iterable[str]) -> Holders:
    found = [(path, model.get_submodule(path)) for path in paths]
    return tuple((path, module, getattr(module, "num_embeddings", None)) for path, module in found)


def _replaced(model: nn.Module, holders: Holders) -> str | None:
    """Return the path of the first module that was replaced, or whose number of rows changed."""
    for path, module, rows in holders:
        found: nn.Module | None = model
        # Not by get_submodule, which takes milliseconds: this runs at every training forward.
        for name in filter(None, path.split(".")):
            found = found._modules.get(name) if found is not None else None
        if found is not module or (rows is not None and module.num_embeddings != rows):
            return path
    return None
