"""What no policy can beat: the clairvoyant bound of a trace, and the exact optimum of tiny ones."""

from tetriserve_backend.simulator.bound.cache import BoundCache
from tetriserve_backend.simulator.bound.clairvoyant import Bound, BoundSettings, clairvoyant_bound
from tetriserve_backend.simulator.bound.milp import BoundError

__all__ = ["Bound", "BoundCache", "BoundError", "BoundSettings", "clairvoyant_bound"]
