"""Tests of this folder run in a process in which "sim" is a device; their arguments are sent there.

With WID_HF_TEST_DEVICE=cuda (or mps, or cpu to try the way there) they run on that device, in the tests' own process.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import simulated_device
import tested_device
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
def here(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the test's function run in that process, or here on a real device."""
    if not tested_device.SIMULATED:
        with tested_device.stock_arithmetic():
            yield
        return
    simulated_worker = request.getfixturevalue("simulated_worker")
    item = request.node
    inside = item.obj

    def run(**arguments: object) -> None:
        simulated_worker.run(inside.__module__, inside.__name__, arguments)

    item.obj = run
    yield
