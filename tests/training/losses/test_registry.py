"""A loss has one name in all trainers; a name that is unknown is refused together with all that are legal."""

from __future__ import annotations

import pytest

from wid_hf import ConfigError
from wid_hf.training.losses.distillation import TERMS
from wid_hf.training.losses.registry import DISTILLED, FOLLOWED, LOSSES, refuse_unknown


def test_every_loss_that_a_trainer_takes_has_a_name_in_the_registry() -> None:
    assert tuple(TERMS) == DISTILLED
    assert {*DISTILLED, FOLLOWED} <= LOSSES.keys()


def test_an_unknown_loss_is_refused_with_the_argument_and_every_legal_name() -> None:
    refuse_unknown(["logits", "states"], ["logits", "states"], "loss")
    with pytest.raises(ConfigError, match=r'^loss=\[.hidden.\] is unknown; .*"logits" \(class.*\); "states" \(last'):
        refuse_unknown(["logits", "hidden"], ["logits", "states"], "loss")
