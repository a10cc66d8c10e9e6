"""Progress bars: what goes on is shown on stderr, and nothing is left of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from wid_hf import progress_bar as module
from wid_hf.progress_bar import progress_bar


@pytest.fixture(autouse=True)
def from_the_first_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELAY", 0.0)


def test_a_bar_shows_on_stderr_and_yields_every_item(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(iter("abc"), "Reading", total=3)) == ["a", "b", "c"]
    shown = capfd.readouterr()
    assert "Reading" in shown.err and "/3" in shown.err and not shown.out
    assert not shown.err.endswith("\n")  # the bar is gone at the end


def test_transformers_switch_silences_the_bar(capfd: pytest.CaptureFixture[str]) -> None:
    disable_progress_bar()
    try:
        assert list(progress_bar([1, 2], "Reading")) == [1, 2]
    finally:
        enable_progress_bar()
    assert capfd.readouterr().err == ""


def test_who_stops_asking_ends_what_is_behind_the_bar() -> None:
    ended = []

    def items() -> Iterator[int]:
        try:
            yield from (1, 2)
        finally:
            ended.append(True)

    bar = progress_bar(items(), "Reading")
    assert next(bar) == 1
    bar.close()
    assert ended
