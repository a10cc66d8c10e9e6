"""The library's turned start of a BERT is the oracle's, weight for weight and score for score."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module

import pytest
import torch
from reference.test_bert_start import Batches, difference, loaded, logits, tiny_batches
from reference.turned_bert_start import turned_bert_start
from torch import Tensor
from transformers import BertConfig, BertForTokenClassification

from wid_hf import WidConfig, get_wid_model
from wid_hf.calibration.candidates import TURNED
from wid_hf.calibration.stream_span import Place, total_moments

ALL = 1_000_000  # positions for each index
EXACT = 1e-9  # of the largest entry of each tensor


def tiny_teacher() -> BertForTokenClassification:
    """Three layers whose every weight matters; norms are those of no trained model, which are nearer to one number."""
    config = BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, num_labels=5
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = BertForTokenClassification(config).eval()
        for name, parameter in teacher.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3)
            if name.endswith("LayerNorm.weight"):
                parameter.data += 1
    return teacher


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the first candidate, the turned stream, untried, with the leading directions of its moments."""

    def choose(candidates: list[object], *_: object, **__: object) -> tuple[object, tuple[()]]:
        assert candidates[0].name == TURNED
        return candidates[0], ()

    def leading(places: list[Place], count: int) -> Tensor:
        return torch.linalg.eigh(total_moments(places)).eigenvectors.flip(1)[:, :count]

    monkeypatch.setattr(import_module("wid_hf.calibration.initialize"), "choose", choose)
    monkeypatch.setattr(import_module("wid_hf.calibration.turned_map"), "leading_span", leading)
    # All positions count, as in the oracle: the library looks at as many as fits need.
    monkeypatch.setattr(import_module("wid_hf.calibration.moment_pass"), "ENOUGH", ALL)
    for name in ("PLENTY", "SOME"):
        monkeypatch.setattr(import_module("wid_hf.calibration.reconstruction"), name, ALL)


@pytest.mark.usefixtures("turned")
@pytest.mark.parametrize(("hidden", "inner"), [(12, 20), (20, 47), (8, 8)])
def test_a_tiny_berts_turned_start_is_the_oracles(hidden: int, inner: int) -> None:
    batches: Batches
    *batches, held_out = tiny_batches()
    teacher = tiny_teacher()
    wanted = turned_bert_start(teacher, batches, hidden, inner)
    config = WidConfig(hidden_size=hidden, intermediate_size=inner)
    student = get_wid_model(deepcopy(teacher).double(), config, calibration_data=batches).merge_and_unload()
    found = student.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in wanted.items()}
    off = {name: difference(found[name], wanted[name]) for name in wanted}
    assert {name: share for name, share in off.items() if share > EXACT} == {}
    assert difference(logits(student, [held_out]), logits(loaded(student, wanted), [held_out])) < EXACT
