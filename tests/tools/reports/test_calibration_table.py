"""The table of a calibration in the terminal: every row of the record, within the width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from wid_hf.calibration import Calibration, InputReconstruction
from wid_hf.tools.reports.calibration_table import calibration_table


@pytest.mark.parametrize("layers", [3, 30])
def test_every_row_is_shown_in_eighty_columns(layers: int) -> None:
    sites = [
        InputReconstruction(f"encoder.layer.{layer}.output.dense.weight", 1, 24, 12, 100, 0.5, 0.25)
        for layer in range(layers)
    ]
    calibration = Calibration(tuple(sites), 1234, 5.0)
    table = calibration_table(calibration)
    assert table.row_count == layers == len(calibration.rows()) - 1
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    shown = console.file.getvalue()
    assert "1,234 positions in 5 s" in shown and shown.count("25.0%") >= layers
    assert max(map(len, shown.splitlines())) <= 80
