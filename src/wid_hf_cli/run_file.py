"""`--config` and `--print-config`: all options of a command in one file.

Takes a YAML or JSON file with the names of options, or the `wid_report.json` of an earlier run; its values stand in for
options that are not on the command line. Gives the options of a run as such a file. Knows no option by name but those
that say how a run is started. Called by `compress`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

STARTING = {"config_file", "print_config", "overwrite", "resume", "help"}  # parameters that do not say what a run does
RUN = "run"  # of `wid_report.json`


def read(ctx: typer.Context, file: Path | None) -> Path | None:
    """Let the values of `file` stand in for options that are not given; the callback of `--config`.

    Raises:
        ConfigError: the file cannot be read, is no mapping, or has a name that is no option.
    """
    if file is not None and not ctx.resilient_parsing:
        ctx.default_map = _by_parameter(ctx, file, _content(file))
    return file


def with_those_of_file(ctx: typer.Context, param: typer.CallbackParam, given: list[str] | None) -> list[str] | None:
    """Return pairs `NAME=VALUE` of the command line together with those of the file; the callback of such options."""
    pairs = [*((ctx.default_map or {}).get(param.name) or []), *(given or [])]
    return list({pair.partition("=")[0]: pair for pair in pairs}.values()) or None


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=read,
        help="YAML or JSON file with options by name, or wid_report.json of a run; the command line goes before.",
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Write all options of this run as YAML, and do nothing else.")
]


def effective(ctx: typer.Context) -> dict[str, Any]:
    """Return the options of a run that have a value, by name, as plain values for JSON."""
    values = {_name(param): _plain(ctx.params.get(param.name)) for param in _parameters(ctx)}
    return {name: value for name, value in values.items() if value not in (None, [])}


def as_yaml(run: Mapping[str, Any]) -> str:
    """Return options as the text of a file that `read` takes."""
    import yaml

    class Plain(yaml.SafeDumper):
        """Quotes no text because of its type: what reads it takes all values as texts, as from a command line."""

        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  the name is PyYAML's

    return yaml.dump(_texts(run), Dumper=Plain, sort_keys=False, allow_unicode=True, width=120)


def _parameters(ctx: typer.Context) -> list[Any]:
    return [param for param in ctx.command.params if param.name not in STARTING]


def _name(param: Any) -> str:
    """Return the name of an option without dashes in front, or that of an argument."""
    return next((name[2:] for name in param.opts if name.startswith("--")), param.name)


def _content(file: Path) -> dict[str, Any]:
    import yaml

    from wid_hf import ConfigError
    from wid_hf.hub.paths import expanded

    path = Path(expanded(file))
    try:
        text = path.read_text(encoding="utf-8")
        # Texts only, as on a command line, so that `no` and `1e-4` mean what they mean there.
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"The run file {path} cannot be read: {error}. Give YAML or JSON in UTF-8; --print-config writes it."
        ) from error
    if isinstance(content, dict) and "versions" in content:  # a report
        content = content.get(RUN)
    if not isinstance(content, dict):
        raise ConfigError(
            f"The run file {path} holds no options by name, such as `steps: 1000`. --print-config writes one; "
            "wid_report.json holds one if its run was made on the command line."
        )
    return content


def _by_parameter(ctx: typer.Context, file: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a file by the command's names of parameters."""
    from wid_hf import ConfigError

    known = {_name(param): param for param in _parameters(ctx)}
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("_", "-")
        if name not in known:
            nearest = get_close_matches(name, known, n=1, cutoff=0)[0]
            raise ConfigError(f"The run file {file}: there is no option {key}. The nearest is {nearest}.")
        if value not in (None, "null", "~", ""):  # not given
            found[known[name].name] = _given(known[name], value)
    return found


def _given(param: Any, value: Any) -> Any:
    """Return a value of a file as the command line has it."""
    if isinstance(value, Mapping):
        return [f"{name}={_flow(part)}" for name, part in value.items()]
    several = param.nargs == -1 or getattr(param, "multiple", False)
    if isinstance(value, list) and not several:
        return ",".join(map(str, value))
    return [value] if several and not isinstance(value, list) else value


def _flow(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(value: Any) -> Any:
    """Return a parameter's value as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _texts(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _texts(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_texts(part) for part in value]
    return str(value).lower() if isinstance(value, bool) else str(value)
