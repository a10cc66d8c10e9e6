"""A sound that gives no frame is of no use to any task."""

from __future__ import annotations

from pathlib import Path

import pytest
from media import objective_of, picture, tone, write_wav


@pytest.mark.parametrize("name", ["sounds", "speech", "sound features"])
def test_a_sound_without_a_frame_is_of_no_use(name: str, tmp_path: Path) -> None:
    objective = objective_of(name, tmp_path)
    whole, short = (write_wav(tmp_path / f"{count}.wav", tone(0)[:count]) for count in (200, 3))
    told = [objective.why_unusable({"audio": {"bytes": None, "path": str(path)}}) for path in (whole, short)]
    assert told == [None, "the sound is too short"]


def test_an_image_needs_no_frame(tmp_path: Path) -> None:
    assert objective_of("images", tmp_path).why_unusable({"image": picture(0)}) is None
