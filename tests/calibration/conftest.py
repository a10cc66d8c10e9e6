"""Fixtures of calibration."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest

from wid_hf.calibration.candidates import SELECTED, TURNED, Candidate


@pytest.fixture
def turned_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the turned stream untried: random weights say little about which candidate is best."""

    def choose(candidates: Sequence[Candidate], *_: Any, **__: Any) -> tuple[Candidate, tuple[()]]:
        assert candidates[0].name == TURNED and candidates[-1].name == SELECTED
        return candidates[0], ()

    monkeypatch.setattr(import_module("wid_hf.calibration.initialize"), "choose", choose)
