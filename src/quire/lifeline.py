"""That no process of ours outlives the one that started it, not even one that hangs and looks at nothing any more."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends.

    Where the kernel is another one, what remains is the pipe to the parent, which every child of ours watches.
    """
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
