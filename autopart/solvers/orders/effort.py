"""The effort that a search for orders may still spend: actions, and seconds until a deadline."""

import math
import time

from autopart.stopping.time_limit import passed, time_left


class Effort:
    """Actions that may still be simulated or listed, and a deadline.

    `deadline` is a reading of `time.perf_counter()`. Parts of an effort count on the same clock, so
    a part that ends early leaves the rest to the next one.
    """

    def __init__(self, deadline: float = math.inf, actions: float = math.inf) -> None:
        self.deadline, self.actions_left = deadline, actions

    def spend(self, actions: int) -> None:
        """Count some actions."""
        self.actions_left -= actions

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed, the user has asked to stop, or no actions are left."""
        return self.actions_left <= 0 or passed(self.deadline)

    def part(self, share: float) -> "Effort":
        """An effort with a share of the seconds and actions that are left, counted here too."""
        return _Part(self, share)


class _Part(Effort):
    def __init__(self, whole: Effort, share: float) -> None:
        deadline = time.perf_counter() + share * time_left(whole.deadline)
        super().__init__(deadline, share * whole.actions_left)
        self._whole = whole

    def spend(self, actions: int) -> None:
        super().spend(actions)
        self._whole.spend(actions)
