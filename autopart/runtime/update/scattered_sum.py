"""Gradient sums under ZeRO-1: each rank gets the sums of the elements that its optimizer steps.

This is the reduce-scatter that the cost model prices. It moves half the bytes of an all-reduce, and the
optimizer's gather of new weights moves the other half. The other elements of a gradient stay this
rank's own part of the sum, which no optimizer reads. `complete` gathers them, for a check.
"""

from autopart.runtime.update.gradient_sum import GradientSum
from autopart.runtime.update.zero_shards import ZeroSharding


class ScatteredSum(GradientSum):
    """Sums the gradients of this rank's shared parameters, each element on the rank that steps it."""

    def __init__(self, whole: GradientSum, sharding: ZeroSharding) -> None:
        """`whole` sums all elements on all holders; `sharding` says who steps which."""
        self.shared, self._sharding = whole.shared, sharding

    def run(self) -> None:
        """Replace this rank's elements by their sums. Collective: all holders must call this."""
        self.agree_on_used()
        self._sharding.scatter_sums({id(p) for shared in self.shared for p in shared.used})
        # Parameters that no ranks divide are summed whole.
        self.sum_used(lambda parameter: not self._sharding.divides(parameter))

    def complete(self) -> None:
        """Make all gradients whole. Collective."""
        self._sharding.gather(lambda p: p.new_zeros(p.shape) if p.grad is None else p.grad)
