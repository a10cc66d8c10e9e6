"""What a calibration found, told: names, tables, JSON."""

from __future__ import annotations

import json
from math import nan

import pytest
from toys import reconstruction

from wid_hf.calibration import Calibration
from wid_hf.calibration.report import RefinedPart, Trial


@pytest.mark.parametrize(
    ("weight", "layer", "place"),
    [
        ("bert.encoder.layer.3.attention.self.query.weight", "bert.encoder.layer.3", "attention.self.query"),
        ("decoder.block.0.layer.1.EncDecAttention.q.weight", "decoder.block.0", "layer.1.EncDecAttention.q"),
        ("model.layers.11.mlp.experts.down_proj", "model.layers.11", "mlp.experts.down_proj"),
        ("cls.predictions.transform.dense.weight", "", "cls.predictions.transform.dense"),
        ("lm_head.weight", "", "lm_head"),
    ],
)
def test_a_weight_input_has_a_layer_and_a_place_in_it(weight: str, layer: str, place: str) -> None:
    assert (reconstruction(weight).layer, reconstruction(weight).place) == (layer, place)


def test_few_weight_inputs_have_a_row_each_and_tell_why_nothing_was_fitted() -> None:
    found = Calibration(
        (reconstruction("a.0.x.weight"), reconstruction("pooler.weight", 0.4, 0.4, "too few positions")), 1234, 5.0
    )
    _, *rows = found.rows()
    assert rows == [
        ("a.0.x.weight", "24", "12", "50.0%", "25.0%"),
        ("pooler.weight", "24", "12", "40.0%", "too few positions"),
    ]
    title, _, first, _ = str(found).splitlines()
    assert "1,234 positions in 5 s" in title
    assert first.split() == ["a.0.x.weight", "24", "12", "50.0%", "25.0%"]


def many() -> Calibration:
    sites = [
        reconstruction(f"encoder.layer.{layer}.{name}.weight", before, layer / 100 + before / 10)
        for layer in range(12)
        for name, before in (("query", 0.2), ("key", 0.4), ("output.dense", 0.6))
    ]
    sites.append(sites.pop(0))  # some layers are gone through again after others
    unfitted = [reconstruction("pooler.weight", nan, nan, "too few positions"), reconstruction("head.weight", 0.8, 0.3)]
    return Calibration((*sites, *unfitted), 1000, 5.0)


def test_many_weight_inputs_have_a_row_per_layer_with_its_mean_and_its_worst() -> None:
    _, *rows = many().rows()
    layers = {name: cells for name, *cells in rows}
    assert len(rows) == len(layers) == 13
    assert layers["encoder.layer.3"] == ["40.0%", "7.0%", "9.0%", "output.dense"]
    # The input that was not fitted does not count.
    assert layers["outside"] == ["80.0%", "30.0%", "30.0%", "head; 1 not fitted (too few positions)"]


def test_a_layer_of_which_nothing_was_fitted_has_dashes_instead_of_numbers() -> None:
    sites = [
        reconstruction(f"layer.{layer}.x.weight", nan, nan, "positions of teacher and student differ")
        for layer in range(30)
    ]
    found = str(Calibration(tuple(sites), 1000, 5.0))
    assert found.count("1 not fitted") == 30
    assert "nan" not in found


def test_the_dictionary_is_json_even_where_nothing_could_be_compared() -> None:
    found = Calibration(
        (reconstruction("a.weight"), reconstruction("b.weight", nan, nan, "too few positions")), 1000, 5.0
    )
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["positions"] == 1000 and told["seconds"] == 5.0
    assert told["sites"][0] == {
        "weight": "a.weight",
        "axis": 1,
        "teacher_size": 24,
        "student_size": 12,
        "positions": 100,
        "before": 0.5,
        "after": 0.25,
        "note": "",
    }
    assert told["sites"][1]["before"] is None and told["sites"][1]["after"] is None


def test_a_report_that_was_written_is_read_back() -> None:
    sites = (reconstruction("a.weight"), reconstruction("b.weight", nan, nan, "too few positions"))
    trials = (Trial("turned", 0.5, "nats", True), Trial("selected", nan, "nats", False))
    parts = (RefinedPart("layer.0", 0.2, 0.1, 300, 0.0, 1.5), RefinedPart("head", nan, nan, 0, 0.0, 0.0, "no time"))
    for found in (Calibration(sites, 1000, 5.0, "all", trials, parts), Calibration((), 10, 1.0)):
        back = Calibration.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
        assert repr(back) == repr(found)  # NaN is not equal to itself
