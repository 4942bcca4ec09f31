"""Refinements whose cost follows the mask: masked steps compute the masked tokens alone (docs/sparse.md)."""

from lotts.sparse.config import MODES
from lotts.sparse.refinement import SparseRefinement, plan
from lotts.sparse.trace import Trace, plan_trace

__all__ = ["MODES", "SparseRefinement", "Trace", "plan", "plan_trace"]
