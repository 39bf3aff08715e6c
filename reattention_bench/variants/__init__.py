"""Rules that were measured beside the engine's own and did not become it: `-m reattention_bench.variants.Votes:by=mass`."""

from reattention_bench.variants.recalls import Recalls
from reattention_bench.variants.votes import Votes

__all__ = ["Recalls", "Votes"]
