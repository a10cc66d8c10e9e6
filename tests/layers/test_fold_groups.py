"""Which weights fold together, that it changes nothing, and how many operations a narrow step takes by it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from folded_bert import IDS, gradients
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTForImageClassification,
)

from wid_hf import WidConfig, get_wid_model
from wid_hf.layers import FoldedWeight, stacked_fold
from wid_hf.layers.fold_groups import fold_groups
from wid_hf.layers.folded_weight import places

MOST_OPERATIONS = 1.3  # times the bare student's, forward and backward, without views
LAYERS = 12


class Operations(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def step(model: nn.Module, half: bool) -> None:
    ids = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()


def operations(model: nn.Module, half: bool) -> int:
    step(model, half)
    model.zero_grad()
    with Operations() as counted:
        step(model, half)
    return counted.count


def bert(hidden: int, inner: int) -> PreTrainedModel:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    return BertForMaskedLM(BertConfig(**sizes, vocab_size=50, max_position_embeddings=8))


def llama(hidden: int, inner: int) -> PreTrainedModel:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=50, max_position_embeddings=8))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("family", [bert, llama])
def test_a_narrow_step_has_few_more_operations_than_the_bare_students(
    family: Callable[[int, int], PreTrainedModel], frozen: bool, half: bool
) -> None:
    ids = torch.arange(320).view(40, 8) % 45 + 5
    wid = get_wid_model(family(16, 32), WidConfig(hidden_size=8, intermediate_size=16, selection="variance"))
    wid.calibrate([{"input_ids": ids}], quick=True)  # shifts are there, which a selection does not need
    for name, weight in wid.named_parameters():
        weight.requires_grad_(not (frozen and name.endswith("original")))
    ratio = operations(wid.train(), half) / operations(family(8, 16).train(), half)
    assert 1 < ratio <= MOST_OPERATIONS


def test_weights_of_one_shape_in_all_layers_fold_together_with_their_biases(wid: nn.Module) -> None:
    groups = [set(group.weights) for group in fold_groups(wid.model)]
    made = {f"{place.path}.{place.attribute}": place.weight for place in places(wid.model)}
    layers = [f"bert.encoder.layer.{at}" for at in range(wid.model.config.num_hidden_layers)]
    together = {
        made[f"{layer}.attention.self.{part}.{kind}"]
        for layer in layers
        for part in ("query", "key", "value")
        for kind in ("weight", "bias")
    }
    assert any(together <= group for group in groups)
    assert sum(map(len, groups)) == len(set().union(*groups))  # each in one


def test_weights_folded_together_are_those_folded_one_by_one(wid: nn.Module) -> None:
    originals = {place.weight: place.original for place in places(wid.model)}
    folds: dict[FoldedWeight, Tensor] = {}
    for group in fold_groups(wid.model):
        folds |= group.fold() or {}
    assert len(folds) > 10
    for weight, folded in folds.items():
        torch.testing.assert_close(folded, weight.fold(originals[weight]))


def test_an_encoder_that_does_not_run_is_not_folded() -> None:
    config = T5Config(d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, vocab_size=50)
    wid = get_wid_model(T5Model(config).eval(), WidConfig(hidden_size=8, overrides={"d_ff": 16}, init="identity"))
    folded: list[FoldedWeight] = []
    groups = {type(group) for group in fold_groups(wid.base_model.model)}
    originals = {group: group.fold for group in groups}
    try:
        for group, fold in originals.items():
            group.fold = lambda self, fold=fold: folded.extend(self.weights) or fold(self)
        states = torch.randn(1, 4, 8)
        wid(encoder_outputs=(states,), decoder_input_ids=torch.tensor([[3, 4]]))
    finally:
        for group in groups:
            del group.fold
    names = {place.weight: place.path for place in places(wid.base_model.model)}
    parts = {names[weight].partition(".block.")[0] for weight in folded}
    assert "decoder" in parts
    assert "encoder" not in parts


def test_weights_that_cannot_be_stacked_are_folded_one_by_one(wid: nn.Module) -> None:
    class Quantized(nn.Parameter):
        """A parameter of a class of its own."""

    with torch.no_grad():
        wanted = wid.model(input_ids=IDS).logits
    steps = wid.model.bert.encoder.layer[0].attention.self.query.parametrizations.weight
    steps.original = Quantized(steps.original.detach())
    groups = [group for group in fold_groups(wid.model) if steps[0] in group.weights]
    assert [group.fold() for group in groups] == [None]
    with torch.no_grad():
        torch.testing.assert_close(wid.model(input_ids=IDS).logits, wanted)


def test_a_copy_of_a_student_folds_its_own_weights(wid: nn.Module) -> None:
    copied = deepcopy(wid.model)
    with torch.no_grad():
        for place in places(copied):
            for map_ in place.weight.maps.values():
                for matrix in map_.parameters():
                    matrix.mul_(0.5)
        before, after = wid.model(input_ids=IDS).logits, copied(input_ids=IDS).logits
    assert (before - after).abs().max() > 0.01
    copied(input_ids=IDS).logits.square().sum().backward()
    assert not gradients(wid.model)
    assert gradients(copied)


def test_a_first_forward_without_gradients_or_numbers_leaves_nothing_behind(wid: nn.Module) -> None:
    stacked_fold._memory.__dict__.clear()
    with torch.inference_mode():
        wanted = wid.model(input_ids=IDS).logits
    with FakeTensorMode(allow_non_fake_inputs=True):
        wid.model(input_ids=IDS)
    with torch.device("meta"):
        folded = wid.model.bert.encoder.layer[0].attention.self.query.weight
    assert folded.device.type == "cpu"
    logits = wid.model(input_ids=IDS).logits
    logits.square().sum().backward()
    assert torch.equal(logits.detach(), wanted.clone())


def test_two_towers_may_be_trained_one_after_the_other() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    text = {**sizes, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 3}
    teacher = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    halved = {"hidden_size": 8, "intermediate_size": 16}
    config = WidConfig(overrides={"text_config": halved, "vision_config": halved, "projection_dim": 8}, init="identity")
    student = get_wid_model(teacher, config)
    outputs = student(input_ids=torch.tensor([[5, 6, 3]]), pixel_values=torch.randn(1, 3, 8, 8))
    outputs.text_embeds.sum().backward()
    outputs.image_embeds.sum().backward()
    trained = gradients(student)
    assert {"text", "visual"} <= {name.partition("_projection")[0].rpartition(".")[2] for name in trained}


def test_a_weight_that_was_cast_by_itself_changes_no_other(wid: nn.Module) -> None:
    steps = wid.model.bert.encoder.layer[0].attention.self.query.parametrizations.weight
    with torch.no_grad():
        wanted = wid.model.bert.encoder.layer[0].attention.self.key.weight.clone()
        steps.original = nn.Parameter(steps.original.to(torch.bfloat16))
        (group,) = [group for group in fold_groups(wid.model) if steps[0] in group.weights]
        assert group.fold() is None or len(group.weights) <= 2
        seen: list[Tensor] = []
        layer = wid.model.bert.encoder.layer[0].attention.self
        layer.register_forward_pre_hook(lambda module, _: seen.append(module.key.weight))
        with torch.autocast("cpu", torch.bfloat16):
            wid.model(input_ids=IDS)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], wanted)


def test_a_vision_student_can_be_copied() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    teacher = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)).eval()
    student = get_wid_model(teacher, WidConfig(hidden_size=8, intermediate_size=16, init="identity"))
    pixels = torch.randn(1, 3, 8, 8)
    student(pixel_values=pixels).logits.sum().backward()
    with torch.no_grad():
        assert torch.equal(deepcopy(student)(pixel_values=pixels).logits, student(pixel_values=pixels).logits)
