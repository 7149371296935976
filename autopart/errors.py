"""All errors that autopart raises for mistakes that a user can correct.

    AutopartError            exit code 1
    ├── UsageError           exit code 2: options are missing or contradict each other
    ├── FileError            a file is missing, truncated, or has another format or version
    │   └── ProfileError     a profile contradicts itself
    ├── ModelError           a model file, builder or input cannot be used
    ├── ClusterError         a cluster description cannot be used
    ├── InfeasibleError      exit code 3: no plan exists; the message says the least that would do
    ├── NoPlanFound          exit code 5: the search found no plan; whether one exists is open
    ├── PlanError            a plan is wrong, or does not match its profile or model
    │   └── ScheduleError    orders are incomplete, out of order or deadlock
    ├── RunError             a rank died, hung or disagreed during a run
    └── ExportRefused        exit code 4: the target cannot express the plan

A message names the mistake, its place, its size and a remedy. A programmer's faults are ``assert`` and
``ValueError``; they are never caught.
"""


class AutopartError(Exception):
    """A mistake that the user can correct. The command line prints it without a traceback."""

    exit_code = 1

    rank: int | None = None
    """The rank that tells the error for all ranks of its run; None where it holds for each process."""


class UsageError(AutopartError):
    """Command-line options are missing or contradict each other."""

    exit_code = 2


class FileError(AutopartError):
    """A file is missing, truncated, or has another format or version."""


class ProfileError(FileError):
    """A profile contradicts itself."""


class ModelError(AutopartError):
    """A model file, its builder or its inputs cannot be used."""


class ClusterError(AutopartError):
    """A cluster description cannot be used."""


class InfeasibleError(AutopartError):
    """No plan satisfies the problem. The message says the least that would do."""

    exit_code = 3

    def __init__(self, message: str, least_bytes: int | None = None) -> None:
        """`least_bytes` is the memory per GPU that would do, where memory is missing."""
        super().__init__(message)
        self.least_bytes = least_bytes
        self.too_few_layers = False
        """Whether more stages were asked for than the model has layers."""


class NoPlanFound(AutopartError):
    """The search found no plan, in its time. Whether one exists is open."""

    exit_code = 5


class PlanError(AutopartError):
    """A plan is wrong, or does not match its profile or model."""


class ScheduleError(PlanError):
    """A schedule's orders are incomplete, out of order, or deadlock."""


class RunError(AutopartError):
    """A rank died, hung or disagreed during a run."""


class ExportRefused(AutopartError):
    """The target framework cannot express the plan."""

    exit_code = 4
