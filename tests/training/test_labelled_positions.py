"""Heads that run on labelled positions only: the stock loss and gradients, and no tensor of all logits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, COMMON
from datasets import Dataset
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import CONFIGS, hooks, noisy
from training_runs import arguments
from transformers import PreTrainedModel

from wid_hf import WidConfig, WidTrainer, get_wid_model
from wid_hf.inputs import tokenize
from wid_hf.rows import load_texts
from wid_hf.scores import masked_batches, masked_lm_score
from wid_hf.tools.teachers import load_teacher, load_tokenizer
from wid_hf.training.labelled_positions import LabelledPositions

VOCABULARY = COMMON["vocab_size"]
GROUPED = {"num_key_value_heads": 2, **COMMON}
OTHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "deberta": lambda: hf.DebertaForMaskedLM(hf.DebertaConfig(**COMMON)),
    "deberta-v2": lambda: hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**COMMON)),
    "sparse-modernbert": lambda: hf.ModernBertForMaskedLM(
        hf.ModernBertConfig(global_attn_every_n_layers=2, sparse_prediction=True, **COMMON)
    ),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(head_dim=12, final_logit_softcapping=3.0, **GROUPED)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(logits_scaling=4.0, **GROUPED)),
    "bert-decoder": lambda: hf.BertLMHeadModel(hf.BertConfig(is_decoder=True, **COMMON)),
    "mixtral": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(num_local_experts=2, output_router_logits=True, **GROUPED)
    ),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(word_embed_proj_dim=48, ffn_dim=96, **COMMON)),
    "xlm": lambda: hf.XLMWithLMHeadModel(hf.XLMConfig(emb_dim=48, n_layers=2, n_heads=4, vocab_size=VOCABULARY)),
}
WITHOUT_HEAD = ("t5", "vit")  # as transformers tells: no body of its own, or no language-model head
# Mixtral adds a loss of its routers, OPT calls a part of its body, XLM is listed with causal models and shifts nothing.
STOCK_INSTEAD = {("mixtral", "pieces"), *((name, way) for name in ("opt", "xlm") for way in ("together", "pieces"))}
LIMITS = {"together": 10**9, "pieces": 5 * VOCABULARY}


def built(name: str) -> PreTrainedModel:
    if name in ARCHITECTURES:
        return ARCHITECTURES[name].build()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OTHERS[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
    return model


def batch(share: float = 0.4, rows: int = 4, length: int = 12) -> dict[str, Tensor]:
    """Tokens, a padded row and labels for a share of the positions."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    asked = torch.rand(rows, length, generator=generator) < share
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(asked, ids, -100)}


def loss_and_gradients(
    model: nn.Module, positions: LabelledPositions | None, inputs: dict[str, Tensor], **given: Any
) -> tuple[Tensor, Tensor]:
    """Return the loss and all gradients as one vector; those that are None as zeros."""
    model.zero_grad()
    if positions is None:
        loss = model(**inputs, **given).loss
    else:
        with positions.only(inputs):
            loss = model(**inputs, **given).loss
    loss.backward()
    return loss.detach(), torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    )


def equal(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> bool:
    """Return whether tensors differ by less than `tolerance` of the largest entry."""
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor made."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(t.numel() for t in tree_leaves(made) if isinstance(t, Tensor))])
        return made


@contextmanager
def largest_tensor() -> Iterator[Largest]:
    with Largest() as largest:
        yield largest


@pytest.mark.parametrize("way", LIMITS)
@pytest.mark.parametrize("name", [name for name in [*ARCHITECTURES, *OTHERS] if name not in WITHOUT_HEAD])
def test_loss_and_gradients_are_those_of_the_stock_forward(
    name: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs = built(name), batch()
    stock, gradients = loss_and_gradients(model, None, inputs)
    positions = LabelledPositions(model, LIMITS[way])
    before = hooks(model)
    found, of_found = loss_and_gradients(model, positions, inputs)
    assert equal(found, stock)
    assert equal(of_found, gradients, 3e-6)
    assert hooks(model) == before
    refused = [record.getMessage() for record in caplog.records if record.name == "wid_hf.training.labelled_positions"]
    assert bool(refused) is ((name, way) in STOCK_INSTEAD)
    assert all(type(model).__name__ in line for line in refused)


@pytest.mark.parametrize("way", LIMITS)
@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "albert", "modernbert", "gpt2", "llama"])
def test_students_have_the_loss_and_gradients_of_their_stock_forward(name: str, way: str) -> None:
    row = ARCHITECTURES[name]
    model = get_wid_model(row.build(), row.config("head"))
    noisy(model)
    inputs = batch()
    stock, gradients = loss_and_gradients(model, None, inputs)
    positions = LabelledPositions(model, LIMITS[way])
    found, of_found = loss_and_gradients(model, positions, inputs)
    assert equal(found, stock)
    assert equal(of_found, gradients, 3e-6)
    with positions.only(inputs) as does:
        assert does


