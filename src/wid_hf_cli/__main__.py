"""`python -m wid_hf_cli`: the program as a module, which launchers of several processes start (`torchrun -m`)."""

from __future__ import annotations

from .main import main

main()
