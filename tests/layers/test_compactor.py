"""The maps of one axis: learned ones on any axis of any tensor, and fixed selections."""

from __future__ import annotations

import pytest
import torch

from wid_hf.layers import Compactor, IndexSelect


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_a_compactor_maps_any_axis_of_any_tensor(axis: int) -> None:
    tensor, matrix = torch.randn(4, 5, 6, 7), torch.randn(3, (4, 5, 6, 7)[axis])
    letters = "abcd"
    expected = torch.einsum(f"abcd,k{letters[axis]}->{letters.replace(letters[axis], 'k')}", tensor, matrix)
    assert torch.allclose(Compactor(matrix)(tensor, axis), expected, atol=1e-5)


def test_a_selection_keeps_indices_and_multiplies_by_their_factors() -> None:
    select = IndexSelect(torch.tensor([3, 0]), torch.tensor([1.0, 0.5]))
    assert torch.equal(select(torch.arange(8.0).view(4, 2), 0), torch.tensor([[6.0, 7.0], [0.0, 0.5]]))
    assert torch.equal(select(torch.arange(8.0).view(2, 4), 1), torch.tensor([[3.0, 0.0], [7.0, 2.0]]))
