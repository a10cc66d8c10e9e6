"""What the library says, in the words of the command line.

Takes a message with arguments of Python and the program; gives the message with options. Called by `app` and commands.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

# Arguments of the library whose option has another name.
OTHERWISE = {"folder": "--data", "overrides": "--override"}
VALUE = r"""True|"[^"]*"|'[^']*'|\[[^\]]*\]|[\w+-]+(?:[.,][\w+-]+)*"""


def as_options(text: str, program: Any) -> str:
    """Return a message of the library with its arguments, `name=value`, as the options of the program's commands."""
    return re.sub(rf"(?<![\w?&./-])([a-z_]+)=({VALUE})?", lambda found: _as_option(found, _options(program)), text)


def _as_option(found: re.Match[str], options: dict[str, str]) -> str:
    option, value = options.get(found[1]), (found[2] or "").strip("\"'")
    if option is None:
        return found[0]
    if value.startswith("["):  # a list of words has commas between them on the command line
        value = re.sub(r"[\[\]\s\"']", "", value)
    return option if value in ("", "True") else f"{option} {value}"


@cache
def _options(program: Any) -> dict[str, str]:
    """Return the options of all commands by the name of the argument in Python; a name means the same everywhere."""
    spelled = (name for command in program.commands.values() for each in command.params for name in each.opts)
    return {name[2:].replace("-", "_"): name for name in spelled if name.startswith("--")} | OTHERWISE
