"""A saved adapter comes back as the same function, on its own teacher only, and goes on training as it would have."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from architectures import ARCHITECTURES, every_case
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toys import CONFIGS
from transformers import BertForMaskedLM, PreTrainedModel
from wid_models import BATCHES, IDS, logits

from wid_hf import TeacherError, WidConfig, WidError, WidModel, get_wid_model
from wid_hf.adapter.adapter_state import DIGESTS
from wid_hf.adapter.fingerprint import digest

SIZES = {"hidden_size": 12, "intermediate_size": 24}
IDENTITY = WidConfig(**SIZES, init="identity")
WEIGHTS = "adapter_model.safetensors"


def step(model: nn.Module, inputs: dict[str, Any] = IDS) -> None:
    """One optimizer step on everything that trains."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    optimizer.zero_grad()
    model(**inputs).logits.square().mean().backward()
    optimizer.step()


def calibrated(teacher: PreTrainedModel) -> PeftModel:
    return get_wid_model(teacher, WidConfig(**SIZES), calibration_data=BATCHES)


@pytest.fixture
def saved(tiny_bert: BertForMaskedLM, tmp_path: Path) -> Path:
    """A calibrated adapter that was trained for one step."""
    wid = calibrated(deepcopy(tiny_bert))
    step(wid)
    wid.save_pretrained(tmp_path / "adapter")
    torch.save(logits(wid), tmp_path / "logits.pt")
    return tmp_path / "adapter"


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def made_older(folder: Path) -> int:
    """Make an adapter as version 0.1 saved it, without shifts of norms; return how many there were."""
    state = load_file(folder / WEIGHTS)
    shifts = {key: state.pop(key) for key in list(state) if "LayerNorm" in key and key.endswith(".shift")}
    assert not any(shift.any() for shift in shifts.values())
    gone = {bytes(digest(key, shift)) for key, shift in shifts.items()}
    rows = [row for row in state[DIGESTS].tolist() if bytes(row) not in gone]
    save_file(state | {DIGESTS: torch.tensor(rows, dtype=torch.uint8)}, folder / WEIGHTS)
    values = json.loads((folder / "adapter_config.json").read_text())
    del values["format_version"]
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return len(shifts)


