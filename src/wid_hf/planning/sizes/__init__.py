"""Which student configs a `WidConfig` may mean: the sizes that it names, and those that follow from them.

Takes the teacher's config and a `WidConfig`; gives the configs, the best first, or refuses names and numbers. The plan
checks each of them afterwards. Nothing here uses a model.

Modules, from the bottom up: `config_names` (entries of a config), `meanings` (the result), `heads`, `stages` and
`following` (sizes that follow), `problems` (refusals), `student_config` (writing sizes into a config), `changes` (texts
of messages), `requests` (calls all of these).
"""

from .meanings import Meaning, Strategy, Way
from .requests import Request, Sizes

__all__ = ["Meaning", "Request", "Sizes", "Strategy", "Way"]
