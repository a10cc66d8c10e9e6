"""Distillation from the frozen originals: each loss by its formula, accumulation, what stays untouched, refusals."""

from __future__ import annotations

from copy import deepcopy
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from toys import labelled_batch, labelled_rows
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from wid_hf import (
    DataError,
    FollowingTrainer,
    TeacherError,
    TrainingError,
    WidConfig,
    WidError,
    WidSchedule,
    WidTrainer,
    WidTrainingArguments,
    get_wid_model,
)
from wid_hf.training.losses.distillation import Distillation
from wid_hf.training.losses.hidden import missed_energy
from wid_hf.training.losses.logits import logits_loss
from wid_hf.training.losses.registry import DISTILLED
from wid_hf.training.losses.relations import relation_loss

HALF = WidConfig(hidden_size=12, intermediate_size=24, init="identity")
HEADS = WidConfig(hidden_size=12, intermediate_size=24, head_strategy="head", init="identity")


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=60, n_embd=24, n_layer=2, n_head=4, n_positions=32, bos_token_id=None, eos_token_id=None,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return seeded(GPT2LMHeadModel, config)


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
        intermediate_size=48,
    )  # fmt: skip
    return seeded(LlamaForCausalLM, config)


def bert(model_class: type[PreTrainedModel] = BertForMaskedLM, **given: Any) -> PreTrainedModel:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=60, max_position_embeddings=32, **{**sizes, **still, **given})
    return seeded(model_class, config)


