"""The heat map of a calibration: what stands where, and that it always can be drawn."""

from __future__ import annotations

from math import nan
from pathlib import Path

import pytest
from matplotlib import image
from matplotlib.figure import Figure
from toys import reconstruction

from wid_hf.calibration import Calibration, InputReconstruction
from wid_hf.plots.calibration import draw


def drawn(sites: list[InputReconstruction], path: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """Draw `sites` and return the figure that was saved."""
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **words: object) -> None:
        kept.append(figure)
        save(figure, *args, **words)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw(Calibration(tuple(sites), 1000, 5.0), path)
    assert image.imread(path).std() > 0
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    return kept[0]


def numbers(figure: Figure, at: int) -> list[list[float]]:
    return figure.axes[at].images[0].get_array().filled(nan).round(6).tolist()


def bert(layers: int) -> list[InputReconstruction]:
    sites = []
    for layer in range(layers):
        for name in ("query", "key"):
            sites.append(reconstruction(f"layer.{layer}.self.{name}.weight", 0.4 + layer / 100, 0.1 + layer / 100))
        sites.append(reconstruction(f"layer.{layer}.output.weight", 0.5, 0.2))
    return sites


def test_before_and_after_stand_side_by_side_on_one_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn([*bert(3), reconstruction("head.weight", 0.6, 0.3)], tmp_path / "c.png", monkeypatch)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["missed by the start", "missed after reconstruction"]
    assert numbers(figure, 0) == [[0.4, 0.5], [0.41, 0.5], [0.42, 0.5]]
    assert numbers(figure, 1) == [[0.1, 0.2], [0.11, 0.2], [0.12, 0.2]]
    assert [numbers(figure, at) for at in (2, 3)] == [[[0.6]], [[0.3]]]
    names = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert names == ["self.\n{query, key}", "output"]  # queries and keys read the same
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "1", "2"]
    assert figure.axes[3].texts[0].get_text() == "head  30.0%"
    assert {axes.images[0].norm.vmax for axes in figure.axes[:4]} == {0.6}


def test_what_was_not_compared_or_not_fitted_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = [
        *bert(2),
        reconstruction("layer.1.router.weight", nan, nan, "x"),
        reconstruction("pooler.weight", 0.3, 0.3, "x"),
    ]
    figure = drawn(sites, tmp_path / "c.png", monkeypatch)
    assert [text.get_text() for text in figure.axes[1].texts][-1] == "-*"
    assert figure.axes[2].texts[0].get_text() == "pooler  30.0%"
    assert figure.axes[3].texts[0].get_text() == "pooler  30.0%*"


def test_stacks_of_layers_stand_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = [
        reconstruction(f"{stack}.block.{n}.q.weight", 0.4, 0.1 * n)
        for stack in ("encoder", "decoder")
        for n in (0, 1, 2)
    ]
    figure = drawn([*sites[:5], reconstruction("decoder.block.2.q.weight", 0.9, 0.9)], tmp_path / "c.png", monkeypatch)
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert names == ["encoder.block: q", "decoder.block: q"]
    assert numbers(figure, 0)[2] == [0.4, 0.9]


def test_a_weight_that_is_read_again_has_a_row_for_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = [reconstruction("groups.0.ffn.weight", 0.5, after) for after in (0.1, 0.2, 0.3)]
    figure = drawn(sites, tmp_path / "c.png", monkeypatch)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "0, use 2", "0, use 3"]
    assert numbers(figure, 1) == [[0.1], [0.2], [0.3]]


@pytest.mark.parametrize("count", [1, 400])
def test_one_read_and_thousands_can_be_drawn(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = [reconstruction(f"layer.{n % 4}.experts.{n}.w.weight", 0.5, n / 1000) for n in range(count)]
    figure = drawn(sites if count > 1 else [reconstruction("w", 0.5, 0.1)], tmp_path / "c.png", monkeypatch)
    assert max(figure.get_size_inches()) < 30
    assert len(figure.axes[0].texts) == (1 if count == 1 else 0)


def test_a_start_that_is_worse_than_nothing_does_not_wash_out_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = drawn([*bert(1), reconstruction("layer.0.bad.weight", 40.0, 0.1)], tmp_path / "c.png", monkeypatch)
    assert figure.axes[0].images[0].norm.vmax == 1.0


def test_a_picture_that_fails_leaves_the_old_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.png"
    path.write_text("old")

    def fail(figure: Figure, target: Path, **words: object) -> None:
        Path(target).write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="full"):
        draw(Calibration(tuple(bert(1)), 1000, 5.0), path)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["c.png"]
