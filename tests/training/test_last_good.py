"""Where the last good weights are kept, and what is left of them when training ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_runs import HALF, arguments, masked_rows
from transformers import BertForMaskedLM, TrainerCallback

from wid_hf import ConfigError, TrainingError, WidTrainer, get_wid_model
from wid_hf.errors import OutputError
from wid_hf.training import last_good as module
from wid_hf.training.last_good import FILE, FILES, InMemory, LastGood, OnDisk, last_good
from wid_hf.training.student_trainer import StudentTrainer


class Breaks(TrainerCallback):
    """Breaks the model after its third step, as a learning rate far too high would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.good: list[torch.Tensor] = []
        self.files: list[str] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.good = [p.detach().clone() for p in model.parameters()]
        if state.global_step == 3:
            self.files = [path.name for path in self.folder.glob("*")]
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))


@pytest.mark.parametrize("place", ["device", "cpu", "disk"])
def test_weights_go_back_to_a_copy_in_any_place_and_no_file_stays(
    tiny_bert: BertForMaskedLM, tmp_path: Path, place: str
) -> None:
    breaks = Breaks(tmp_path)
    args = arguments(tmp_path, max_steps=6, logging_steps=2)
    model = get_wid_model(tiny_bert, HALF)
    trainer = WidTrainer(model=model, args=args, train_dataset=masked_rows(), callbacks=[breaks], keep_last_good=place)
    with pytest.raises(TrainingError, match=r"became nan after 3 of 6 steps.*back at its weights after step 2"):
        trainer.train()
    assert breaks.good
    assert all(torch.equal(a, b) for a, b in zip(breaks.good, model.parameters(), strict=True))
    assert breaks.files == ([FILE.format(0)] if place == "disk" else [])
    assert not [*tmp_path.glob("*")]


def test_without_a_copy_the_message_says_so_and_the_weights_are_the_last_ones(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    model = get_wid_model(tiny_bert, HALF)
    trainer = WidTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=6),
        train_dataset=masked_rows(),
        callbacks=[Breaks(tmp_path)],
        keep_last_good=None,
    )
    with pytest.raises(TrainingError, match=r"No copy of better weights was kept \(keep_last_good=None\).*checkpoint"):
        trainer.train()
    assert next(model.parameters()).isnan().all()
    assert trainer.weights_of_step == 3


def test_a_plain_student_keeps_its_copy_on_disk_until_training_ends(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    breaks = Breaks(tmp_path)
    args = arguments(tmp_path, max_steps=6, logging_steps=2, compactor_learning_rate=1e-3)
    trainer = StudentTrainer(tiny_bert, args, train_dataset=masked_rows(), callbacks=[breaks], keep_last_good="disk")
    with pytest.raises(TrainingError, match="after step 2"):
        trainer.train()
    assert breaks.files == [FILE.format(0)]
    assert all(torch.equal(a, b) for a, b in zip(breaks.good, tiny_bert.parameters(), strict=True))


def test_an_unknown_place_is_refused_before_work(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keep_last_good='gpu' is unknown\. Legal: 'device', 'cpu', 'disk', None"):
        WidTrainer(model=get_wid_model(tiny_bert, HALF), args=arguments(tmp_path), keep_last_good="gpu")


def test_a_later_copy_in_memory_is_written_over_the_earlier_one() -> None:
    weights = [nn.Parameter(torch.arange(6.0).view(2, 3)), nn.Parameter(torch.ones(4))]
    copy = InMemory(on_cpu=True)
    copy.keep(1, weights)
    places = [value.data_ptr() for value in copy._values]
    with torch.no_grad():
        weights[0].mul_(2)
    copy.keep(2, weights)
    assert [value.data_ptr() for value in copy._values] == places
    with torch.no_grad():
        weights[0].zero_()
    copy.restore()
    assert torch.equal(weights[0], 2 * torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("make", [InMemory, lambda: OnDisk(Path("copy.safetensors"))])
def test_other_parameters_get_a_copy_of_their_own(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy: LastGood = make()
    wide, narrow = [nn.Parameter(torch.ones(4))], [nn.Parameter(torch.full((2,), 3.0))]
    copy.keep(1, wide)
    assert copy.is_of(wide) and not copy.is_of(narrow)
    copy.keep(2, narrow)
    with torch.no_grad():
        narrow[0].zero_()
        wide[0].zero_()
    copy.restore()
    assert copy.step == 2 and narrow[0].tolist() == [3, 3] and wide[0].tolist() == [0, 0, 0, 0]
    copy.drop()
    assert copy.step is None and not [*tmp_path.iterdir()]


def test_views_of_one_storage_are_copied_to_disk_as_well(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    weights = [nn.Parameter(whole[:2]), nn.Parameter(whole[2:].view(2, 2).T)]
    copy = OnDisk(tmp_path / "copy")
    copy.keep(1, weights)
    whole.zero_()
    copy.restore()
    assert whole.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_disk_that_is_full_is_told_and_leaves_the_earlier_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    weights = [nn.Parameter(torch.ones(2))]
    copy = OnDisk(tmp_path / "copy")
    copy.keep(1, weights)
    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OutputError, match=r"last good weights cannot be written: .*No space left.*keep_last_good=None"):
        copy.keep(2, weights)
    assert copy.step == 1 and [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_files_of_killed_trainings_are_known() -> None:
    path = Path(FILE.format(3))
    assert FILES.fullmatch(path.name) and FILES.fullmatch(f".{path.name}-1234")
    assert not FILES.fullmatch("mine.safetensors")
    assert last_good(None, Path()) is None