def seeded(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A random model whose weights are large enough for its outputs to differ from token to token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def distilled(model: PeftModel, losses: list[str], inputs: dict[str, Tensor], **given: Any) -> Tensor:
    distillation = Distillation(model, losses)
    with distillation.watching() as student:
        student.output = model(**inputs)
    return distillation.loss(student, distillation.target(inputs), inputs, **given)


def moved(model: PeftModel, amount: float = 0.05) -> PeftModel:
    """The model after something like training: its compactors are no selections any more."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".matrix"):
                parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return model


# Each loss, by a calculation of its own.


def test_logits_are_compared_where_there_are_labels() -> None:
    model, inputs = moved(get_wid_model(bert(), HALF)), labelled_batch()
    wanted = model.base_model.teacher(**inputs).logits
    got = model(**inputs).logits
    total, count = 0.0, 0
    wanted, got = wanted.detach(), got.detach()
    for row, position in (inputs["labels"] != -100).nonzero().tolist():
        p, q = (torch.softmax(logits[row, position].double() / 2, -1) for logits in (wanted, got))
        total, count = total + 4 * float((p * (p / q).log()).sum()), count + 1
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(total / count, rel=1e-5)


def test_logits_are_compared_at_attended_positions_where_nothing_has_labels() -> None:
    model, inputs = moved(get_wid_model(bert(), HALF)), labelled_batch()
    del inputs["labels"]
    attended = inputs["attention_mask"].bool()
    wanted, got = model.base_model.teacher(**inputs).logits[attended], model(**inputs).logits[attended]
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(
        logits_loss(got, wanted, 2.0).mean().item(), rel=1e-5
    )


def test_a_causal_model_is_compared_at_the_positions_that_predict_a_label() -> None:
    model, inputs = moved(get_wid_model(gpt2(), WidConfig(hidden_size=12, init="identity"))), labelled_batch()
    predicting = inputs["labels"][:, 1:] != -100
    wanted, got = (m(**inputs).logits[:, :-1][predicting] for m in (model.base_model.teacher, model))
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(
        logits_loss(got, wanted, 2.0).mean().item(), rel=1e-5
    )


def test_a_classifier_is_compared_row_by_row() -> None:
    from transformers import BertForSequenceClassification

    model = moved(get_wid_model(bert(BertForSequenceClassification, num_labels=3), HALF))
    inputs = {**labelled_batch(), "labels": torch.tensor([0, 2, 1, 1])}
    wanted, got = model.base_model.teacher(**inputs).logits, model(**inputs).logits
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(
        logits_loss(got, wanted, 2.0).mean().item(), rel=1e-5
    )
    assert distilled(model, ["hidden", "relations"], inputs).item() > 0.01


def test_hidden_states_are_lifted_by_the_columns_of_the_weight_that_reads_them() -> None:
    model, inputs = moved(get_wid_model(bert(), HALF)), labelled_batch()
    teacher, student = model.base_model.teacher, model.base_model.model
    states: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, who=who: states[who].append(args[0]))
        for who, whole in (("teacher", teacher), ("student", student))
        for layer in whole.bert.encoder.layer
        for module in (layer.attention.self.query, layer.intermediate.dense)
    ]
    hooks += [
        module.register_forward_pre_hook(lambda _, args, who=who: states[who].append(args[0]))
        for who, whole in (("teacher", teacher), ("student", student))
        for module in (whole.cls.predictions.transform.dense, whole.cls.predictions.decoder)
    ]
    wanted, got = teacher(**inputs, output_hidden_states=True), model(**inputs, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    assert torch.equal(states["teacher"][0], wanted.hidden_states[0])  # what is read are the hidden states
    assert torch.equal(states["student"][4], got.hidden_states[2])
    readers = [
        *(
            module
            for layer in student.bert.encoder.layer
            for module in (layer.attention.self.query, layer.intermediate.dense)
        ),
        student.cls.predictions.transform.dense,
    ]
    lifts = [module.parametrizations.weight[0].maps["1"].matrix for module in readers]  # (k, n)
    labels = (inputs["labels"] != -100).sum(1)
    kept = student.bert.embeddings.LayerNorm.parametrizations.weight[0].maps["0"].indices
    total = torch.zeros(len(labels))
    for at, (mine, theirs) in enumerate(zip(states["student"], states["teacher"], strict=True)):
        # The decoder is tied: its columns are the embedding's, so its state is compared at the kept indices.
        lifted, target = (mine @ lifts[at], theirs) if at < len(lifts) else (mine, theirs[..., kept])
        for row, length in enumerate(inputs["attention_mask"].sum(1)):
            error = (lifted - target)[row, :length].square().sum() / target[row, :length].square().sum()
            total[row] += error / 6
    expected = (total * labels).sum() / labels.sum()
    assert distilled(model, ["hidden"], inputs).item() == pytest.approx(expected.item(), rel=1e-5)


def test_hidden_states_that_do_not_shrink_are_compared_as_they_are() -> None:
    model, inputs = get_wid_model(bert(), WidConfig(intermediate_size=24, init="identity")), labelled_batch()
    assert distilled(model, ["hidden"], inputs).item() > 1e-3  # the feed-forward blocks are narrower
    with torch.no_grad():  # then nothing tells the models apart
        for layer in model.base_model.teacher.bert.encoder.layer:
            layer.output.dense.weight.zero_()
    assert distilled(model, list(DISTILLED), inputs).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("config", "heads"), [(HALF, 4), (HEADS, 2)])
def test_value_relations_of_the_last_layer_are_compared_in_common_heads(config: WidConfig, heads: int) -> None:
    model, inputs = moved(get_wid_model(bert(), config)), labelled_batch()
    values: list[Tensor] = []
    for whole in (model.base_model.teacher, model.base_model.model):
        module = whole.bert.encoder.layer[-1].attention.self.value
        hook = module.register_forward_hook(lambda *seen: values.append(seen[2].detach().double()))
        whole(**inputs)
        hook.remove()
    labels = (inputs["labels"] != -100).sum(1)
    total = 0.0
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        losses = []
        for head in range(heads):
            relations = []
            for tensor in values:
                width = tensor.shape[-1] // heads
                v = tensor[row, :length, head * width : (head + 1) * width]
                relations.append(torch.softmax(v @ v.T / sqrt(width), -1))
            losses.append((relations[0] * (relations[0] / relations[1]).log()).sum(-1).mean())
        total += float(torch.stack(losses).mean()) * int(labels[row])
    assert distilled(model, ["relations"], inputs).item() == pytest.approx(total / int(labels.sum()), rel=1e-4)


def test_fused_values_are_found_in_both_models() -> None:
    model, inputs = moved(get_wid_model(gpt2(), WidConfig(hidden_size=12, init="identity"))), labelled_batch()
    values: list[Tensor] = []
    for whole in (model.base_model.teacher, model.base_model.model):
        module = whole.transformer.h[-1].attn.c_attn
        hook = module.register_forward_hook(lambda *seen: values.append(seen[2].chunk(3, -1)[2]))
        whole(**inputs)
        hook.remove()
    rows = relation_loss(values[1], values[0], inputs["attention_mask"].bool(), 4)
    labels = (inputs["labels"][:, 1:] != -100).sum(1)
    expected = (rows * labels).sum() / labels.sum()
    assert distilled(model, ["relations"], inputs).item() == pytest.approx(expected.item(), rel=1e-5)


def test_grouped_values_have_a_head_for_every_key() -> None:
    teacher = llama()
    config = WidConfig(hidden_size=12, head_dim=6, num_attention_heads=2, num_key_value_heads=1, init="identity")
    distillation = Distillation(get_wid_model(teacher, config), ["relations"])
    name, of_teacher, of_student = distillation.terms[0].values[-1]
    assert name == "model.layers.1.self_attn.v_proj"
    assert (of_teacher.heads, of_teacher.stop) == (2, 12)
    assert (of_student.heads, of_student.stop) == (1, 6)


def test_padding_does_not_count() -> None:
    model, inputs = moved(get_wid_model(bert(), HALF)), labelled_batch()
    before = distilled(model, list(DISTILLED), inputs)
    inputs["input_ids"] = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], 7)
    assert distilled(model, list(DISTILLED), inputs).item() == pytest.approx(before.item(), rel=1e-5)


def test_the_formulas_have_their_fixed_points() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 5, 8, generator=generator)
    attended = torch.ones(2, 5, dtype=torch.bool)
    assert missed_energy(states, states, attended).tolist() == [0, 0]
    assert missed_energy(torch.zeros_like(states), states, attended).tolist() == pytest.approx([1, 1])
    assert relation_loss(states, states, attended, 2).tolist() == pytest.approx([0, 0], abs=1e-6)
    # Orthogonal maps inside a relation head change no relation.
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    turned = (states.view(2, 5, 2, 4) @ turn).flatten(2)
    assert relation_loss(turned, states, attended, 2).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert relation_loss(turned, states, attended, 4).max() > 1e-3


# In training.


def arguments(folder: Path, **given: Any) -> WidTrainingArguments:
    defaults: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 16, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 1, "teacher_learning_rate": 0,
        "distillation": list(DISTILLED),
    }  # fmt: skip
    return WidTrainingArguments(**{**defaults, **given})


def trained(teacher: PreTrainedModel, config: WidConfig, args: WidTrainingArguments) -> WidTrainer:
    trainer = WidTrainer(model=get_wid_model(teacher, config), args=args, train_dataset=labelled_rows())
    trainer.train()
    return trainer


FAMILIES = [(bert, HALF), (gpt2, WidConfig(hidden_size=12, init="identity")), (llama, HEADS)]


@pytest.mark.parametrize(("make", "config"), FAMILIES, ids=["bert", "gpt2", "llama"])
@pytest.mark.parametrize("loss", DISTILLED)
def test_accumulated_micro_batches_have_the_gradients_of_one_batch(
    make: Any, config: WidConfig, loss: str, tmp_path: Path
) -> None:
    ended = []
    for accumulation in (1, 4, 8):
        args = arguments(
            tmp_path, per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation,
            optim="sgd", max_grad_norm=0.0, distillation=[loss], learning_rate=1.0, max_steps=1,
        )  # fmt: skip
        trainer = trained(make().double(), config, args)
        ended.append(({n: p for n, p in trainer.model.named_parameters()}, trainer.state.log_history[0]["loss"]))
    (whole, loss_whole), *others = ended
    start = dict(get_wid_model(make().double(), config).named_parameters())
    for parts, loss_parts in others:
        assert loss_parts == pytest.approx(loss_whole, rel=1e-6)
        for name, parameter in whole.items():
            assert torch.allclose(parameter, parts[name], atol=1e-6, rtol=0), name
    assert (
        max(float((whole[name] - start[name]).detach().abs().max()) for name in whole) > 1e-2
    )  # that is far above 1e-6


@pytest.mark.parametrize("loss", DISTILLED)
def test_each_loss_goes_down_where_it_is_all_that_trains(loss: str, tmp_path: Path) -> None:
    teacher = bert()
    before = deepcopy(teacher.state_dict())
    model, inputs = get_wid_model(teacher, HALF), labelled_batch(16)
    args = arguments(tmp_path, max_steps=30, distillation=[loss], distillation_weight=1e3, learning_rate=5e-3)
    start = distilled(model, [loss], inputs).item()
    WidTrainer(model=model, args=args, train_dataset=labelled_rows()).train()
    assert distilled(model, [loss], inputs).item() < 0.8 * start
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_weight_scales_what_is_added(tmp_path: Path) -> None:
    plain, once, twice = (
        trained(bert(), HALF, arguments(tmp_path, max_steps=1, **given)).state.log_history[0]["loss"]
        for given in ({"distillation": []}, {}, {"distillation_weight": 2.0})
    )
    assert once > plain
    assert twice - plain == pytest.approx(2 * (once - plain), rel=1e-4)


def test_label_smoothing_takes_the_labels_away_only_from_the_models_own_loss(tmp_path: Path) -> None:
    smooth = {"label_smoothing_factor": 0.1, "max_steps": 1, "distillation": ["logits"]}
    off, on = (
        trained(bert(), HALF, arguments(tmp_path, **{**smooth, **given})).state.log_history[0]["loss"]
        for given in ({"distillation": []}, {})
    )
    model = get_wid_model(bert(), HALF)
    inputs = {name: torch.tensor(values) for name, values in labelled_rows().to_dict().items()}
    assert on - off == pytest.approx(distilled(model, ["logits"], inputs).item(), rel=1e-4)


def test_evaluation_reports_the_models_own_loss(tmp_path: Path) -> None:
    scores = [
        WidTrainer(
            get_wid_model(bert(), HALF), arguments(tmp_path, distillation=wanted), eval_dataset=labelled_rows()
        ).evaluate()
        for wanted in ([], list(DISTILLED))
    ]
    assert scores[0]["eval_loss"] == pytest.approx(scores[1]["eval_loss"], rel=1e-6)


def test_the_teacher_runs_once_a_micro_batch_in_evaluation_mode_without_gradients(tmp_path: Path) -> None:
    teacher, modes = bert(hidden_dropout_prob=0.5), []
    trainer = WidTrainer(
        model=get_wid_model(teacher.train(), HALF),
        args=arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=3),
        train_dataset=labelled_rows(),
    )
    teacher.train()
    teacher.bert.register_forward_hook(
        lambda module, args, output: modes.append((module.training, output.last_hidden_state.requires_grad))
    )
    trainer.train()
    assert modes == [(False, False)] * 6


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_no_hook_and_no_second_copy_remain(tmp_path: Path) -> None:
    teacher = bert()
    teacher(**labelled_batch(), output_hidden_states=True)  # transformers puts hooks of its own, once
    model = get_wid_model(teacher, HALF)
    before = hooks_of(model), hooks_of(teacher)
    trainer = WidTrainer(model=model, args=arguments(tmp_path), train_dataset=labelled_rows())
    trainer.train()
    assert (hooks_of(model), hooks_of(teacher)) == before
    with pytest.raises(ValueError, match="You must specify exactly one of input_ids"):
        trainer.compute_loss(model.train(), {"labels": torch.zeros(2, 3, dtype=torch.long)})
    assert (hooks_of(model), hooks_of(teacher)) == before
    originals = {id(p) for name, p in model.named_parameters() if name.endswith(".original")}
    assert originals <= {id(p) for p in teacher.parameters()}


def checkpointed(folder: Path, reentrant: bool | None) -> WidTrainer:
    model = get_wid_model(bert(), HALF)
    if reentrant is not None:
        student = model.base_model.model
        enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
        enable({"use_reentrant": reentrant})
    args = arguments(folder, max_steps=1, optim="sgd", max_grad_norm=0.0, learning_rate=1.0)
    trainer = WidTrainer(model=model, args=args, train_dataset=labelled_rows())
    trainer.train()
    return trainer


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    plain, saved = (checkpointed(tmp_path, reentrant) for reentrant in (None, False))
    for (name, a), (_, b) in zip(plain.model.named_parameters(), saved.model.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_checkpointing_that_loses_the_gradients_of_states_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match='"use_reentrant": False'):
        checkpointed(tmp_path, True)


def test_a_calibrated_start_is_made_before_anything_is_distilled(tmp_path: Path) -> None:
    config = WidConfig(hidden_size=12, intermediate_size=24, calibration_samples=16)
    trainer = trained(bert(), config, arguments(tmp_path))
    assert trainer.model.base_model.calibrated
    assert trainer.state.log_history[-1]["train_loss"] > 0


@pytest.mark.parametrize(("make", "strategy"), [(bert, "dim"), (bert, "head"), (gpt2, "dim")])
def test_a_progressive_student_is_distilled_while_wide_and_after_it_shrank(
    make: Any, strategy: str, tmp_path: Path
) -> None:
    schedule = WidSchedule(mask_interval=1, mask_increments=2, decay_to_zero_steps=2)
    model = get_wid_model(make(), WidConfig(hidden_size=12, head_strategy=strategy, schedule=schedule))
    inputs = labelled_batch()
    for loss in DISTILLED:  # as long as nothing is dropped the student is the teacher
        assert distilled(model, [loss], inputs).item() == pytest.approx(0, abs=1e-6), loss
    trainer = WidTrainer(model=model, args=arguments(tmp_path, max_steps=8), train_dataset=labelled_rows())
    trainer.train()
    assert not model.base_model.is_wide
    wanted, narrow = model.base_model.teacher(**inputs).logits, model(**inputs).logits
    counted = inputs["labels"] != -100
    if make is gpt2:
        counted = torch.cat([counted[:, 1:], torch.zeros_like(counted[:, :1])], 1)
    expected = logits_loss(narrow[counted], wanted[counted], 2.0).mean().item()
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(expected, rel=1e-4)
    model.zero_grad()
    with trainer._distillation.watching() as student:
        student.output = model(**inputs)
    trainer._distillation.loss(student, trainer._distillation.target(inputs), inputs).backward()
    gradients = [p.grad for name, p in model.named_parameters() if name.endswith(".matrix")]
    assert len(gradients) > 8 and all(grad is not None and grad.abs().max() > 0 for grad in gradients)


# Models whose forward is not the teacher's module by module.


def deberta(**given: Any) -> DebertaV2ForMaskedLM:
    config = DebertaV2Config(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=32, relative_attention=True, position_buckets=4, share_att_key=True,
        pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **given,
    )  # fmt: skip
    return seeded(DebertaV2ForMaskedLM, config)


@pytest.mark.parametrize("rows", [1, 4])
def test_shared_keys_are_compared_where_they_read_hidden_states(rows: int) -> None:
    """They also read the table of relative positions, which has no rows."""
    model = moved(get_wid_model(deberta(), HALF))
    inputs = {name: tensor[:rows] for name, tensor in labelled_batch().items()}
    teacher, student = model.base_model.teacher, model.base_model.model
    wanted, got = (each(**inputs, output_hidden_states=True).hidden_states for each in (teacher, student))
    counted = inputs["attention_mask"].bool()[..., None]
    losses = []
    for at, layer in enumerate(student.deberta.encoder.layer):
        lift = layer.attention.self.query_proj.parametrizations.weight[0].maps["1"].matrix
        error = ((got[at] @ lift - wanted[at]).square() * counted).sum((1, 2))
        losses.append(error / (wanted[at].square() * counted).sum((1, 2)))
    labels = (inputs["labels"] != -100).sum(1)
    expected = [(loss * labels / labels.sum()).sum().item() for loss in losses]
    distillation = Distillation(model, ["hidden"])
    (term,) = distillation.terms
    of_queries = {call: place for call, place in term.readers.items() if call[0].endswith("self.query_proj")}
    assert sorted(of_queries) == [(f"deberta.encoder.layer.{at}.attention.self.query_proj", 0) for at in (0, 1)]
    term.readers = of_queries
    with distillation.watching() as seen:
        seen.output = model(**inputs)
    found = distillation.loss(seen, distillation.target(inputs), inputs)
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert torch.isfinite(distilled(model, ["logits", "hidden", "relations"], inputs))


def wav2vec2(layerdrop: float) -> Wav2Vec2ForCTC:
    config = Wav2Vec2Config(
        vocab_size=20, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, num_feat_extract_layers=2, layerdrop=layerdrop, pad_token_id=0,
        mask_time_prob=0.0, apply_spec_augment=False,
        hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0,
    )  # fmt: skip
    return seeded(Wav2Vec2ForCTC, config)


def opt(layerdrop: float) -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=24,
        max_position_embeddings=32, dropout=0.0, attention_dropout=0.0, layerdrop=layerdrop,
    )  # fmt: skip
    return seeded(OPTForCausalLM, config)


@pytest.mark.parametrize(
    ("make", "losses"), [(wav2vec2, ["hidden", "relations"]), (opt, ["logits", "hidden", "relations"])]
)
def test_a_student_that_skips_layers_is_compared_where_it_ran(make: Any, losses: list[str], tmp_path: Path) -> None:
    """All that is skipped in every step: what is left are the states outside of layers, and no relations."""
    never, always = (
        moved(get_wid_model(make(rate), WidConfig(hidden_size=12, init="identity"))) for rate in (0.0, 1.0)
    )
    inputs: dict[str, Tensor] = labelled_batch()
    if make is wav2vec2:
        inputs = {"input_values": torch.randn(4, 800, generator=torch.Generator().manual_seed(0))}
    whole = distilled(never.train(), losses, inputs)
    assert distilled(always.eval(), losses, inputs).item() == pytest.approx(whole.item(), rel=1e-5)
    assert 0 < distilled(always.train(), ["hidden"], inputs).item() != pytest.approx(whole.item(), rel=1e-3)
    assert distilled(always.train(), ["relations"], inputs).item() == 0


def test_a_training_with_layerdrop_goes_through(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=8, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    trainer = trained(opt(0.5), WidConfig(hidden_size=12, init="identity"), args)
    assert trainer.state.global_step == 8


def test_relations_are_those_of_the_last_layer_that_ran() -> None:
    model, inputs = moved(get_wid_model(opt(0.0), WidConfig(hidden_size=12, init="identity"))), labelled_batch()
    distillation = Distillation(model, ["relations"])
    target = distillation.target(inputs)
    found = []
    for layers in (3, 2, 1):
        with distillation.watching() as student:
            student.output = model(**inputs)
        for at in range(layers, 3):
            del student.returned[f"model.decoder.layers.{at}.self_attn.v_proj", 0]
        found.append(distillation.loss(student, target, inputs).item())
    assert len(set(found)) == 3 and all(loss > 0 for loss in found)


def test_a_forward_that_cannot_be_watched_is_refused() -> None:
    model, inputs = get_wid_model(bert(), HALF), labelled_batch()
    distillation = Distillation(model, ["hidden"])
    with distillation.watching() as student:
        student.output = model.base_model.model.forward(**inputs)  # past the hooks, as a compiled one runs
    with pytest.raises(TrainingError, match='Distil "logits" only'):
        distillation.loss(student, distillation.target(inputs), inputs)


# Tasks.


def test_label_smoothing_and_distillation_add_up(tmp_path: Path) -> None:
    inputs = labelled_batch()
    model = moved(get_wid_model(bert(), HALF))
    found = {}
    for smoothing in (0.0, 0.2):
        for losses in ([], list(DISTILLED)):
            args = arguments(tmp_path, label_smoothing_factor=smoothing, distillation=losses, distillation_weight=0.5)
            trainer = WidTrainer(model=model, args=args, train_dataset=labelled_rows())
            found[smoothing, bool(losses)] = trainer.compute_loss(model.train(), dict(inputs)).item()
    term = 0.5 * distilled(model, list(DISTILLED), inputs).item()
    for smoothing in (0.0, 0.2):
        assert found[smoothing, True] == pytest.approx(found[smoothing, False] + term, rel=1e-5)
    assert found[0.2, False] != pytest.approx(found[0.0, False], rel=1e-3)


@pytest.mark.parametrize("accumulation", [4, 8])
@pytest.mark.parametrize("make", [bert, gpt2])
def test_label_smoothing_and_distillation_accumulate(make: Any, accumulation: int, tmp_path: Path) -> None:
    ended = []
    for pieces in (1, accumulation):
        args = arguments(
            tmp_path, max_steps=1, label_smoothing_factor=0.2, per_device_train_batch_size=16 // pieces,
            gradient_accumulation_steps=pieces, optim="sgd", max_grad_norm=0.0, learning_rate=1.0,
        )  # fmt: skip
        trainer = trained(make(), WidConfig(hidden_size=12, init="identity"), args)
        ended.append(trainer)
    whole, parts = ended
    assert parts.state.log_history[0]["loss"] == pytest.approx(whole.state.log_history[0]["loss"], rel=1e-4)
    for (name, a), (_, b) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5), name


@pytest.mark.parametrize(("classes", "labels"), [(3, torch.tensor([[0.0, 1, 1]] * 4)), (2, torch.rand(4, 2))])
def test_labels_for_each_class_have_no_logits_to_compare_but_states(classes: int, labels: Tensor) -> None:
    from transformers import BertForSequenceClassification

    model = moved(get_wid_model(bert(BertForSequenceClassification, num_labels=classes), HALF))
    inputs = {**labelled_batch(), "labels": labels}
    with pytest.raises(DataError, match=rf"each of {classes} outputs.*Remove \"logits\""):
        distilled(model, ["logits"], inputs)
    by_row = distilled(model, ["hidden", "relations"], inputs).item()
    inputs["labels"] = torch.zeros_like(labels)  # every row counts the same, whatever its labels are
    assert by_row == pytest.approx(distilled(model, ["hidden", "relations"], inputs).item(), rel=1e-6) and by_row > 0


def test_a_regression_distils_states() -> None:
    from transformers import BertForSequenceClassification

    model = moved(get_wid_model(bert(BertForSequenceClassification, num_labels=1), HALF))
    inputs = {**labelled_batch(), "labels": torch.tensor([0.5, -100.0, 2.0, 1.0])}  # -100 is a number like others
    found = distilled(model, ["hidden"], inputs).item()
    assert found == pytest.approx(distilled(model, ["hidden"], {**inputs, "labels": torch.zeros(4)}).item(), rel=1e-6)


# What is refused.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"distillation": ["logit"]},
            r"\['logit'\] is unknown; it takes some of \"logits\" \(.*; \"hidden\" \(.*; \"relations\" \(",
        ),
        ({"teacher_learning_rate": None}, r"set teacher_learning_rate=0 \(it is None\)"),
        ({"teacher_learning_rate": 1e-5}, r"must stay as they are.*\(it is 1e-05\)"),
        ({"distillation_weight": 0.0}, "distillation_weight=0.0 must be above 0"),
        ({"distillation_temperature": float("nan")}, "distillation_temperature=nan must be above 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        arguments(tmp_path, **given)


def test_the_command_line_takes_several_losses(tmp_path: Path) -> None:
    parser = HfArgumentParser(WidTrainingArguments)
    words = ["--output_dir", str(tmp_path), "--use_cpu", "--teacher_learning_rate", "0"]
    (args,) = parser.parse_args_into_dataclasses([*words, "--distillation", "logits", "hidden"])
    assert args.distillation == ["logits", "hidden"]
    (args,) = parser.parse_args_into_dataclasses(words)
    assert args.distillation == []


@pytest.mark.parametrize(
    ("model_class", "loss", "words"),
    [
        (BertModel, "logits", r'BertModel returns no logits.*cannot compare "logits".*also takes "hidden"'),
        (BertForQuestionAnswering, "logits", "BertForQuestionAnswering returns no logits"),
    ],
)
def test_a_teacher_without_logits_is_refused(model_class: Any, loss: str, words: str) -> None:
    with pytest.raises(TeacherError, match=words):
        Distillation(get_wid_model(bert(model_class), HALF), [loss])


def test_a_regression_has_nothing_to_compare() -> None:
    from transformers import BertForSequenceClassification

    with pytest.raises(TeacherError, match="no logits of two or more classes"):
        Distillation(get_wid_model(bert(BertForSequenceClassification, num_labels=1), HALF), ["logits"])


def test_a_teacher_without_hidden_states_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = bert()
    model = get_wid_model(teacher, HALF)
    forward = teacher.forward
    monkeypatch.setattr(teacher, "forward", lambda output_hidden_states, **given: forward(**given))
    with pytest.raises(TeacherError, match=r'returns no hidden states.*Remove "hidden".*"logits" and "relations"'):
        Distillation(model, ["hidden"])


def test_a_teacher_without_attention_has_no_relations() -> None:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        vocab_size=60, hidden_size=24, num_hidden_layers=1, num_heads=4, head_dim=12, n_groups=1, state_size=8,
        chunk_size=8, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = get_wid_model(Mamba2ForCausalLM(config), WidConfig(hidden_size=12, init="identity"))
    with pytest.raises(TeacherError, match="has no attention whose values"):
        Distillation(model, ["relations"])


def test_an_encoder_with_a_decoder_distils_its_logits_only() -> None:
    config = T5Config(vocab_size=60, d_model=24, d_kv=6, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = moved(get_wid_model(seeded(T5ForConditionalGeneration, config), WidConfig(hidden_size=12, init="identity")))
    inputs = labelled_batch()
    chosen = inputs["labels"] != -100
    wanted, got = (m(**inputs).logits[chosen] for m in (model.base_model.teacher.eval(), model.eval()))
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(
        logits_loss(got, wanted, 2.0).mean().item(), rel=1e-5
    )
    with pytest.raises(TeacherError, match=r"T5ForConditionalGeneration is an encoder-decoder model.*remove"):
        Distillation(model, ["logits", "hidden"])


def test_labels_that_do_not_go_with_logits_are_refused() -> None:
    inputs = labelled_batch()
    model = get_wid_model(bert(), HALF)
    distillation = Distillation(model, ["logits"])
    with distillation.watching() as student:
        student.output = model(**inputs)
    inputs["labels"] = inputs["labels"][:, :3]
    with pytest.raises(DataError, match=r"logits \(4, 9, 60\) take labels \(4, 9\), but labels or mask are \(4, 3\)"):
        distillation.loss(student, distillation.target({**inputs, "labels": None}), inputs)


def test_following_and_distillation_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(WidError, match=r"FollowingTrainer trains with the loss .states.*alone"):
        FollowingTrainer(get_wid_model(bert(BertModel), HALF), arguments(tmp_path, distillation=["hidden"]))


def test_kl_of_logits_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    expected = 9 * functional.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    assert logits_loss(student, teacher, 3.0).mean().item() == pytest.approx(expected.item(), rel=1e-5)
