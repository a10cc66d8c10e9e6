"""Refuses to train or merge a student whose start needs calibration data before it was calibrated.

Takes the config and the compactors' matrices; the tuner calls it before each forward and each merge.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

from torch import Tensor

from ..config import WidConfig
from ..errors import WidError


class CalibrationGuard:
    """Closed until the start is made from data, open from then on; always open if the config needs no data.

    Args:
        config: how the start is made.
        matrices: parameters that no gradient may reach while it is closed.
        calibrated: returns whether the start was made; called while the guard is closed.
    """

    def __init__(self, config: WidConfig, matrices: Iterable[Tensor], calibrated: Callable[[], bool]) -> None:
        self._config, self._calibrated = config, calibrated
        self._is_open = not config.needs_data
        self._warned = False
        self._hooks = [] if self._is_open else [matrix.register_hook(self._refuse_gradient) for matrix in matrices]

    def open(self) -> None:
        """Let everything pass: the start was made here."""
        self._is_open = True
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def follow_loaded(self, calibrated: bool) -> None:
        """Be open or closed as the loaded adapter is."""
        self._is_open = calibrated

    def before_forward(self, trains: bool) -> None:
        """Refuse a forward that trains; warn at the first one that does not.

        Raises:
            WidError: the start was not made and the forward trains.
        """
        # A Python bool: reading a tensor would split a compiled forward in two.
        self._is_open = self._is_open or self._calibrated()
        if self._is_open:
            return
        if trains:
            raise WidError(f"{self._advice()} Nothing was trained.")
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self._advice()} Until then it only selects indices.", stacklevel=3)

    def before_merge(self, force: bool) -> None:
        """Refuse a merge before calibration, or warn with `force`.

        Raises:
            WidError: the start was not made, and `force` is False.
        """
        if self._calibrated():
            return
        if not force:
            raise WidError(f"{self._advice()} Nothing was merged; force=True merges what is there.")
        warnings.warn(f"Merged by force: {self._advice()}", stacklevel=3)

    def _refuse_gradient(self, gradient: Tensor) -> None:
        """Refuse a backward pass, even one that does not run the whole model."""
        if not self._calibrated():
            raise WidError(f"{self._advice()} Nothing was trained.")

    def _advice(self) -> str:
        how = f"init={self._config.init!r}, selection={self._config.selection!r}"
        return (
            f"This model was made with {how} but has seen no calibration data. Call model.calibrate(batches), pass "
            "calibration_data to get_wid_model, train with WidTrainer or with WidCallback in another trainer, or set "
            'init="identity" and selection="first".'
        )