@pytest.mark.parametrize("way", LIMITS)
def test_a_student_that_is_still_wide_does_so_too(way: str, tiny_bert: PreTrainedModel) -> None:
    model = get_wid_model(tiny_bert, WidConfig(**CONFIGS["progressive"]))
    noisy(model)
    inputs = {name: tensor % 60 if name == "input_ids" else tensor for name, tensor in batch().items()}
    inputs["labels"] = torch.where(inputs["labels"] < 0, -100, inputs["input_ids"])
    stock, gradients = loss_and_gradients(model, None, inputs)
    found, of_found = loss_and_gradients(model, LabelledPositions(model, 5 if way == "pieces" else 10**9), inputs)
    assert equal(found, stock)
    assert equal(of_found, gradients, 3e-6)


@pytest.mark.parametrize("way", LIMITS)
@pytest.mark.parametrize("name", ["gpt2", "modernbert"])
def test_a_loss_that_is_divided_by_the_labels_of_a_whole_step_is_the_same(name: str, way: str) -> None:
    model, inputs = built(name), batch()
    items = torch.tensor(57)
    stock, gradients = loss_and_gradients(model, None, inputs, num_items_in_batch=items)
    found, of_found = loss_and_gradients(model, LabelledPositions(model, LIMITS[way]), inputs, num_items_in_batch=items)
    assert equal(found, stock)
    assert equal(of_found, gradients, 3e-6)


@pytest.mark.parametrize("way", LIMITS)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_mixed_precision_has_the_stock_loss_within_its_rounding(name: str, way: str) -> None:
    row = ARCHITECTURES[name]
    model, inputs = get_wid_model(row.build(), row.config("head")), batch()
    with torch.autocast("cpu", torch.bfloat16):
        stock, gradients = loss_and_gradients(model, None, inputs)
        found, of_found = loss_and_gradients(model, LabelledPositions(model, LIMITS[way]), inputs)
    assert equal(found, stock, 1e-3)
    assert equal(of_found, gradients, 2e-2)


@pytest.mark.parametrize("way", LIMITS)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradient_checkpointing_changes_nothing(name: str, way: str) -> None:
    row = ARCHITECTURES[name]
    model, inputs = get_wid_model(row.build(), row.config("head")), batch()
    stock, gradients = loss_and_gradients(model, None, inputs)
    student = model.base_model.model
    enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    found, of_found = loss_and_gradients(model, LabelledPositions(model, LIMITS[way]), inputs)
    assert equal(found, stock)
    assert equal(of_found, gradients, 3e-6)


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "llama"])
def test_a_batch_without_labels_costs_nothing(name: str) -> None:
    model, inputs = built(name), batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    for given in ({}, {"num_items_in_batch": torch.tensor(0)}):
        if given and name == "bert":
            continue
        loss, gradients = loss_and_gradients(model, LabelledPositions(model), inputs, **given)
        assert loss == 0
        assert not gradients.any()


def test_the_trial_leaves_no_trace(tiny_bert: PreTrainedModel) -> None:
    tiny_bert.train()
    tiny_bert.bert.embeddings.eval()
    modes = [module.training for module in tiny_bert.modules()]
    inputs = {"input_ids": torch.arange(24).view(2, 12) + 5}
    inputs["labels"] = inputs["input_ids"].clone().masked_fill(torch.arange(12) % 4 > 0, -100)
    state = torch.get_rng_state()
    with LabelledPositions(tiny_bert).only(inputs) as does:
        assert does
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in tiny_bert.modules()] == modes
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in tiny_bert.parameters())


