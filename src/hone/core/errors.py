"""Every error that hone raises on purpose.

A message names the file, the line or the key, what was found, what was expected and what to do.
The command line prints it as one sentence; ``--debug`` shows the traceback too.
"""


class HoneError(Exception):
    """Base of all errors below: the job failed for a reason the user can act on (exit code 1)."""


class ConfigError(HoneError):
    """A recipe, option or setting is wrong (exit code 2)."""


class DataError(HoneError):
    """A data file cannot be read or holds something unusable."""


class CheckpointError(HoneError):
    """A checkpoint or run directory is missing, incomplete, corrupt or of an unknown kind."""


class CapacityError(HoneError):
    """Disk, memory or another bounded resource does not suffice."""


class RequestError(HoneError):
    """A request was understood and refused: a query, a prompt or a parameter (exit code 2)."""
