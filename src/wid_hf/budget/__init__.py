"""From a target to the sizes of a student: parameters, bytes, memory or milliseconds in, a `WidConfig` out.

Takes a teacher and a `Target`; `propose` gives the shapes that fill it, `search` the one of them whose calibrated start
is nearest to the teacher.

Modules, from the bottom up: `amounts` (numbers with units), `targets` (what may be asked), `head_layouts`, `shapes`
(which sizes a teacher's students may have), `stock_models` (students with random weights, and their inputs), `memory`
and `latency` (what these need), `costs` (how much of a target a shape takes), `front` (the shapes that fill a target),
`layer_order` (which layers go), `survey` (what all targets of a teacher share), `per_layer` (widths that differ from
layer to layer), `result` and `halving` (which shape is best), `size_search` (a target in a request).
"""

from .front import Front, propose
from .halving import search
from .result import SearchResult
from .shapes import Shape, Space
from .size_search import SizeSearch
from .targets import Target

__all__ = ["Front", "SearchResult", "Shape", "SizeSearch", "Space", "Target", "propose", "search"]
