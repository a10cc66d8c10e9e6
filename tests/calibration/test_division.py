"""Batches divided by their texts, and how many texts hold so many tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from wid_hf.calibration.division import first_tokens, spread, texts_in, tokens_in

IDS = torch.ones(4, 10, dtype=torch.long)
PADDED = IDS.clone()
PADDED[:, 6:] = 0
LABELS = torch.full((4, 7), -100)
LABELS[:, :3] = 1


@pytest.mark.parametrize(
    ("batch", "tokens"),
    [
        ({"input_ids": IDS}, 40),
        ({"input_ids": IDS, "attention_mask": PADDED}, 24),
        ({"input_ids": IDS, "decoder_input_ids": IDS[:, :2]}, 8),
        ({"input_ids": IDS, "decoder_input_ids": IDS, "decoder_attention_mask": PADDED}, 24),
        ({"input_ids": IDS, "labels": LABELS}, 12),  # of which the decoder's inputs are made
        ({"pixel_values": torch.ones(4, 3, 8, 8)}, 0),
        ({"input_values": torch.ones(4, 900), "attention_mask": torch.ones(4, 900)}, 0),  # samples are no positions
    ],
)
def test_tokens_are_those_of_the_side_that_has_fewer(batch: dict[str, Any], tokens: int) -> None:
    assert tokens_in([batch, batch]) == 2 * tokens


def test_as_many_texts_are_taken_as_hold_so_many_tokens() -> None:
    batches = [{"input_ids": IDS, "attention_mask": PADDED} for _ in range(5)]  # 6 tokens a text
    found = first_tokens(batches, 30)
    assert [texts_in(batch) for batch in found] == [4, 1] and tokens_in(found) == 30
    assert first_tokens(batches, 120) is batches
    pictures = [{"pixel_values": torch.ones(4, 3, 8, 8)}] * 5
    assert first_tokens(pictures, 1) is pictures


@pytest.mark.parametrize("count", [2, 7, 40, 101])
def test_any_first_part_of_spread_batches_comes_from_everywhere(count: int) -> None:
    order = [batch["number"] for batch in spread([{"number": number} for number in range(count)])]
    assert sorted(order) == list(range(count))
    for part in range(2, count + 1):
        gaps = torch.tensor([-1, *sorted(order[:part]), count]).diff()
        assert gaps.max() <= 3 * count / part + 1
