"""The reference names all that is public, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import wid_hf

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def test_every_public_name_is_in_the_reference_once() -> None:
    named = re.findall(r"^::: wid_hf\.(\w+)$", PAGE.read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(wid_hf.__all__)
