"""A fingerprint changes with whatever changes the teacher, and with nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wid_hf.adapter.fingerprint import Fingerprint, digest, weights_fingerprint

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.0)}


def value(weights: dict[str, Tensor]) -> str:
    return Fingerprint.of(weights, {name: name for name in weights}).value


def test_it_is_that_of_the_values_wherever_they_lie() -> None:
    shuffled = {"b": WEIGHTS["b"].clone(), "a": WEIGHTS["a"].T.contiguous().T.requires_grad_()}
    assert not shuffled["a"].is_contiguous()
    assert value(shuffled) == value(WEIGHTS)
    assert len(value(WEIGHTS)) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.arange(6.0).view(3, 2)},
        {"a": torch.arange(6.0).view(2, 3).double()},
        {"a": torch.arange(6.0).view(2, 3).to(torch.bfloat16)},
        {"a": torch.arange(6.0).view(2, 3).nextafter(torch.tensor(9.0))},
        {"c": torch.tensor(1.0)},
    ],
)
def test_names_shapes_dtypes_and_the_last_bit_count(change: dict[str, Tensor]) -> None:
    assert value(WEIGHTS | change) != value(WEIGHTS)


def test_a_swap_of_two_names_counts() -> None:
    one, two = torch.zeros(2), torch.ones(2)
    assert value({"a": one, "b": two}) != value({"a": two, "b": one})


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_tensors_of_every_kind_have_a_digest(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert digest("a", torch.ones(shape, dtype=dtype)) == digest("a", torch.ones(shape, dtype=dtype))
    if shape != (0,):
        assert digest("a", torch.ones(shape, dtype=dtype)) != digest("a", torch.zeros(shape, dtype=dtype))


def test_a_weight_that_moved_is_seen() -> None:
    found = Fingerprint.of(WEIGHTS, {"a": "a", "b": "b"})
    assert not found.changed("a", WEIGHTS["a"].clone())
    assert found.changed("a", WEIGHTS["a"] + 1e-6)


def test_the_fingerprint_of_weights_is_the_same_in_the_dtype_that_they_were_saved_in_and_in_float32() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model.float()) == before
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert weights_fingerprint(model) != before
