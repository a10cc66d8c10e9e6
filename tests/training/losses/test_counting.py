"""Which positions of a state are padding, where there are as many as in the mask and where there are fewer."""

from __future__ import annotations

import pytest
import torch
from media import teacher_of
from torch import Tensor, nn
from transformers import Wav2Vec2ForCTC

from wid_hf.training.losses.counting import attended_positions, counted_positions


def state(rows: int, positions: int) -> Tensor:
    return torch.zeros(rows, positions, 2)


def mask_of(*lengths: int) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()


def test_a_mask_of_the_same_positions_is_taken_as_it_is() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 0, 1]])
    assert torch.equal(attended_positions(nn.Identity(), state(2, 3), {"attention_mask": mask}), mask.bool())


def test_a_model_of_sounds_counts_the_frames_of_each_row() -> None:
    model = teacher_of("speech")
    assert isinstance(model, Wav2Vec2ForCTC)
    mask = mask_of(480, 333, 71)
    frames = model(input_values=torch.zeros(3, 480), attention_mask=mask).logits
    wanted = model._get_feature_vector_attention_mask(frames.shape[1], mask)
    assert torch.equal(attended_positions(model, frames, {"attention_mask": mask}), wanted)
    half = attended_positions(model, frames[:, ::2], {"attention_mask": mask})  # as behind an adapter
    assert half.sum(1).tolist() == [-(-int(n) * half.shape[1] // frames.shape[1]) for n in wanted.sum(1)]


def test_without_its_own_count_a_row_has_its_share_rounded_up() -> None:
    found = attended_positions(nn.Identity(), state(3, 5), {"attention_mask": mask_of(20, 9, 0)})
    assert found.sum(1).tolist() == [5, 3, 0]
    assert found[1].tolist() == [True, True, True, False, False]


def test_positions_of_a_decoder_have_its_own_mask_and_all_count_without_one() -> None:
    read, written = mask_of(6, 2), mask_of(1, 3)
    texts = {"input_ids": torch.zeros(2, 6), "attention_mask": read}
    assert torch.equal(attended_positions(nn.Identity(), state(2, 6), texts), read.bool())
    assert attended_positions(nn.Identity(), state(2, 3), texts).all()
    found = attended_positions(nn.Identity(), state(2, 3), {**texts, "decoder_attention_mask": written})
    assert torch.equal(found, written.bool())


def test_along_a_target_its_positions_count_without_labels_too() -> None:
    batch = {"attention_mask": mask_of(6, 2), "decoder_attention_mask": mask_of(1, 3)}
    counted = counted_positions(teacher_of("speech"), batch)
    assert counted is not None and torch.equal(counted, mask_of(1, 3).bool())


@pytest.mark.parametrize(
    "inputs",
    [{}, {"attention_mask": torch.tensor([[0, 0, 1, 1]])}, {"attention_mask": torch.zeros(2, 4)}],
    ids=["no mask", "padding on the left", "other rows"],
)
def test_positions_that_no_mask_tells_of_all_count(inputs: dict[str, Tensor]) -> None:
    assert attended_positions(nn.Identity(), state(1, 2), inputs).all()
