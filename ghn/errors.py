"""Every error this project raises on purpose, grouped by who must act.

A message names the thing, the place (file, shard, architecture, parameter) and the next step. The command line prints
the message and exits with ``exit_code``. It does so, with 3, for files that can not be used and packages that are not
installed; anything else that escapes is a bug and keeps its traceback.
"""


class GHNError(Exception):
    """Base of all deliberate errors; ``exit_code`` is what the command line exits with.

    Examples:
        >>> import ghn
        >>> try:
        ...     ghn.load_checkpoint("nowhere")
        ... except ghn.GHNError as error:
        ...     print(error.exit_code, error)
        2 no checkpoint at nowhere: give a folder written by `ghn train`, or an official .pt file

    """

    exit_code = 1


class InputError(GHNError, ValueError):
    """The caller's data or options are wrong: mend the input named in the message.

    Examples:
        >>> from ghn import sample_architectures
        >>> sample_architectures("deepest", 1, seed=0)
        Traceback (most recent call last):
        ghn.errors.InputError: unknown split 'deepest'; splits are train, val, test, wide, deep, dense, bnfree, predefined

    """

    exit_code = 2


class OutOfRangeError(InputError, IndexError):
    """A sequence has no such index (an IndexError too, as Python's sequences raise)."""


class EnvironmentSetupError(GHNError):
    """Something on this machine is missing or unusable: install or configure what the message names."""

    exit_code = 3


class StorageError(GHNError):
    """An object store or disk did not do what was asked: check the address, the credentials, the space."""

    exit_code = 4


class DataError(GHNError):
    """Stored data is missing, damaged or of another kind than expected: make it again or restore it."""

    exit_code = 5


class TrainingError(GHNError):
    """Meta-training can not go on: the message says at which step and why."""

    exit_code = 6


class TrainingStoppedError(GHNError):
    """Meta-training was asked to stop, and did, with a checkpoint."""

    exit_code = 143


class StopRequestedError(TrainingError):
    """Somebody asked to stop in the middle of a step; the training loop catches it."""


class AlertError(GHNError):
    """An evaluation got worse or old: look at the numbers in the message."""

    exit_code = 7


class JobError(GHNError):
    """A task of a job failed; its own message was shown."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or "" where it has none."""
    return (str(error).splitlines() or [""])[0]
