"""Tests of this folder run in a process in which "sim" is a device; their arguments are sent there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import simulated_device
from simulated_device.worker import Worker


@pytest.fixture(scope="session")
def simulated_worker() -> Iterator[Worker]:
    """The process, where the device can be built."""
    if (why := simulated_device.missing()) is not None:
        pytest.skip(why)
    try:
        worker = Worker()
    except RuntimeError as refusal:  # of a compiler that does not know this PyTorch, or of a PyTorch of another year
        pytest.skip(f"no simulated device: {str(refusal).splitlines()[-1][:200]}")
    yield worker
    worker.close()


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, simulated_worker: Worker) -> None:
    """Let the test's function run in that process."""
    item = request.node
    inside = item.obj

    def run(**arguments: object) -> None:
        simulated_worker.run(inside.__module__, inside.__name__, arguments)

    item.obj = run
