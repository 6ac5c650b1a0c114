"""Every error that a user can see: the root of all rooms, and the service's own classes.

A `NasError` is a user's mistake or a failure of the machine. Its message says what happened, where, and what to do, and
the command line prints that and nothing else. Anything else that is raised is a bug and keeps its traceback: a broken
invariant raises a plain ValueError or AssertionError. Each concrete class is also the built-in exception that fits, so
that callers who catch that one go on doing so.

Every room has such a file, `blocklib/errors.py` for one, which imports this one and no other of ours. Standard library
only.
"""


class NasError(Exception):
    """The root of every error of this package that is no bug."""


class UsageError(NasError, ValueError):
    """A command's options do not go together, or have values that no command takes."""


# Requests


class JobError(NasError, ValueError):
    """A job file is wrong, or asks for what its parent, its text or this machine cannot give.

    Each line is one mistake: the file or the key's full path, what was given, what would fit.
    """


class PlanError(NasError, ValueError):
    """The machine or the parent to plan for is not known, or a job uses two kinds of device."""


class PathError(NasError, ValueError):
    """A path or a glob names no file, or names a variable that is not set."""


class BudgetError(NasError, ValueError):
    """A budget is written wrongly: an unknown metric, a metric twice, or a limit that limits nothing."""


class BudgetNotMetError(NasError, ValueError):
    """No architecture of the space meets the budget; says which limits, and how far each can be met."""


class TextError(NasError, ValueError):
    """The text cannot be read, or is too short for what is asked of it."""


class TableError(NasError, ValueError):
    """A table, or what is asked of it, is wrong: the file, the layer and the option, the path, what would be right."""


# Searches


class UnfinishedSearchError(NasError, ValueError):
    """Some options of a search were never scored or measured."""


class StaleSearchError(NasError, ValueError):
    """The parent, the text, the libraries or the machine of a search are no longer what it was measured with."""


class IncomparableSearchesError(NasError, ValueError):
    """The scores of several searches are of different parents, texts or metrics."""


class ScoreMetricError(NasError, ValueError):
    """Whole architectures are compared with the parent by their KL, and the search has scores of another kind."""


class NoisyTimesError(NasError, ValueError):
    """Times are too noisy to hold a budget against, after all the time that was given to take them again."""


class TuningError(NasError, ValueError):
    """No learning rate that was tried ended with a finite loss."""


class EvaluationError(NasError, ValueError):
    """A task of lm_eval is unknown, broken or cannot be fetched, or gives no number; or lm_eval is not installed."""


# Files


class MissingFileError(NasError, FileNotFoundError):
    """A file that the work needs is not there: a child, a tokenizer, Python's own sources."""


class OutputExistsError(NasError, FileExistsError):
    """Something stands already where the child is to be written."""


class UnsupportedExportError(NasError, ValueError):
    """The format has no place for something the child has."""


class ExportMismatchError(NasError, ValueError):
    """The export was written and reloaded, and is not the child. Nothing of it is kept."""


# Ray clusters


class AddressError(NasError, ValueError):
    """An address that cannot be one of a Ray cluster as it is written. Says who named it, and how it is written."""


class NoClusterError(NasError, ConnectionError):
    """No Ray cluster answers at an address. Says who named the address, and what to do."""


class HeadError(NasError, ValueError):
    """A head does not do what it is asked. Says which head, why, and what to do."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status
        """The HTTP status of its answer; 0 if there was no answer."""


class JobFailedError(NasError, ValueError):
    """A submitted job ended without success."""


class RayStartError(NasError, OSError):
    """Ray did not start, or does not take this process in. Says which Ray, who named it, and why."""


class SocketPathError(NasError, ValueError):
    """No folder is short enough for Ray's sockets. Says which variable to set."""


class ResourceError(NasError, ValueError):
    """A task asks for more CPUs or GPUs than any node of the cluster has."""


class SharedFilesError(NasError, OSError):
    """Nodes of a cluster do not see the same files at the path of `home`, or of a parent. Names the nodes."""


class WorkerError(NasError, OSError):
    """A worker ran out of memory, or did not come back."""
