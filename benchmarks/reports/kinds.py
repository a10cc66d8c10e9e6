"""All kinds of reports, in the order of the page; importing this fills `case.CASES`."""

from __future__ import annotations

import finished_work
import gaps
import numbers_told
import shapes
import starts_made
import trainers
import users_settings

KINDS = [module.KIND for module in (finished_work, users_settings, starts_made, gaps, shapes, trainers, numbers_told)]