class Doubled(hf.BertForMaskedLM):
    """A model whose loss looks at positions without labels."""

    def forward(self, **given: Any) -> Any:
        output = super().forward(**given)
        output.loss = output.loss + output.logits.mean()
        return output


def test_a_model_whose_loss_would_be_another_one_runs_as_it_is_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Doubled(hf.BertConfig(**COMMON)).eval()
    positions, inputs = LabelledPositions(model), batch()
    for _ in range(2):
        with positions.only(inputs) as does:
            assert not does
            assert model(**inputs).logits.shape == (4, 12, VOCABULARY)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("Doubled does not run its head on labelled positions only: its loss is [")


# In training and evaluation.


def rows(share: float, count: int = 8, length: int = 12, top: int = 60) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, top, (count, length), generator=generator)
    labels = torch.where(torch.rand(count, length, generator=generator) < share, ids, -100)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def trainer(model: nn.Module, folder: Path, data: Dataset, **given: Any) -> WidTrainer:
    others = {name: given.pop(name) for name in ("compute_metrics", "compute_loss_func") if name in given}
    defaults = {"max_steps": 2, "per_device_eval_batch_size": 4, "optim": "sgd", "max_grad_norm": 0.0}
    args = arguments(folder, **{**defaults, **given})
    return WidTrainer(model=model, args=args, train_dataset=data, eval_dataset=data, **others)


def wid_model(name: str) -> nn.Module:
    """A student with so many words that no other tensor is as large as its logits."""
    common = {**COMMON, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 400, "num_hidden_layers": 1}
    made: dict[str, Callable[[], PreTrainedModel]] = {
        "bert": lambda: hf.BertForMaskedLM(
            hf.BertConfig(**common, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        ),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**common, tie_word_embeddings=True)),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = made[name]()
    return get_wid_model(teacher, WidConfig(hidden_size=8, intermediate_size=16, head_strategy="head", init="identity"))


DISTILLED = {"distillation": ["logits", "relations"], "teacher_learning_rate": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share", "given"),
    [
        ("bert", 0.2, {}),
        ("bert", 1.0, {}),
        ("llama", 1.0, {}),
        ("llama", 0.3, {}),
        ("bert", 0.2, DISTILLED),
        ("llama", 0.3, DISTILLED),
    ],
)
def test_neither_training_nor_evaluation_holds_all_logits(
    name: str, share: float, given: dict[str, Any], tmp_path: Path
) -> None:
    all_logits = 4 * 12 * 400
    data = rows(share, top=400)
    sizes = {}
    for full in (False, True):
        run = trainer(wid_model(name), tmp_path, data, full_logits=full, **given)
        for phase in (run.train, run.evaluate):
            with largest_tensor() as largest:
                phase()
            sizes[full, phase.__name__] = largest.size
    assert sizes[False, "train"] < all_logits
    assert sizes[False, "evaluate"] < all_logits
    assert sizes[True, "train"] >= all_logits  # so the two above could fail
    assert sizes[True, "evaluate"] >= all_logits


def test_scoring_a_masked_language_model_holds_no_logits_of_all_positions(tiny_bert: PreTrainedModel) -> None:
    inputs = {name: tensor for name, tensor in batch(0.2, rows=8).items() if name != "labels"}
    inputs["input_ids"] = inputs["input_ids"] % 60
    labels = torch.where(batch(0.2, rows=8)["labels"] < 0, -100, inputs["input_ids"])
    with torch.no_grad():
        logits = tiny_bert(**inputs).logits[labels != -100]
    expected = nn.functional.cross_entropy(logits, labels[labels != -100]).item()
    tiny_bert.resize_token_embeddings(600, mean_resizing=False)
    with torch.no_grad():
        tiny_bert.cls.predictions.decoder.bias[60:] = -1e4
    with largest_tensor() as largest:
        score = masked_lm_score(tiny_bert, [{**inputs, "labels": labels}])
    assert score.loss == pytest.approx(expected, rel=1e-6)
    assert score.tokens == len(logits)
    assert score.accuracy == pytest.approx((logits.argmax(-1) == labels[labels != -100]).double().mean().item())
    assert largest.size < 8 * 12 * 600


