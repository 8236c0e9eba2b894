"""The one exception family. A message names the thing, what was found, what was wanted and the next step."""

from __future__ import annotations


class WorkbenchError(Exception):
    """Base of every error a user can cause or meet; its text is shown as one line, without a traceback.

    ``exit_code`` is what the command line exits with: 1 for a job, a gate or a check that failed, and for a file or
    database that cannot be read or written; 2 for wrong usage; 3 for try again later; 130 for interrupted.
    """

    exit_code = 1


class UsageError(WorkbenchError):
    """The request itself is wrong: an option's value, or the name or number of something that is not there."""

    exit_code = 2


class CheckpointError(WorkbenchError):
    """A checkpoint or variant folder is incomplete, damaged or not what it says it is."""


class DataError(WorkbenchError):
    """An input of the user's cannot be read: an image that is no image, a suite file of another shape."""


class StoreError(WorkbenchError):
    """The database cannot be used as it is: a newer schema, a damaged file."""


class RetryLater(WorkbenchError):  # noqa: N818 - says what to do, not only what happened
    """Nothing is wrong with the request, but it cannot be served now: a locked database, a busy GPU."""

    exit_code = 3


class Cancelled(WorkbenchError):  # noqa: N818 - a state, not a fault
    """The work was asked to stop and did."""

    exit_code = 130
