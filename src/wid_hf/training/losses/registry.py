"""The names of all losses between a student and a teacher, in one place for all trainers and their messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ...errors import ConfigError

# What each loss compares. A name means the same in every trainer that accepts it.
LOSSES = {
    "logits": "class probabilities, softened by a temperature",
    "hidden": "all hidden states, reconstructed from the student's by its compactors",
    "relations": "which positions the last layer's attention relates (MiniLM)",
    "layers": "hidden states through learned maps, and attention scores (TinyBERT)",
    "states": "last hidden states, and the cosines between texts",
}
DISTILLED = ("logits", "hidden", "relations")  # what `WidTrainer` adds to the training loss
INNER = tuple(name for name in DISTILLED if name != "logits")  # for trainers whose own loss compares outputs
FOLLOWED = "states"  # what `FollowingTrainer` trains with


def refuse_unknown(given: Iterable[str], legal: Collection[str], argument: str) -> None:
    """Refuse names of losses that a trainer does not accept.

    Args:
        given: the names.
        legal: those that the trainer accepts.
        argument: its name in the message.

    Raises:
        ConfigError: lists the unknown names, and every legal name with what it compares.
    """
    if unknown := [name for name in given if name not in legal]:
        known = "; ".join(f'"{name}" ({LOSSES[name]})' for name in legal)
        raise ConfigError(f"{argument}={unknown} is unknown; legal are {known}.")


def quoted(names: Iterable[str]) -> str:
    """Return names as a message lists them: `"a" and "b"`."""
    return " and ".join(f'"{name}"' for name in names)
