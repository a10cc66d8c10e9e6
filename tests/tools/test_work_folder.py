"""What a run needs to go on: kept until it is whole, for the same run alone, and nothing else is touched."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import forked
from wid_models import identity, logits, tiny_gpt2, trained

from wid_hf import OutputError
from wid_hf.errors import FormatError, WidWarning
from wid_hf.tools.work_folder import LOCK, REFINEMENT, RUN, START, WorkFolder, load_start

DECIDES: dict[str, Any] = {"teacher": "abc", "settings": {"steps": 10, "rates": [1e-4, 0.0]}}
FOUND = {"scores": {"teacher": {"loss": 1.5}}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "student-work"


def killed(path: Path, decides: dict[str, Any] = DECIDES) -> None:
    """Leave the folder of a run that was killed after its start."""

    def work() -> None:
        folder = WorkFolder(path)
        with folder.opened(decides):
            folder.keep_start(identity(tiny_gpt2()), FOUND)
            (path / "checkpoint-4").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(work) == -signal.SIGKILL


def test_a_folder_of_no_use_goes_and_one_with_a_start_stays(path: Path) -> None:
    with WorkFolder(path).opened(DECIDES):
        assert {entry.name for entry in path.iterdir()} == {LOCK, RUN}
    assert not path.exists()
    folder = WorkFolder(path)
    with folder.opened(DECIDES):
        folder.keep_start(identity(tiny_gpt2()), FOUND)
    assert (path / START / "adapter_model.safetensors").is_file()
    with WorkFolder(path, resume=True).opened(DECIDES):
        pass
    assert path.is_dir()


def test_layers_that_are_refined_are_of_use(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), WorkFolder(path).opened(DECIDES):
        (path / REFINEMENT).mkdir()
        (path / REFINEMENT / "layer-0").write_text("done")
        raise KeyboardInterrupt
    assert (path / REFINEMENT / "layer-0").exists()


def test_a_start_is_loaded_as_it_was_kept(path: Path) -> None:
    torch.manual_seed(0)
    model = identity(tiny_gpt2())
    trained(model)
    folder = WorkFolder(path)
    with folder.opened(DECIDES):
        folder.keep_start(model, FOUND)
    again = WorkFolder(path, resume=True)
    with again.opened(DECIDES):
        assert again.start == FOUND
        torch.manual_seed(0)
        fresh = identity(tiny_gpt2())
        assert not torch.equal(logits(fresh), logits(model))
        load_start(fresh, path / START)
        assert torch.equal(logits(fresh), logits(model))
        assert any(parameter.requires_grad for parameter in fresh.parameters())


def test_a_folder_in_use_is_refused(path: Path) -> None:
    killed(path)
    with WorkFolder(path, resume=True).opened(DECIDES):
        # A lock is of an open file: a second one in this process is refused as that of another process is.
        with (
            pytest.raises(OutputError, match="Another process works in"),
            WorkFolder(path, resume=True).opened(DECIDES),
        ):
            pass
        assert (path / START).is_dir()


def test_only_the_same_run_goes_on_and_the_message_says_what_differs(path: Path) -> None:
    killed(path)
    with pytest.raises(OutputError, match="Pass resume=True to continue it, overwrite=True to begin again"):
        WorkFolder(path)
    other = {"teacher": "abc", "settings": {"steps": 20, "rates": [1e-4, 0.0], "column": "rxn"}}
    differs = r"settings\.steps: 10 there, 20 here; settings\.column: None there, rxn here\. Repeat its settings"
    with pytest.raises(OutputError, match=differs), WorkFolder(path, resume=True).opened(other):
        pass
    folder = WorkFolder(path, resume=True)
    with folder.opened(DECIDES):
        assert folder.start == FOUND


def test_a_run_that_begins_again_deletes_what_the_earlier_one_wrote_and_nothing_else(path: Path) -> None:
    killed(path)
    (path / "notes.txt").write_text("mine")
    (path / "link").symlink_to(path.parent)
    folder = WorkFolder(path, overwrite=True)
    told = pytest.warns(WidWarning, match="stays: wid-hf did not write link, notes.txt there")
    with told, folder.opened({"teacher": "other"}):
        assert folder.start is None
        assert {entry.name for entry in path.iterdir()} == {LOCK, RUN, "notes.txt", "link"}
    assert (path / "notes.txt").read_text() == "mine" and path.parent.is_dir()


def test_what_others_wrote_is_refused(path: Path) -> None:
    path.mkdir()
    WorkFolder(path)  # empty
    (path / "checkpoint-1").mkdir()
    WorkFolder(path)  # of a run that was killed as it began
    (path / "mine").write_text("mine")
    for given in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match=r"which wid-hf did not write\. Move it away"):
            WorkFolder(path, **given)
    assert (path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "error"), [("{", OutputError), (json.dumps({"format_version": 99}), FormatError)], ids=["torn", "newer"]
)
def test_a_record_that_cannot_be_read_is_refused(path: Path, text: str, error: type[Exception]) -> None:
    killed(path)
    (path / RUN).write_text(text)
    with pytest.raises(error), WorkFolder(path, resume=True).opened(DECIDES):
        pass
    assert (path / START).is_dir()


def test_a_torn_checkpoint_is_none(path: Path) -> None:
    killed(path)
    folder = WorkFolder(path, resume=True)
    with folder.opened(DECIDES):
        assert folder.checkpoint() is None


def test_seconds_are_those_of_the_checkpoint(path: Path) -> None:
    folder = WorkFolder(path)
    with folder.opened(DECIDES):
        folder.keep_start(identity(tiny_gpt2()), FOUND)
        folder.note_seconds("checkpoint-4", 1.5)
        folder.note_seconds("checkpoint-8", 3.0)
    again = WorkFolder(path, resume=True)
    with again.opened(DECIDES):
        assert again.seconds_until(path / "checkpoint-4") == 1.5
        assert again.seconds_until(None) == 0.0 and again.start == FOUND
