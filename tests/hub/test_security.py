"""What comes from elsewhere is either what was saved, or an error; nothing in it is ever executed."""

from __future__ import annotations

import json
import pickle
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from toys import save_teacher
from transformers import BertConfig, BertForMaskedLM
from wid_models import logits

from wid_hf import TeacherError, WidConfig, WidError, get_wid_model
from wid_hf.tools.teachers import load_teacher

IDS = {"input_ids": torch.arange(60).view(5, 12) % 20 + 5}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MUTATIONS_OF_WEIGHTS = 600
CLEAR = (WidError, SafetensorError, ValueError, TypeError, KeyError, OSError)


@pytest.fixture(scope="module")
def teacher() -> BertForMaskedLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForMaskedLM(BertConfig(vocab_size=30, max_position_embeddings=16, **sizes)).eval()


@pytest.fixture
def adapter(teacher: BertForMaskedLM, tmp_path: Path) -> tuple[Path, PeftModel]:
    """A calibrated adapter with trained teacher weights: its folder, and the model that it was saved from."""
    config = WidConfig(hidden_size=8, intermediate_size=16)
    wid = get_wid_model(deepcopy(teacher), config, calibration_data=[IDS])
    with torch.no_grad():
        for parameter in wid.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    wid.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", wid


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_the_trap_springs_where_pickle_is_trusted(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


def test_no_code_of_a_pickled_adapter_runs(
    adapter: tuple[Path, PeftModel], teacher: BertForMaskedLM, tmp_path: Path
) -> None:
    folder, _ = adapter
    (folder / WEIGHTS).unlink()
    torch.save({"base_model.kept": Trap(tmp_path / "sprung")}, folder / "adapter_model.bin")
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        PeftModel.from_pretrained(deepcopy(teacher), folder)
    assert not (tmp_path / "sprung").exists()


def test_no_code_of_a_pickled_teacher_runs(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "teacher", BertForMaskedLM)
    (folder / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    with pytest.raises(TeacherError, match="cannot be loaded"):
        load_teacher(str(folder))
    assert not (tmp_path / "sprung").exists()


def test_a_teacher_in_the_old_format_loads_as_data(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "teacher", BertForMaskedLM)
    model = BertForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    loaded = load_teacher(str(folder)).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


OWN_CODE = """
from pathlib import Path
Path({sprung!r}).touch()
from transformers import BertConfig, BertForMaskedLM

class OwnConfig(BertConfig):
    model_type = "own"

class OwnForMaskedLM(BertForMaskedLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("model_type", ["own", "bert"])
def test_code_in_a_teachers_folder_runs_only_when_it_is_trusted(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sprung = save_teacher(tmp_path / "teacher", BertForMaskedLM), tmp_path / "sprung"
    expected = BertForMaskedLM.from_pretrained(folder).state_dict()
    config = json.loads((folder / "config.json").read_text())
    places = {"AutoConfig": "code.OwnConfig", "AutoModelForMaskedLM": "code.OwnForMaskedLM"}
    config |= {"auto_map": places, "model_type": model_type, "architectures": ["OwnForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(OWN_CODE.format(sprung=str(sprung)))
    with pytest.raises(
        TeacherError, match=r"its own Python code, which would run.*allow it by trust_remote_code=True"
    ) as told:
        load_teacher(str(folder))
    assert str(folder) in str(told.value)
    assert not sprung.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    model = load_teacher(str(folder), trust_remote_code=True)
    assert sprung.exists() and type(model).__name__ == "OwnForMaskedLM"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def mutated_bytes(content: bytes, chance: random.Random, count: int) -> Iterator[bytes]:
    """Yield `content` with bits flipped, cut, lengthened, with a stretch zeroed or two stretches swapped."""
    header = 8 + int.from_bytes(content[:8], "little")
    for number in range(count):
        kind = number % 6
        # Every other one hits the header, which is small beside the tensors.
        at = chance.randrange(header if number % 2 else len(content))
        other, span = chance.randrange(len(content)), chance.randrange(1, 64)
        if kind < 3:
            changed = bytearray(content)
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 3:
            changed = bytearray(content[:at])
        elif kind == 4:
            changed = bytearray(content) + chance.randbytes(span)
        else:
            changed = bytearray(content)
            changed[at : at + span], changed[other : other + span] = (
                bytes(span)[: len(content[at : at + span])],
                content[other : other + span],
            )
        if bytes(changed) != content:
            yield bytes(changed)


def mutated_configs(content: bytes, chance: random.Random) -> Iterator[bytes]:
    """Yield the JSON with bits flipped and cut, and with each value replaced, each key left out."""
    framed = len(content).to_bytes(8, "little") + content
    yield from (changed[8:] for changed in mutated_bytes(framed, chance, 60) if changed[8:] != content)
    values = [None, True, -1, 0, 1, 4, 7, 10**12, 0.5, "x", "../../etc/passwd", [], [8], {}, {"hidden_size": 8}]
    config = json.loads(content)
    for key in config:
        yield json.dumps({name: value for name, value in config.items() if name != key}).encode()
        for value in values:
            if value != config[key]:
                yield json.dumps(config | {key: value}).encode()
    yield json.dumps(config | {"overrides": {"vocab_size": 10}}).encode()
    yield json.dumps(config | {"head_strategy": "head"}).encode()
    yield b'{"a":' * 100_000


def outcome(load: Callable[[], PeftModel], expected: Tensor) -> str:
    """Return what became of one mutation."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load().eval()
    except CLEAR as refusal:
        return "refused" if str(refusal) else f"unclear: {refusal!r}"
    except (RuntimeError, RecursionError) as refusal:
        words = ("size mismatch", "maximum recursion depth")
        return "refused" if any(word in str(refusal) for word in words) else f"unclear: {refusal!r}"
    except Exception as crash:
        return f"unclear: {crash!r}"
    return "accepted and equal" if torch.equal(logits(model, IDS), expected) else "wrong"


@pytest.mark.slow
def test_no_mutation_of_an_adapter_loads_as_another_function(
    adapter: tuple[Path, PeftModel], teacher: BertForMaskedLM, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, wid = adapter
    wid.eval()
    expected, chance = logits(wid, IDS), random.Random(0)
    weights, config = (folder / WEIGHTS).read_bytes(), (folder / CONFIG).read_bytes()

    def reload() -> PeftModel:
        wid.load_adapter(folder, "default")
        return wid

    found: dict[str, Counter[str]] = {"weights": Counter(), "config": Counter()}
    for content in mutated_bytes(weights, chance, MUTATIONS_OF_WEIGHTS):
        (folder / WEIGHTS).write_bytes(content)
        found["weights"][outcome(reload, expected)] += 1
        assert torch.equal(logits(wid, IDS), expected), "a refusal left other weights behind"
    (folder / WEIGHTS).write_bytes(weights)
    for content in mutated_configs(config, chance):
        (folder / CONFIG).write_bytes(content)
        found["config"][outcome(lambda: PeftModel.from_pretrained(deepcopy(teacher), folder), expected)] += 1
    with capsys.disabled():
        for what, counts in found.items():
            print(f"\n{what}: {counts.total()} tried, {dict(counts)}", end="")
    for counts in found.values():
        assert set(counts) <= {"refused", "accepted and equal"}
    assert found["weights"].total() >= 500 and found["config"].total() >= 200
    assert not found["weights"]["accepted and equal"]
