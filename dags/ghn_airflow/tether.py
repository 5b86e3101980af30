"""Run a command that dies with the process that started it, however that ended: ``tether.py PARENT COMMAND...``.

Run by path, so it imports as little as possible.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of prctl(2); it outlives exec


def main() -> None:
    """Tie this process to its parent and become the command."""
    parent, *command = sys.argv[1:]
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux has it
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the process that started this command is gone")
    os.execvp(command[0], command)  # noqa: S606 - no shell: that is the point


if __name__ == "__main__":
    main()
