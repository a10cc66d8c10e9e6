"""Index sets by variance: the indices that vary most are kept, and padding does not count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM

from wid_hf import DataError, Plan, WidConfig, get_wid_model, plan_student
from wid_hf.calibration import variance_indices
from wid_hf.calibration.precision import Precision
from wid_hf.coupling import Trace

PLAIN = Precision.of_caller(torch.device("cpu"))
WORD = "bert.embeddings.word_embeddings.weight"
SELF = "bert.encoder.layer.0.attention.self"


def batch(rows: int = 8, length: int = 9, seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def chosen(teacher: BertForMaskedLM, batches: list, **sizes: int) -> dict[str, Tensor]:
    """Kept indices of each free leaf, by the first weight and axis that ends in it."""
    planned = plan_student(teacher, WidConfig(**sizes))
    sets = variance_indices(teacher, planned.trace, planned.plan, batches, PLAIN)
    return named(planned.plan, planned.trace, sets)


def named(plan: Plan, trace: Trace, sets: dict) -> dict[str, Tensor]:
    from wid_hf.coupling.dims import leaves

    names: dict[str, Tensor] = {}
    for weight, dims in plan.axes.items():
        for axis, dim in enumerate(dims):
            for leaf in leaves(dim):
                if leaf in sets:
                    names[f"{weight}[{axis}]"] = sets[leaf]
    return names


@pytest.fixture
def teacher(tiny_bert: BertForMaskedLM) -> BertForMaskedLM:
    """A tiny BERT whose blocks write nothing, so that its stream is the normalised embeddings."""
    with torch.no_grad():
        for layer in tiny_bert.bert.encoder.layer:
            for writer in (layer.attention.output.dense, layer.output.dense):
                writer.weight.zero_()
                writer.bias.zero_()
        tiny_bert.bert.embeddings.position_embeddings.weight.zero_()
        tiny_bert.bert.embeddings.token_type_embeddings.weight.zero_()
        tiny_bert.bert.embeddings.word_embeddings.weight.normal_(generator=torch.Generator().manual_seed(1))
    return tiny_bert


def test_the_residual_indices_made_to_vary_most_are_kept_in_order(teacher: BertForMaskedLM) -> None:
    loud = [1, 2, 5, 8, 11, 12, 13, 17, 19, 20, 22, 23]
    with torch.no_grad():
        for norm in (m for m in teacher.modules() if isinstance(m, torch.nn.LayerNorm)):
            norm.weight.fill_(0.1)
            norm.weight[loud] = 3.0
        teacher.bert.embeddings.word_embeddings.weight[:, loud] *= 5
        teacher.cls.predictions.transform.dense.weight.copy_(torch.eye(24))
    assert chosen(teacher, [batch()], hidden_size=12)[f"{WORD}[1]"].tolist() == loud


def test_feed_forward_indices_made_to_vary_most_are_kept(teacher: BertForMaskedLM) -> None:
    loud = [3, 4, 10, 30, 44, 47]
    with torch.no_grad():
        for layer in teacher.bert.encoder.layer:
            layer.intermediate.dense.weight.mul_(0.01)
            layer.intermediate.dense.weight[loud] *= 1000
    kept = chosen(teacher, [batch()], intermediate_size=6)
    assert kept["bert.encoder.layer.0.intermediate.dense.weight[0]"].tolist() == loud
    assert kept["bert.encoder.layer.1.output.dense.weight[1]"].tolist() == loud


def test_each_head_keeps_its_own_query_and_key_widths(teacher: BertForMaskedLM) -> None:
    loud = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 2, 4], [1, 3, 5]])
    rows = (loud + 6 * torch.arange(4)[:, None]).flatten()
    with torch.no_grad():
        for name in ("query", "key", "value"):
            linear = teacher.get_submodule(f"{SELF}.{name}")
            linear.weight.mul_(0.01)
            linear.weight[rows if name != "value" else rows.flip(0) // 6 * 6] *= 1000
    kept = chosen(teacher, [batch()], hidden_size=12)
    assert torch.equal(kept[f"{SELF}.query.weight[0]"], loud)
    assert torch.equal(kept[f"{SELF}.key.bias[0]"], loud)
    assert kept[f"{SELF}.value.weight[0]"].shape == (4, 3)
    assert not torch.equal(kept[f"{SELF}.value.weight[0]"], loud)


def test_whole_heads_made_to_vary_most_are_kept(teacher: BertForMaskedLM) -> None:
    with torch.no_grad():
        for layer in teacher.bert.encoder.layer:
            for name in ("query", "key", "value"):
                linear = layer.attention.self.get_submodule(name)
                linear.weight.mul_(0.01)
                linear.weight.view(4, 6, 24)[[1, 3]] *= 1000
    planned = plan_student(teacher, WidConfig(hidden_size=12, head_strategy="head", init="identity"))
    sets = variance_indices(teacher, planned.trace, planned.plan, [batch()], PLAIN)
    heads = [indices.tolist() for leaf, indices in sets.items() if leaf.size == 4]
    assert heads == [[1, 3]] * len(heads) and heads


def test_garbage_at_padded_positions_changes_nothing(tiny_bert: BertForMaskedLM) -> None:
    clean = batch()
    clean["attention_mask"][:, 6:] = 0
    garbage = {**clean, "input_ids": clean["input_ids"].clone()}
    garbage["input_ids"][:, 6:] = torch.arange(3)
    first = chosen(tiny_bert, [clean], hidden_size=12, intermediate_size=24)
    second = chosen(tiny_bert, [garbage], hidden_size=12, intermediate_size=24)
    assert all(torch.equal(first[name], second[name]) for name in first)
    garbage.pop("attention_mask")
    unmasked = chosen(tiny_bert, [garbage], hidden_size=12, intermediate_size=24)
    assert not all(torch.equal(first[name], unmasked[name]) for name in first)


def test_batches_add_up_like_one_batch(tiny_bert: BertForMaskedLM) -> None:
    whole = batch()
    halves = [{k: v[:3] for k, v in whole.items()}, {k: v[3:] for k, v in whole.items()}]
    one, two = (chosen(tiny_bert, batches, hidden_size=12) for batches in ([whole], halves))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_labels_are_ignored_even_if_the_loss_could_not_take_them(tiny_bert: BertForMaskedLM) -> None:
    labelled = {**batch(), "labels": torch.tensor([1, 2, 3])}
    one, two = (chosen(tiny_bert, [b], hidden_size=12) for b in (batch(), labelled))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_calibration_is_deterministic_and_leaves_the_teacher_alone(tiny_bert: BertForMaskedLM) -> None:
    tiny_bert.train()
    state = torch.get_rng_state()
    hooks = sum(len(m._forward_hooks) for m in tiny_bert.modules())
    weights = {name: tensor.clone() for name, tensor in tiny_bert.state_dict().items()}
    one, two = (chosen(tiny_bert, [batch()], hidden_size=12, intermediate_size=20) for _ in range(2))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert all(module.training for module in tiny_bert.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(len(m._forward_hooks) for m in tiny_bert.modules()) == hooks
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny_bert.state_dict().items())


def padding() -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in batch().items()}


@pytest.mark.parametrize("batches", [[], [padding()], [padding(), padding()]])
def test_no_batch_or_nothing_but_padding_is_refused(tiny_bert: BertForMaskedLM, batches: list) -> None:
    with pytest.raises(DataError, match="holds no batch, or nothing but padding"):
        chosen(tiny_bert, batches, hidden_size=12)


def test_activations_that_are_not_finite_are_refused(tiny_bert: BertForMaskedLM) -> None:
    with torch.no_grad():
        tiny_bert.bert.embeddings.word_embeddings.weight[7] = float("nan")
    given = batch()
    given["input_ids"][0, 0] = 7
    with pytest.raises(DataError, match="activations on the calibration data are not finite"):
        chosen(tiny_bert, [given], hidden_size=12)


def test_the_student_starts_from_the_chosen_indices(teacher: BertForMaskedLM) -> None:
    kept = chosen(teacher, [batch()], hidden_size=12)[f"{WORD}[1]"]
    wid = get_wid_model(
        teacher, WidConfig(hidden_size=12, selection="variance", init="identity"), calibration_data=[batch()]
    ).base_model
    words = teacher.bert.embeddings.word_embeddings.weight
    assert torch.equal(wid.model.bert.embeddings.word_embeddings.weight, words[:, kept])
    norm = teacher.bert.embeddings.LayerNorm.weight
    assert torch.equal(wid.model.bert.embeddings.LayerNorm.weight, norm[kept])