@pytest.mark.slow
@pytest.mark.parametrize("common", [{}, DISTILLED], ids=["alone", "distilled"])
@pytest.mark.parametrize(("name", "share"), [("bert", 0.3), ("llama", 0.9)])
def test_training_ends_where_it_ends_with_full_logits(
    name: str, share: float, common: dict[str, Any], tmp_path: Path
) -> None:
    data = rows(share, top=400)
    ends = []
    for given in ({"full_logits": True}, {}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}):
        run = trainer(wid_model(name), tmp_path, data, **common, **given)
        run.train()
        ends.append((run.evaluate()["eval_loss"], torch.cat([p.detach().flatten() for p in run.model.parameters()])))
    for loss, weights in ends[1:]:
        assert loss == pytest.approx(ends[0][0], rel=1e-6)
        assert torch.allclose(weights, ends[0][1], atol=1e-6)


def test_who_looks_at_logits_gets_all_of_them(tmp_path: Path) -> None:
    shapes = []

    def metrics(prediction: Any) -> dict[str, float]:
        shapes.append(prediction.predictions.shape)
        return {}

    data = rows(0.3, top=400)
    run = trainer(wid_model("bert"), tmp_path, data, compute_metrics=metrics)
    metered = run.evaluate()["eval_loss"]
    assert shapes == [(8, 12, 400)]
    inputs = {name: torch.tensor(data[name]) for name in data.column_names}
    assert run.compute_loss(run.model, inputs, return_outputs=True)[1].logits.shape == (8, 12, 400)
    assert trainer(wid_model("bert"), tmp_path, data).evaluate()["eval_loss"] == pytest.approx(metered, rel=1e-6)


def test_losses_of_the_users_own_see_all_logits(tmp_path: Path) -> None:
    shapes = []

    def own(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        shapes.append(tuple(outputs.logits.shape))
        return outputs.logits.square().mean()

    trainer(wid_model("bert"), tmp_path, rows(0.3, top=400), compute_loss_func=own, max_steps=1).train()
    assert shapes == [(4, 12, 400)]
    smoothed = trainer(wid_model("bert"), tmp_path, rows(0.3, top=400), label_smoothing_factor=0.1)
    assert smoothed.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_micro_batches_without_labels_do_not_stop_a_training(name: str, tmp_path: Path) -> None:
    data = rows(0.5, count=4, top=400)
    labels = data["labels"][:]
    labels[2] = [-100] * 12
    run = trainer(
        wid_model(name),
        tmp_path,
        data.remove_columns("labels").add_column("labels", labels),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        max_steps=-1,
    )
    losses = [entry["loss"] for entry in (run.train(), run.state.log_history)[1] if "loss" in entry]
    assert len(losses) == 4
    assert losses.count(0.0) == 1


# Real teachers.


@pytest.mark.slow
def test_the_reaction_teacher_has_its_stock_loss(reaction_bert_dir: Path, uspto50k: Path) -> None:
    model, tokenizer = load_teacher(str(reaction_bert_dir)), load_tokenizer(str(reaction_bert_dir))
    texts = load_texts(str(uspto50k / "valid.jsonl.gz")).select(range(8))
    (inputs,) = masked_batches(tokenize(texts, tokenizer, 128), tokenizer, 8, seed=0)
    narrow = get_wid_model(deepcopy(model), WidConfig(hidden_size=model.config.hidden_size // 2, init="identity"))
    for each in (model, narrow):
        stock, gradients = loss_and_gradients(each, None, inputs)
        for limit in (2**25, 50 * model.config.vocab_size):
            found, of_found = loss_and_gradients(each, LabelledPositions(each, limit), inputs)
            assert equal(found, stock)
            assert equal(of_found, gradients, 1e-5)


@pytest.mark.slow
def test_smollm2_has_its_stock_loss_in_pieces(smollm2_dir: Path) -> None:
    model = load_teacher(str(smollm2_dir))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (2, 24), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    stock, gradients = loss_and_gradients(model, None, inputs)
    found, of_found = loss_and_gradients(model, LabelledPositions(model, 10 * model.config.vocab_size), inputs)
    assert equal(found, stock)
    assert equal(of_found, gradients, 1e-5)
