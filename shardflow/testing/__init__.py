"""For tests of workflows: run them in this process, without a database, on a clock that jumps.

A 30-day sleep takes no time there, and each workflow is replayed from its records as often as it could be elsewhere,
so that code which does not give the same again is found. Fixtures with real servers are in the pytest plugin.
"""

from .inline import Inline, InlineHandle, run_inline
from .world import Stuck

__all__ = ["Inline", "InlineHandle", "Stuck", "run_inline"]
