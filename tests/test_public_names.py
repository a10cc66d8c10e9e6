"""What `import wid_hf` promises, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import wid_hf


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    assert len(set(wid_hf.__all__)) == len(wid_hf.__all__)
    assert all(getattr(wid_hf, name).__doc__ for name in wid_hf.__all__)
    assert set(wid_hf.__all__) <= set(dir(wid_hf))


def test_importing_touches_no_network_and_sets_no_warning_filter() -> None:
    script = (
        "import socket, warnings, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import torch, transformers, peft, datasets, matplotlib\n"
        "from transformers import Trainer\n"
        "before = list(warnings.filters)\n"
        "import wid_hf\n"
        "assert warnings.filters == before, 'filters'\n"
        "assert not any(name.startswith('wid_hf.tools') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