def test_an_adapter_from_before_norms_had_shifts_loads_to_the_same_function(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    wid = get_wid_model(deepcopy(tiny_bert), WidConfig(**SIZES))
    wid.base_model.calibrate(BATCHES, pca=False)
    wid.save_pretrained(tmp_path)
    assert made_older(tmp_path) == 12
    loaded = PeftModel.from_pretrained(deepcopy(tiny_bert), tmp_path, is_trainable=True)
    assert torch.equal(logits(loaded), logits(wid))
    step(loaded)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["format_version"] == 2
    again = PeftModel.from_pretrained(deepcopy(tiny_bert), tmp_path / "again")
    assert torch.equal(logits(again), logits(loaded.eval()))


def test_an_adapter_of_today_without_shifts_of_norms_is_refused(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    wid = get_wid_model(deepcopy(tiny_bert), WidConfig(**SIZES))
    wid.base_model.calibrate(BATCHES, pca=False)
    wid.save_pretrained(tmp_path)
    made_older(tmp_path)
    edit_config(tmp_path, format_version=2)
    with pytest.raises(WidError, match="12 tensors of adapter and student differ"):
        PeftModel.from_pretrained(deepcopy(tiny_bert), tmp_path)


@every_case
def test_a_saved_adapter_loads_to_equal_outputs_and_an_equal_next_step(
    family: str, strategy: str, tmp_path: Path
) -> None:
    row = ARCHITECTURES[family]
    wid = get_wid_model(row.build(), row.config(strategy), example_inputs=row.inputs)
    step(wid, row.inputs)
    wid.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(row.build(), tmp_path, is_trainable=True)
    for model in (wid, loaded):
        model.eval()
    assert (logits(loaded, row.inputs) - logits(wid, row.inputs)).abs().max() == 0
    for model in (wid, loaded):
        step(model, row.inputs)
    assert (logits(loaded, row.inputs) - logits(wid, row.inputs)).abs().max() == 0
    assert (logits(loaded.merge_and_unload(), row.inputs) - logits(wid, row.inputs)).abs().max() == 0


def test_a_calibrated_adapter_needs_no_calibration_again(saved: Path, tiny_bert: BertForMaskedLM) -> None:
    loaded = PeftModel.from_pretrained(tiny_bert, saved)
    assert isinstance(loaded.base_model, WidModel) and loaded.base_model.calibrated
    assert torch.equal(logits(loaded), torch.load(saved.parent / "logits.pt"))
    assert torch.equal(logits(loaded.merge_and_unload()), logits(loaded))
    kept = load_file(saved / WEIGHTS)["base_model.kept"]
    assert loaded.base_model.kept_outputs() == kept.tolist()


def test_an_adapter_that_waits_for_calibration_still_waits_once_loaded(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    get_peft_model(deepcopy(tiny_bert), WidConfig(**SIZES)).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert, tmp_path)
    with pytest.raises(WidError, match="has seen no calibration data"):
        loaded.merge_and_unload()


def test_only_an_adapter_loaded_to_be_trained_can_train(saved: Path, tiny_bert: BertForMaskedLM) -> None:
    loaded = PeftModel.from_pretrained(deepcopy(tiny_bert), saved)
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    trainable = PeftModel.from_pretrained(tiny_bert, saved, is_trainable=True)
    assert all(p.requires_grad for p in trainable.parameters())


def test_weights_of_the_teacher_are_saved_only_where_they_trained_or_changed(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    wid = get_wid_model(tiny_bert, IDENTITY)
    tiny_bert.requires_grad_(False)
    wid.save_pretrained(tmp_path / "frozen")
    names = set(load_file(tmp_path / "frozen" / WEIGHTS))
    assert names and not [name for name in names if name.endswith("original")]
    with torch.no_grad():  # trained once, and frozen after that
        tiny_bert.bert.encoder.layer[1].output.dense.bias += 1
    wid.save_pretrained(tmp_path / "changed")
    (added,) = set(load_file(tmp_path / "changed" / WEIGHTS)) - names
    assert added == "base_model.model.bert.encoder.layer.1.output.dense.parametrizations.bias.original"


def test_a_table_that_is_tied_is_saved_once(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    wid = get_wid_model(tiny_bert, IDENTITY)
    wid.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    assert [name for name in state if name.endswith("original") and state[name].shape == (60, 24)] == [
        "base_model.model.bert.embeddings.word_embeddings.parametrizations.weight.original"
    ]


def test_an_adapter_that_was_only_loaded_saves_all_that_it_holds(
    saved: Path, tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    PeftModel.from_pretrained(deepcopy(tiny_bert), saved).save_pretrained(tmp_path / "again")
    loaded = PeftModel.from_pretrained(tiny_bert, tmp_path / "again")
    assert torch.equal(logits(loaded), torch.load(saved.parent / "logits.pt"))


@pytest.mark.parametrize("name", ["weight", "original", "bert"])
def test_an_adapter_may_be_named_like_a_part_of_a_weights_name(
    name: str, tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    wid = get_wid_model(deepcopy(tiny_bert), IDENTITY, adapter_name=name)
    step(wid)
    wid.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert, tmp_path / name, adapter_name="other")
    assert torch.equal(logits(loaded), logits(wid))


def test_pefts_option_to_save_embeddings_as_well_changes_nothing(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    wid = get_wid_model(deepcopy(tiny_bert), IDENTITY)
    wid.base_model.teacher.requires_grad_(False)
    wid.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any(name.endswith("original") for name in load_file(tmp_path / WEIGHTS))
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_bert, tmp_path)), logits(wid))


def test_the_saved_config_names_the_teacher_its_revision_and_its_fingerprint(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    tiny_bert.name_or_path = "org/teacher"
    given = WidConfig(**SIZES, init="identity", revision="v2")
    wid = get_peft_model(tiny_bert, given)
    wid.save_pretrained(tmp_path, save_embedding_layers=False)  # else PEFT asks the Hub
    config = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, WidConfig) and config.requested == {**SIZES, "num_attention_heads": 4}
    assert (config.head_strategy, given.head_strategy) == ("dim", "auto")
    assert (config.base_model_name_or_path, config.revision) == ("org/teacher", "v2")
    assert config.teacher_fingerprint == wid.base_model.fingerprint.value
    assert given.teacher_fingerprint is None  # it may be used for another teacher


def nudge(teacher: BertForMaskedLM) -> BertForMaskedLM:
    with torch.no_grad():
        teacher.bert.encoder.layer[0].output.dense.weight[0, 0] += 1e-3
    return teacher


def drawn_anew(teacher: BertForMaskedLM) -> BertForMaskedLM:
    with torch.random.fork_rng():
        torch.manual_seed(1)  # the fixture's is 0
        return BertForMaskedLM(teacher.config)


@pytest.mark.parametrize(
    "other",
    [
        nudge,
        lambda teacher: teacher.to(torch.bfloat16),
        drawn_anew,
        lambda teacher: BertForMaskedLM(type(teacher.config)(**{**teacher.config.to_dict(), "num_hidden_layers": 1})),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_another_teacher_is_refused(
    saved: Path, tiny_bert: BertForMaskedLM, other: Callable[[BertForMaskedLM], BertForMaskedLM], named: bool
) -> None:
    if not named:  # the weights know their teacher as well
        edit_config(saved, teacher_fingerprint=None)
    with pytest.raises(TeacherError, match=r"made from another teacher.*base_model_name_or_path"):
        PeftModel.from_pretrained(other(tiny_bert), saved)


def test_the_trained_teacher_is_another_one(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    wid = get_wid_model(tiny_bert, IDENTITY)
    step(wid)
    wid.save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="before any training"):
        PeftModel.from_pretrained(wid.unload(), tmp_path)


def test_a_checkpoint_loads_into_the_model_that_went_on_training(saved: Path, tiny_bert: BertForMaskedLM) -> None:
    wid = PeftModel.from_pretrained(tiny_bert, saved, is_trainable=True)
    step(wid)
    assert not torch.equal(logits(wid), torch.load(saved.parent / "logits.pt"))
    wid.load_adapter(saved, "default", is_trainable=True)  # as Trainer does to go back to the best one
    assert torch.equal(logits(wid), torch.load(saved.parent / "logits.pt"))


def test_a_checkpoint_that_counts_on_the_teacher_does_not_load_where_that_was_trained(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    wid = get_wid_model(tiny_bert, IDENTITY)
    tiny_bert.requires_grad_(False)
    wid.save_pretrained(tmp_path)
    tiny_bert.requires_grad_(True)
    step(wid)
    with pytest.raises(WidError, match=r"leaves \d+ of the teacher.s weights unchanged.*fresh copy of the teacher"):
        wid.load_adapter(tmp_path, "default")


def flip(state: dict[str, Tensor]) -> None:
    next(t for name, t in sorted(state.items()) if name.endswith(".matrix"))[0, 0] += 1e-3


def rename(state: dict[str, Tensor]) -> None:
    a, b = [name for name in sorted(state) if name.endswith(".shift")][:2]
    state[a], state[b] = state[b], state[a]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flip, r"Checksum mismatch for 1 of the adapter's \d+ tensors"),
        (rename, r"Checksum mismatch for 2 of the adapter's \d+ tensors"),
        (lambda state: state.pop("base_model.kept"), r"1 of the adapter's \d+ tensors"),
        (lambda state: state.pop("base_model.digests"), "holds no list of checksums"),
        (lambda state: state.update({"base_model.digests": torch.zeros(3)}), "holds no list of checksums"),
        (lambda state: state.clear(), "holds no list of checksums"),
    ],
)
def test_weights_that_are_not_what_was_saved_are_refused(
    saved: Path, tiny_bert: BertForMaskedLM, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    edit(saved, change)
    with pytest.raises(WidError, match=words):
        PeftModel.from_pretrained(tiny_bert, saved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_strategy": "head"}, "head_strategy"),  # weights of the same shapes, and another function
        ({"hidden_size": 16}, '"hidden_size": 16'),
        ({"num_attention_heads": 2}, "num_attention_heads"),
        ({"init": "identity", "selection": "first"}, r"tensors of adapter and student differ.*\.shift"),
    ],
)
def test_a_config_that_is_not_what_was_saved_is_refused(
    saved: Path, tiny_bert: BertForMaskedLM, changes: dict[str, Any], words: str
) -> None:
    edit_config(saved, **changes)
    with pytest.raises(WidError, match=words):
        PeftModel.from_pretrained(tiny_bert, saved)


def test_calls_that_make_no_sense_are_refused_and_change_nothing(saved: Path, tiny_bert: BertForMaskedLM) -> None:
    wid = PeftModel.from_pretrained(tiny_bert, saved)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: wid.add_adapter("second", IDENTITY), "one student with one adapter"),
        (lambda: wid.add_adapter("second", LoraConfig(target_modules=["query"])), "[Cc]annot combine"),
        (lambda: wid.load_adapter(saved, "second"), "one student with one adapter"),
        (lambda: wid.delete_adapter("default"), "one student with one adapter"),
        (lambda: wid.set_adapter("second"), "not found"),
        (lambda: wid.base_model.set_adapter("second"), "one student with one adapter"),
        (lambda: wid.set_requires_grad("second"), "one student with one adapter"),
        (lambda: wid.merge_and_unload(adapter_names=["second"]), "one student with one adapter"),
        (wid.merge_adapter, r"cannot be merged in place: merge_and_unload\(\) returns"),
        (wid.unmerge_adapter, "cannot be merged or unmerged in place"),
        (lambda: wid.disable_adapter().__enter__(), r"cannot be switched off.*call model\.base_model\.teacher\("),
        (wid.base_model.disable_adapter_layers, "cannot be switched off"),
        (lambda: get_wid_model(wid, IDENTITY), "wrapped by PEFT already"),
    ]
    for call, words in calls:
        with pytest.raises((WidError, ValueError), match=words):
            call()
    assert list(wid.peft_config) == ["default"] and wid.active_adapters == ["default"]
    wid.set_adapter("default")
    assert torch.equal(logits(wid), torch.load(saved.parent / "logits.pt"))


def test_what_would_have_to_change_the_teacher_itself_is_refused(tiny_bert: BertForMaskedLM) -> None:
    config = deepcopy(IDENTITY)  # add_adapter writes into it
    before = {name: tensor.clone() for name, tensor in tiny_bert.state_dict().items()}
    for call in (lambda: inject_adapter_in_model(config, tiny_bert), lambda: tiny_bert.add_adapter(config)):
        with pytest.raises(
            ValueError, match=r"`inject_adapter_in_model` does not support \S*WID .*use `get_peft_model`"
        ):
            call()
    with pytest.raises(ValueError, match="Mixed"):
        get_peft_model(tiny_bert, deepcopy(IDENTITY), mixed=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_bert.state_dict().items())


@pytest.mark.parametrize("config", [IDENTITY, WidConfig(**SIZES, schedule="progressive")], ids=["narrow", "wide"])
def test_the_status_tells_what_trains_and_how_much(
    config: WidConfig, tiny_bert: BertForMaskedLM, capsys: pytest.CaptureFixture[str]
) -> None:
    wid = get_wid_model(tiny_bert, config)
    matrices = {name: p.numel() for name, p in wid.named_parameters() if name.endswith(".matrix")}
    of_teacher = tiny_bert.num_parameters()
    status = wid.get_model_status()
    assert (status.base_model_type, status.adapter_model_type) == ("BertForMaskedLM", "WidModel")
    assert status.peft_types == {"default": "WID"}
    assert status.trainable_params == status.total_params == of_teacher + sum(matrices.values())
    assert status.num_adapter_layers == 1 and status.enabled is True and status.merged_adapters == []
    assert status.active_adapters == status.available_adapters == ["default"]
    assert status.requires_grad == {"default": True} and status.devices == {"default": ["cpu"]}
    (layer,) = wid.get_layer_status()
    assert (layer.name, layer.module_type, layer.active_adapters) == ("student", "Student", ["default"])
    assert peft.get_model_status(wid) == status and peft.get_layer_status(wid) == [layer]

    tiny_bert.requires_grad_(False)
    wid.print_trainable_parameters()
    total, trains = status.total_params, sum(matrices.values())
    share = f"{100 * trains / total:.4f}"
    assert (
        capsys.readouterr().out == f"trainable params: {trains:,d} || all params: {total:,d} || trainable%: {share}\n"
    )
    assert wid.get_model_status().requires_grad == {"default": True}  # it is the adapter that this tells of
    wid.set_requires_grad("default", False)
    assert wid.get_model_status().requires_grad == {"default": False}
    assert wid.get_nb_trainable_parameters() == (0, total)
    assert not wid.supports_lora_conversion()


def test_the_status_follows_a_model_that_shrinks(tiny_bert: BertForMaskedLM) -> None:
    wid = get_wid_model(tiny_bert, WidConfig(**CONFIGS["progressive"]))
    wide = wid.get_model_status().total_params
    wid.wid_begin(5, torch.optim.SGD(wid.parameters(), lr=0.1))
    assert [wid.wid_step(step) for step in range(1, 5)] == [False, False, False, True]
    narrow = wid.get_model_status()
    assert tiny_bert.num_parameters() < narrow.total_params < wide
    assert narrow.total_params == sum(p.numel() for p in wid.parameters()) and narrow.requires_grad == {"default": True}


def test_weights_on_the_meta_device_are_refused(saved: Path, tiny_bert: BertForMaskedLM) -> None:
    with pytest.raises(WidError, match="low_cpu_mem_usage=True saves no memory"):
        PeftModel.from_pretrained(tiny_bert, saved, low_cpu_mem_usage=True)
