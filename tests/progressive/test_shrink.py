"""The shrink keeps what others hold, and what they have set: modules, methods, moments."""

from __future__ import annotations

from types import MethodType

import torch
from architectures import ARCHITECTURES, every_case
from toys import noisy
from transformers import BertForMaskedLM
from wid_models import SCHEDULE, logits, progressive, trained

from wid_hf import (
    WidConfig,
    get_wid_model,
)


def test_the_shrink_keeps_every_module_and_what_was_set_on_it(tiny_bert: BertForMaskedLM) -> None:
    model = progressive(tiny_bert)
    student = model.base_model.model
    modules = {name: module for name, module in student.named_modules() if "parametrizations" not in name}
    widths: list[int] = []
    noise = student.get_input_embeddings().register_forward_hook(lambda *given: widths.append(given[2].shape[-1]))
    student.bert.encoder.layer[0].output.dropout.p = 0.4
    student.set_attn_implementation("eager")
    student.config.pad_token_id, student.config.mine = 7, [1, 2]
    student.forward = MethodType(lambda self, **given: type(self).forward(self, **given), student)
    patch = student.forward
    trained(model)
    assert model.base_model.model is student
    assert {n: m for n, m in student.named_modules() if "parametrizations" not in n} == modules
    assert widths == [24, 24, 24, 24, 12]
    noise.remove()
    logits(model)
    assert len(widths) == 5
    assert student.forward == patch
    assert student.bert.encoder.layer[0].output.dropout.p == 0.4
    merged = model.merge_and_unload()
    for config in (student.config, merged.config):
        assert (config.hidden_size, config.pad_token_id, config.mine) == (12, 7, [1, 2])
        assert config._attn_implementation == "eager"
    assert "forward" not in vars(merged)
    assert merged.bert.encoder.layer[0].output.dropout.p == 0.4
    assert torch.equal(logits(merged), logits(model))


@every_case
def test_a_model_that_has_shrunk_is_in_all_numbers_as_one_made_narrow(family: str, strategy: str) -> None:
    row = ARCHITECTURES[family]
    config = WidConfig(**row.halved, head_strategy=strategy, schedule=SCHEDULE)
    model = get_wid_model(row.build(), config, example_inputs=row.inputs)
    noisy(model, 0.1)
    trained(model, inputs=row.inputs)
    shrunk, made = model.base_model.model, type(model.base_model.teacher)(model.base_model.student_plan.config)
    fresh = dict(made.named_modules())
    compared = 0
    for name, module in shrunk.named_modules():
        for attribute, value in vars(fresh[name]).items() if name in fresh else ():
            if type(value) in (int, float) or (isinstance(value, tuple) and all(type(one) is int for one in value)):
                assert vars(module)[attribute] == value, f"{name}.{attribute}"
                compared += 1
    assert compared > 20
    own = {k: v for k, v in shrunk.config.to_dict().items() if type(v) is int}
    assert own == {k: v for k, v in made.config.to_dict().items() if type(v) is int}
    merged = model.merge_and_unload()
    assert (logits(merged, row.inputs) - logits(model, row.inputs)).abs().max() == 0
