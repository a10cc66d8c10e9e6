"""The calibrated start: every read is the least-squares fit to the teacher's, for every family."""

from __future__ import annotations

import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY, Architecture, every_case
from peft import PeftModel
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, PreTrainedModel

from wid_hf import CalibrationConfig, DataError, WidConfig, get_wid_model
from wid_hf.calibration.moments import Regression
from wid_hf.calibration.norm_scale import divergence
from wid_hf.inputs import tokenize
from wid_hf.layers import folded_weights
from wid_hf.rows import load_texts
from wid_hf.scores import masked_batches, masked_lm_score
from wid_hf.tools.teachers import load_teacher, load_tokenizer

HALF = {"hidden_size": 12, "intermediate_size": 24}
LAYER = "bert.encoder.layer.1"
TABLE = "bert.embeddings.word_embeddings.weight"


def batch(rows: int = 24, length: int = 10, seed: int = 0, vocabulary: int = 60) -> dict[str, Tensor]:
    """Random tokens; the last rows are padded."""
    ids = torch.randint(5, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[-rows // 4 :, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def data_for(row: Architecture, count: int, first_seed: int = 0) -> list[dict[str, Any]]:
    """Batches for one family, like its example inputs but larger."""
    made = []
    for seed in range(first_seed, first_seed + count):
        given: dict[str, Any] = {"use_cache": False} if "use_cache" in row.inputs else {}
        for at, (name, tensor) in enumerate(row.inputs.items()):
            if name == "pixel_values":
                g = torch.Generator().manual_seed(seed)
                given[name] = torch.randn(16, *tensor.shape[1:], generator=g)
            elif name != "use_cache":
                given |= {name: batch(seed=100 * at + seed, vocabulary=VOCABULARY)["input_ids"]}
        made.append(given)
    return made


def outputs(model: nn.Module, batches: list[dict[str, Any]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**each).logits.flatten() for each in batches])


@pytest.fixture
def teacher(tiny_bert: BertForMaskedLM) -> BertForMaskedLM:
    """A tiny BERT whose every weight matters."""
    with torch.no_grad():
        for seed, parameter in enumerate(tiny_bert.parameters()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return tiny_bert


def calibrated(teacher: PreTrainedModel, batches: list[dict[str, Any]], *, pca: bool = True, **words: Any) -> PeftModel:
    model = get_wid_model(teacher, WidConfig(**{**HALF, **words}))
    model.base_model.calibrate(batches, pca=pca)
    return model


def matrices(model: PeftModel) -> dict[str, Tensor]:
    return {n: p.clone() for n, p in model.named_parameters() if n.endswith((".matrix", ".shift"))}


@every_case
def test_every_family_gains_from_reconstruction_and_merges_exactly(family: str, strategy: str) -> None:
    row = ARCHITECTURES[family]
    model = get_wid_model(row.build(), row.config(strategy, init="calibrated"), example_inputs=row.inputs)
    held_out = data_for(row, 2, first_seed=50)
    wanted = outputs(model.base_model.teacher, held_out)

    def error() -> float:
        return float((outputs(model, held_out) - wanted).square().sum() / wanted.square().sum())

    model.base_model.calibrate(data_for(row, 6), reconstruction=False, head_svd=False)
    selected = error()
    model.base_model.calibrate(data_for(row, 6))
    assert error() < 0.9 * selected
    sites = model.base_model.calibration.inputs
    assert len(sites) >= 8 and all(site.after <= site.before + 1e-6 for site in sites if not site.note)
    assert (outputs(model, held_out) - outputs(model.merge_and_unload(), held_out)).abs().max() == 0


def reads(model: nn.Module, names: list[str], batches: list[dict[str, Any]]) -> dict[str, Tensor]:
    """What each linear module reads at positions that are not padding, `(positions, size)`."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    mask: list[Tensor] = []

    def keep(name: str) -> Any:
        return lambda module, args: seen[name].append(args[0][mask[-1]])

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    with torch.no_grad():
        for each in batches:
            mask.append(each["attention_mask"].bool())
            model(**each)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@torch.no_grad()
@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_every_lift_is_the_least_squares_fit_of_what_the_finished_student_reads(
    teacher: BertForMaskedLM, strategy: str
) -> None:
    teacher = teacher.double()
    data = [batch(seed=seed) for seed in range(3)]
    settings = CalibrationConfig(ridge=1e-13)
    model = calibrated(teacher, data, pca=False, head_strategy=strategy, calibration_config=settings)
    student = model.base_model.model
    made = folded_weights(student)
    records = [site for site in model.base_model.calibration.inputs if site.weight != TABLE]
    sites = [record.weight.removesuffix(".weight") for record in records]
    assert len(sites) == 13
    theirs, mine = reads(teacher, sites, data), reads(student, sites, data)
    for site, record in zip(sites, records, strict=True):
        design = torch.cat([mine[site], torch.ones(len(mine[site]), 1)], 1)
        exact = torch.linalg.lstsq(design, theirs[site]).solution.T
        # What a normalisation writes is collinear, so only what is made of it is unique.
        rows = made[f"{site}.weight"].maps["0"].matrix
        wanted = teacher.get_submodule(site)(design @ exact.T) @ rows.T
        assert torch.allclose(student.get_submodule(site)(mine[site]), wanted, atol=1e-5), site
        left = theirs[site] - design @ exact.T
        about = theirs[site] - theirs[site].mean(0)
        assert record.after == pytest.approx(float(left.square().sum() / about.square().sum()), rel=1e-5)
        assert record.positions == len(left) == sum(int(each["attention_mask"].sum()) for each in data)


@torch.no_grad()
@pytest.mark.parametrize(
    "family, head, pca",
    [
        # Turned ones have what stands before the scores fitted to these by gradient, if layers can be cut out.
        ("bert", "cls.predictions.decoder", False),
        ("gpt2", "lm_head", False),
        *(("t5", "lm_head", pca) for pca in (True, False)),
    ],
)
def test_what_a_tied_decoder_reads_is_scaled_so_that_its_logits_are_the_best(family: str, head: str, pca: bool) -> None:
    row = ARCHITECTURES[family]
    teacher = row.build().double()
    data = data_for(row, 3)
    model = get_wid_model(
        teacher,
        row.config("dim", init="calibrated", calibration_config=CalibrationConfig(ridge=1e-13)),
        example_inputs=row.inputs,
    )
    model.base_model.calibrate(data, pca=pca)
    *_, site = model.base_model.calibration.inputs
    student = model.merge_and_unload()
    theirs, mine = (each(head, owner, data) for each, owner in ((inputs, teacher), (inputs, student)))
    table = student.get_submodule(head).weight
    wanted, made = theirs @ teacher.get_submodule(head).weight.T, mine @ table.T
    wanted, made = (each - each.mean(-1, keepdim=True) for each in (wanted, made))  # a softmax knows no height
    missed = wanted - made
    # No scale of any index makes the squared error smaller: its derivatives are zero.
    slopes = ((missed @ (table - table.mean(0))) * mine).sum(0) / (made.norm() * missed.norm())
    assert slopes.abs().max() < 1e-6
    assert site.after == pytest.approx(float(missed.square().sum() / wanted.square().sum()), rel=1e-5)
    assert site.after < (1.0 if pca else 0.98) * site.before and not site.note  # a turned table is fitted to it already


def test_a_scale_that_takes_the_softmax_away_from_the_teachers_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([1.0, 2.0])  # without, with the scale
    monkeypatch.setattr("wid_hf.calibration.norm_scale.divergence", lambda *_: next(answers))
    row = ARCHITECTURES["bert"]
    model = get_wid_model(row.build(), row.config("dim", init="calibrated"), example_inputs=row.inputs)
    model.base_model.calibrate(data_for(row, 3), pca=False)
    *_, site = model.base_model.calibration.inputs
    assert site.note == "scores are nearer without scaling" and site.after == site.before
    norm = folded_weights(model.base_model.model)["cls.predictions.transform.LayerNorm.weight"].maps["0"]
    assert torch.equal(norm.factors, torch.ones_like(norm.factors))


def test_the_divergence_of_scores_is_that_of_their_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    table, bias, x, y, columns = (
        torch.randn(*shape, generator=generator) for shape in ((7, 5), (7,), (11, 5), (11, 3), (5, 3))
    )
    wanted = torch.distributions.Categorical(logits=x @ table.T + bias)
    found = torch.distributions.Categorical(logits=y @ columns.T @ table.T + bias)
    expected = torch.distributions.kl_divergence(wanted, found).mean()
    assert divergence(table, bias, x, y, columns) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(table, None, x, x, torch.eye(5)) == pytest.approx(0, abs=1e-6)


def inputs(head: str, model: nn.Module, batches: list[dict[str, Any]]) -> Tensor:
    """What one module reads, `(positions, size)`."""
    seen: list[Tensor] = []
    handle = model.get_submodule(head).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for each in batches:
        model(**each)
    handle.remove()
    return torch.cat([tensor.flatten(0, -2) for tensor in seen])


def test_heads_are_turned_together_where_only_products_meet_them(teacher: BertForMaskedLM) -> None:
    model = calibrated(teacher, [batch(rows=60)], pca=False)
    made = folded_weights(model.base_model.model)

    def is_selection(name: str, axis: int) -> bool:
        matrix = made[f"{LAYER}.{name}.weight"].maps[str(axis)].matrix
        return bool((matrix.count_nonzero(1) == 1).all())

    assert not any(is_selection(f"attention.self.{name}", 0) for name in ("query", "key", "value"))
    assert is_selection("attention.output.dense", 0) and is_selection("intermediate.dense", 0)
    turned = made[f"{LAYER}.attention.self.value.weight"].maps["0"].matrix.view(4, 3, 4, 6)
    for head in range(4):  # no head takes anything from another
        others = [other for other in range(4) if other != head]
        assert turned[head][:, others].abs().max() == 0
    model.base_model.calibrate([batch(rows=60)], head_svd=False, pca=False)
    assert is_selection("attention.self.query", 0)


@torch.no_grad()
def test_the_logits_of_every_head_are_the_best_of_their_rank(teacher: BertForMaskedLM) -> None:
    teacher, data = teacher.double(), [batch(rows=60)]
    made = folded_weights(calibrated(teacher, data).base_model.model)
    own = "bert.encoder.layer.0.attention.self"
    stream = reads(teacher, [f"{own}.query"], data)[f"{own}.query"]
    written = {}
    for name in ("query", "key"):
        maps = made[f"{own}.{name}.weight"].maps["0"].matrix.view(4, 3, 4, 6)
        written[name] = teacher.get_submodule(f"{own}.{name}")(stream).view(-1, 4, 6), maps
    (queries, left), (keys, right) = written["query"], written["key"]
    keys = keys - keys.mean(0)  # softmax takes no notice of a shift of all keys
    for head in range(4):
        a, b = (torch.linalg.cholesky(x[:, head].T @ x[:, head] / len(x)) for x in (queries, keys))
        kept = left[head, :, head].T @ right[head, :, head] / (3 / 6) ** 0.5  # the scale's ratio is on the queries
        error = (a.T @ (torch.eye(6) - kept) @ b).square().sum()
        best = torch.linalg.svdvals(a.T @ b)[3:].square().sum()
        assert float(error) == pytest.approx(float(best), rel=1e-3)


def test_rotary_heads_are_never_turned() -> None:
    row = ARCHITECTURES["llama"]
    model = get_wid_model(row.build(), row.config("head", init="calibrated"), calibration_data=data_for(row, 3))
    made = folded_weights(model.base_model.model)
    for name in ("q_proj", "k_proj", "v_proj"):
        matrix = made[f"model.layers.0.self_attn.{name}.weight"].maps["0"].matrix
        assert (matrix.count_nonzero(1) == 1).all()


def test_garbage_at_padded_positions_changes_nothing(teacher: BertForMaskedLM) -> None:
    clean = batch(rows=40)
    garbage = {**clean, "input_ids": clean["input_ids"].where(clean["attention_mask"].bool(), 7)}
    first, second = (matrices(calibrated(teacher, [each])) for each in (clean, garbage))
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)
    garbage.pop("attention_mask")
    third = matrices(calibrated(teacher, [garbage]))
    assert not all(torch.allclose(first[name], third[name], atol=1e-2) for name in first)


def test_calibrating_twice_is_calibrating_once_and_order_does_not_matter(teacher: BertForMaskedLM) -> None:
    data = [batch(rows=18, seed=seed) for seed in range(3)]
    model = calibrated(teacher.double(), data)
    once = matrices(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in once:
                parameter.zero_()
    model.base_model.calibrate(data, reset=True)
    assert all(torch.equal(once[name], tensor) for name, tensor in matrices(model).items())
    # The head's gradient steps see the data in their order; closed forms do not while there are few positions.
    first, second = (calibrated(teacher, order, pca=False) for order in (data, data[::-1]))
    assert all(torch.allclose(matrices(first)[name], tensor, atol=1e-6) for name, tensor in matrices(second).items())


def test_calibration_leaves_nothing_behind(teacher: BertForMaskedLM) -> None:
    teacher.train()
    state, weights = torch.get_rng_state(), {n: t.clone() for n, t in teacher.state_dict().items()}
    model = get_wid_model(teacher, WidConfig(**HALF))
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    model.base_model.calibrate([{**batch(), "labels": torch.tensor([1])}])
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())
    assert all(module.training for module in teacher.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not [thread for thread in threading.enumerate() if "wid_hf" in thread.name]


def test_what_a_forward_raises_surfaces_once_and_ends_all(teacher: BertForMaskedLM) -> None:
    model = get_wid_model(teacher, WidConfig(**HALF))
    wrong = {"input_ids": torch.full((2, 5), 1000)}
    message = r"BertForMaskedLM\.forward does not take a batch.*arguments input_ids.*IndexError: index out of range"
    with pytest.raises(DataError, match=message):
        model.base_model.calibrate([batch(), wrong, batch()])
    assert not [thread for thread in threading.enumerate() if "wid_hf" in thread.name]
    model.base_model.calibrate([batch()])
    assert model.base_model.calibrated


def test_activations_that_are_not_finite_are_refused(teacher: BertForMaskedLM) -> None:
    with torch.no_grad():
        teacher.bert.encoder.layer[0].intermediate.dense.weight[3] = float("inf")
    model = get_wid_model(teacher, WidConfig(**HALF))
    with pytest.raises(DataError, match="The teacher's activations on the calibration data are not finite"):
        model.base_model.calibrate([batch()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_teachers_get_float32_compactors_near_those_of_full_precision(
    teacher: BertForMaskedLM, dtype: torch.dtype
) -> None:
    data = [batch(rows=60, seed=seed) for seed in range(3)]
    wanted = outputs(teacher, data)
    model = calibrated(teacher.to(dtype), data)
    assert {tensor.dtype for tensor in matrices(model).values()} == {torch.float32}
    error = (outputs(model, data).float() - wanted).square().sum() / wanted.square().sum()
    assert error < 0.5


def test_a_weight_shared_by_layers_is_fitted_to_all_its_reads() -> None:
    row = ARCHITECTURES["albert"]
    model = get_wid_model(row.build(), row.config("dim", init="calibrated"), calibration_data=data_for(row, 4))
    sites = [site for site in model.base_model.calibration.inputs if site.weight.endswith("ffn.weight")]
    assert len(sites) == 2
    assert sites[1].positions == 2 * sites[0].positions
    assert sites[1].after < 0.7 * sites[1].before


def test_a_pooled_token_with_fewer_texts_than_indices_is_fitted_no_worse_than_it_starts() -> None:
    row = ARCHITECTURES["vit"]
    data = [{"pixel_values": each["pixel_values"][:4]} for each in data_for(row, 4)]
    model = get_wid_model(row.build(), row.config("dim", init="calibrated"), calibration_data=data)
    *_, before, classifier = model.base_model.calibration.inputs
    assert classifier.weight == "classifier.weight" and classifier.note == "too few positions"
    assert classifier.positions == 16 and before.positions == 16 * 26
    assert classifier.after <= classifier.before


def test_a_head_of_one_position_a_text_gains_from_few_texts(teacher: BertForMaskedLM) -> None:
    """Fewer texts than twice the width of what the classifier reads: it is fitted all the same."""
    config = BertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = BertForSequenceClassification(config).eval()
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.normal_(std=0.3)
    held_out = [batch(rows=200, seed=9)]
    wanted = outputs(classifier, held_out)
    errors = {}
    for lifted in (True, False):
        model = get_wid_model(deepcopy(classifier), WidConfig(**HALF))
        model.base_model.calibrate([batch(rows=16)], reconstruction=True)
        if not lifted:  # the fit of the head undone
            site = folded_weights(model.base_model.model)["classifier.weight"].maps["1"].matrix
            with torch.no_grad():
                site.copy_(torch.eye(24)[: len(site)])
        errors[lifted] = float((outputs(model, held_out) - wanted).square().sum() / wanted.square().sum())
    assert errors[True] < 0.8 * errors[False]


def test_the_default_dtype_of_the_caller_changes_nothing(teacher: BertForMaskedLM) -> None:
    data = [batch(rows=60, seed=seed) for seed in range(2)]
    plain = matrices(calibrated(teacher, data))
    torch.set_default_dtype(torch.bfloat16)
    try:
        half = matrices(calibrated(teacher, data))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(plain[name], half[name]) for name in plain)


def test_a_start_made_in_inference_mode_is_the_same_and_trains(teacher: BertForMaskedLM) -> None:
    data = [batch(rows=60, seed=seed) for seed in range(2)]
    plain = matrices(calibrated(teacher, data))
    with torch.inference_mode():
        given = [{name: tensor.clone() for name, tensor in each.items()} for each in data]
        model = calibrated(teacher, given)
        student = model.merge_and_unload()
    assert all(torch.equal(plain[name], tensor) for name, tensor in matrices(model).items())
    for each in (model, student):
        each.train()(**data[0]).logits.square().mean().backward()
        assert all(parameter.grad is not None for n, parameter in each.named_parameters() if "key.bias" not in n)


def test_forwards_run_in_the_autocast_of_the_caller_and_statistics_do_not(
    teacher: BertForMaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: set[torch.dtype] = set()
    inside: set[bool] = set()
    add = Regression.add

    def watched(self: Regression, *rows: Tensor) -> None:
        inside.add(torch.is_autocast_enabled("cpu"))
        add(self, *rows)

    monkeypatch.setattr(Regression, "add", watched)
    model = get_wid_model(teacher, WidConfig(**HALF))
    dense = teacher.bert.encoder.layer[1].intermediate.dense
    hook = dense.register_forward_hook(lambda *given: dtypes.add(given[2].dtype))
    data = [batch(rows=60, seed=seed) for seed in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        model.base_model.calibrate(data, pca=False)
        hook.remove()  # the proof that a stream may be turned needs float32
        model.base_model.calibrate(data)
    assert max(site.positions for site in model.base_model.calibration.inputs) == 2 * (60 * 10 - 15 * 3)
    assert dtypes == {torch.bfloat16} and inside == {False}
    assert {tensor.dtype for tensor in matrices(model).values()} == {torch.float32}


def test_the_record_becomes_rows_and_a_dictionary(teacher: BertForMaskedLM) -> None:
    found = calibrated(teacher, [batch()]).base_model.calibration
    assert len(found.rows()) - 1 == len(found.inputs) == 14
    assert found.to_dict()["sites"][0]["weight"] == "bert.encoder.layer.0.attention.self.query.weight"
    assert 0 < found.seconds < 60


@pytest.mark.slow
def test_a_reaction_bert_of_half_width_predicts_without_any_training(reaction_bert_dir: Path, uspto50k: Path) -> None:
    tokenizer = load_tokenizer(str(reaction_bert_dir))

    def masked(split: str, count: int, seed: int) -> list[dict[str, Tensor]]:
        (source,) = uspto50k.glob(f"*{split}*")
        texts = load_texts(str(source)).select(range(count))
        return masked_batches(tokenize(texts, tokenizer, 128), tokenizer, 32, seed)

    config = WidConfig(hidden_size=128, intermediate_size=256)
    model = get_wid_model(load_teacher(str(reaction_bert_dir)), config, calibration_data=masked("train", 256, 1))
    assert masked_lm_score(model.merge_and_unload(), masked("val", 256, 0)).accuracy > 0.86
