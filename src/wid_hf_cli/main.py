"""The `wid-hf` program, which says what to install if packages for it are missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from .app import run
    except ModuleNotFoundError as error:
        from wid_hf.extras import missing

        sys.exit(str(missing(error, "cli")))
    run()


if __name__ == "__main__":
    main()
