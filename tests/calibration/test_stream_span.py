"""The span of a turned stream: what is read counts, and what nobody reads goes first."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wid_hf.calibration.stream_span import Place, leading_span, total_moments


def positive(n: int, rank: int, g: torch.Generator) -> Tensor:
    """A positive semidefinite matrix with a trace of one."""
    factor = torch.randn(n, rank, dtype=torch.float64, generator=g)
    return factor @ factor.T / factor.square().sum()


def loss(places: list[Place], basis: Tensor) -> float:
    """The energy that the weights make of what the span leaves."""
    left = torch.eye(len(basis)).double() - basis @ basis.T
    return float(sum((place.needs @ left @ place.moments @ left).trace() for place in places))


def principal(places: list[Place], count: int) -> Tensor:
    return torch.linalg.eigh(total_moments(places)).eigenvectors.flip(1)[:, :count]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 16), st.integers(1, 4), st.integers(0, 1000), st.data())
def test_a_span_loses_no_more_than_the_leading_directions_do(
    n: int, number: int, seed: int, data: st.DataObject
) -> None:
    g = torch.Generator().manual_seed(seed)
    count, rank = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    places = [Place(positive(n, n, g), positive(n, rank, g)) for _ in range(number)]
    basis = leading_span(places, count)
    assert basis.shape == (n, count)
    assert torch.allclose(basis.T @ basis, torch.eye(count).double(), atol=1e-12)
    assert loss(places, basis) <= loss(places, principal(places, count)) + 1e-6


def test_where_all_is_needed_the_directions_of_most_energy_lead() -> None:
    g = torch.Generator().manual_seed(0)
    places = [Place(positive(12, 12, g), torch.eye(12).double() / 12) for _ in range(3)]
    found, wanted = leading_span(places, 5), principal(places, 5)
    assert torch.allclose(found @ found.T, wanted @ wanted.T, atol=1e-6)


def test_a_direction_that_no_weight_reads_is_left_out_however_much_it_varies() -> None:
    energy, needs = torch.eye(8).double(), torch.eye(8).double()
    energy[0, 0], needs[0, 0] = 100, 0
    energy[5:], needs[5:] = 0.1 * energy[5:], 0.5 * needs[5:]
    basis = leading_span([Place(energy / energy.trace(), needs / needs.trace())], 4)
    assert float(basis[0].norm()) < 1e-3  # indices 1 to 4 have the most that is read
    assert float(basis[1:5].square().sum()) > 4 - 1e-3


def test_places_of_one_stream_are_weighed_against_each_other() -> None:
    def only(at: int, share: float) -> Place:
        one = torch.zeros(6, 6).double()
        one[at, at] = 1
        return Place(share * torch.eye(6).double() / 6, one)

    basis = leading_span([only(0, 1.0), only(1, 3.0), only(2, 2.0)], 2)
    assert float(basis[1:3].square().sum()) > 2 - 1e-3


def test_a_small_loss_beside_a_large_energy_is_still_made_smaller() -> None:
    """One direction has nearly all energy, as in decoders with massive activations."""
    g = torch.Generator().manual_seed(3)
    moments = 1e-6 * positive(10, 10, g)
    moments[0, 0] += 1
    places = [Place(moments, positive(10, 3, g) * 0.5 + torch.eye(10).double() / 20)]
    assert loss(places, leading_span(places, 5)) < 0.97 * loss(places, principal(places, 5))
