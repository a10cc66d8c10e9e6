"""The start of a student whose stream is turned, as a whole: what the walk left is what the finished student gives."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from torch import Tensor
from turning_models import TURNING, calibrated, outputs

from wid_hf import WidConfig, get_wid_model
from wid_hf.calibration.division import spread
from wid_hf.calibration.lockstep import Lockstep, Watched
from wid_hf.calibration.precision import Precision
from wid_hf.calibration.refinement import layer_by_layer
from wid_hf.calibration.refinement.descent import Descent
from wid_hf.calibration.residual_fit import ResidualFit
from wid_hf.calibration.vector_fit import VectorFit
from wid_hf.coupling.landmark_record import Landmark

QUICK = ("bert", "gpt2", "albert")
every_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TURNING]
)


@every_family
@pytest.mark.usefixtures("turned_is_best")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_merged_student_is_the_wid_model_exactly(family: str, dtype: torch.dtype) -> None:
    wid, data = calibrated(family, dtype)
    assert wid.base_model.turned.state_dict()
    student = wid.merge_and_unload()
    assert {p.dtype for p in student.parameters()} == {dtype}
    for mine, theirs in zip(outputs(wid, data), outputs(student, data), strict=True):
        assert torch.equal(mine, theirs) and mine.isfinite().all()


@pytest.mark.usefixtures("turned_is_best")
@pytest.mark.parametrize("family", [f for f in TURNING if f != "albert"])  # shared layers change after their first use
def test_what_the_walk_left_is_what_a_fresh_forward_gives(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left: dict[Landmark, list[Tensor]] = {}

    def watched(fit: Callable[..., Any], place_of: Callable[..., Landmark]) -> Callable[..., Any]:
        def call(self: Any, at: Any, teacher: Any, student: Any) -> Any:
            changed = fit(self, at, teacher, student)
            left[place_of(student)] = [each.tensor.clone() for each in student if each is not None]
            return changed

        return call

    for kind in (VectorFit, ResidualFit):
        monkeypatch.setattr(kind, "fit", watched(kind.fit, lambda student: next(filter(None, student)).at))
    wid, data = calibrated(family, torch.float64)
    plan, student = wid.base_model.plan, wid.merge_and_unload()
    first = {name: owner for name, owner in dict(student.named_parameters()).items() if name in plan.axes}
    assert left
    kinds = {place.kind for place in left}
    assert ("sum" in kinds or family == "gemma2") and ("scaled" in kinds) == any_norm_stays(wid)
    seen = set()
    tolerance = 1e-5 if family == "gemma2" else 1e-9  # its norms compute in float32
    walked = spread(data)  # as `calibrate` orders them
    precision = Precision.of_caller(torch.device("cpu"))
    with Lockstep([Watched(student, first)], walked, plan, list(left), precision) as steps:
        for place, (found,) in steps:
            seen.add(place)
            for old, new in zip(left[place], filter(None, found), strict=True):
                scale = float(new.tensor.abs().max())
                assert torch.allclose(old, new.tensor, rtol=0, atol=tolerance * scale), place
    assert seen == set(left)


@pytest.mark.usefixtures("turned_is_best")
@pytest.mark.parametrize(("family", "norm"), [("gpt2", "transformer.ln_f"), ("whisper", "model.decoder.layer_norm")])
def test_the_vector_before_a_tied_table_and_no_other_is_fitted_to_the_softmax(
    family: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, data = calibrated(family, torch.float32)
    (head,) = fitted.base_model.calibration.refined
    assert head.name == "head" and head.steps == layer_by_layer.VECTOR_STEPS and head.after < head.before
    monkeypatch.setattr(layer_by_layer, "descend", lambda fit, *_: Descent(fit.held_out_error(), inf, 0))
    closed, _ = calibrated(family, torch.float32)
    (before, after), teacher = (each.merge_and_unload() for each in (closed, fitted)), fitted.base_model.teacher
    old, new = (dict(model.named_parameters()) for model in (before, after))
    changed = {name for name, value in new.items() if not torch.equal(value, old[name])}
    assert changed == {f"{norm}.weight", f"{norm}.bias"}
    wanted, *found = (next(iter(outputs(model, data))).log_softmax(-1) for model in (teacher, before, after))
    worse, better = (float((wanted.exp() * (wanted - each)).sum(-1).mean()) for each in found)
    assert better < worse


def any_norm_stays(wid: PeftModel) -> bool:
    """Whether a norm of this model stays in the stream: of those built here, post-norm models and Gemma 2."""
    return wid.base_model.teacher.config.model_type in {"bert", "albert", "bart", "gemma2"}


@every_family
@pytest.mark.usefixtures("turned_is_best")
def test_calibrating_twice_gives_equal_tensors(family: str) -> None:
    wid, data = calibrated(family, batches=2)
    once = {name: tensor.clone() for name, tensor in wid.state_dict().items()}
    wid.base_model.calibrate(data, reset=True)
    again = wid.state_dict()
    assert once.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in once.items())


@every_family
@pytest.mark.usefixtures("turned_is_best")
def test_an_adapter_with_a_turned_stream_is_loaded_as_it_was_saved(family: str, tmp_path: Path) -> None:
    wid, data = calibrated(family, batches=2)
    wid.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(TURNING[family].build(), str(tmp_path))
    for mine, theirs in zip(outputs(wid, data), outputs(loaded, data), strict=True):
        assert torch.equal(mine, theirs)
    maps = [dict(each.base_model.turned.named_buffers()) for each in (wid, loaded)]
    assert maps[0] and maps[0].keys() == maps[1].keys()
    assert all(torch.equal(tensor, maps[1][name]) for name, tensor in maps[0].items())


@pytest.mark.usefixtures("turned_is_best")
@pytest.mark.parametrize("family", ["bert-model", "gpt-neox", "llama"])
def test_every_table_of_a_turned_stream_gives_turned_rows(family: str) -> None:
    """Those whose rows are summed share one map; none of these is tied to a head."""
    wid, _ = calibrated(family, torch.float64)
    (map_,) = dict(wid.base_model.turned.named_buffers()).values()
    theirs, mine = (dict(each.named_parameters()) for each in (wid.base_model.teacher, wid.merge_and_unload()))
    tables = [name for name in theirs if name in wid.base_model.plan.looked_up]
    assert len(tables) == (3 if family == "bert-model" else 1)
    for name in tables:
        assert torch.allclose(mine[name], theirs[name] @ map_.T, atol=1e-10)


@pytest.mark.usefixtures("turned_is_best")
def test_tables_that_are_added_to_a_tied_one_have_its_columns() -> None:
    wid, _ = calibrated("gpt2", torch.float64)
    theirs, mine = (dict(each.named_parameters()) for each in (wid.base_model.teacher, wid.merge_and_unload()))
    columns = [
        torch.linalg.lstsq(theirs[name], mine[name], driver="gelsd").solution
        for name in ("transformer.wte.weight", "transformer.wpe.weight")
    ]
    made = [theirs[f"transformer.{name}.weight"] @ columns[0] for name in ("wte", "wpe")]
    assert torch.allclose(made[0], mine["transformer.wte.weight"], atol=1e-9)
    assert torch.allclose(made[1], mine["transformer.wpe.weight"], atol=1e-9)
    assert columns[0].shape == (48, 24)


@pytest.mark.usefixtures("turned_is_best")
def test_streams_of_two_widths_turn_each_by_its_own_moments() -> None:
    encoder = hf.ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4
    )
    decoder = hf.GPT2Config(
        vocab_size=64, n_embd=48, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, add_cross_attention=True
    )
    torch.manual_seed(0)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, decoder_start_token_id=1)
    teacher = hf.VisionEncoderDecoderModel(config).eval()
    draw = torch.Generator().manual_seed(0)
    data = [
        {
            "pixel_values": torch.randn(8, 3, 8, 8, generator=draw),
            "decoder_input_ids": torch.randint(5, 60, (8, 6), generator=draw),
        }
        for _ in range(4)
    ]
    sizes = {"encoder": {"hidden_size": 24}, "decoder": {"n_embd": 36}}  # the decoder's table is tied to its head
    wid = get_wid_model(teacher, WidConfig(overrides=sizes), example_inputs=data[0])
    wid.base_model.calibrate(data)
    assert {tuple(map_.shape) for map_ in wid.base_model.turned.state_dict().values()} == {(24, 32), (36, 48)}
    student = wid.merge_and_unload()
    with torch.no_grad():
        assert torch.equal(wid.eval()(**data[0]).logits, student.eval()(**data[0]).logits)
