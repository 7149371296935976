"""Every error that autopart raises for something a user can mend.

    AutopartError            exit code 1
    ├── UsageError           exit code 2: options that are missing or contradict each other
    ├── FileError            a file that is missing, truncated, of another format or version
    │   └── ProfileError     a profile whose content contradicts itself
    ├── ModelError           a model file, builder or input that cannot be used
    ├── ClusterError         a cluster description that cannot be used
    ├── InfeasibleError      exit code 3: no plan exists; says the least that would do
    ├── PlanError            a plan that is wrong, or does not match its profile or model
    │   └── ScheduleError    orders that are incomplete, out of order or deadlock
    ├── RunError             a rank that died, hung or disagreed while a plan was run
    └── ExportRefused        exit code 4: the target cannot express the plan

A message says what is wrong, where, by how much, and what to try. Faults of the programmer are
``assert`` and ``ValueError``; they are never caught.
"""


class AutopartError(Exception):
    """Something that the user can mend; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(AutopartError):
    """Options of a command line that are missing or contradict each other."""

    exit_code = 2


class FileError(AutopartError):
    """A file is missing, truncated, or of another format or version."""


class ProfileError(FileError):
    """A profile's content contradicts itself."""


class ModelError(AutopartError):
    """A model file, its builder or its inputs cannot be used."""


class ClusterError(AutopartError):
    """A cluster description cannot be used."""


class InfeasibleError(AutopartError):
    """No plan satisfies the problem; the message says the least that would do."""

    exit_code = 3

    def __init__(self, message: str, least_bytes: int | None = None) -> None:
        """`least_bytes` of memory a GPU would do, where memory is what is missing."""
        super().__init__(message)
        self.least_bytes = least_bytes


class PlanError(AutopartError):
    """A plan is wrong, or does not match its profile or model."""


class ScheduleError(PlanError):
    """The orders of a schedule are incomplete, out of order, or deadlock."""


class RunError(AutopartError):
    """A rank died, hung or disagreed while a plan was run."""


class ExportRefused(AutopartError):
    """The target framework cannot express the plan."""

    exit_code = 4
