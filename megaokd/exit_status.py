"""What the commands end with."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """The status of a process of `megaokd`; launch scripts, schedulers and `megaokd compare` act on it."""

    FINISHED = 0
    FAILED = 1
    USER_ERROR = 2
    """A user's mistake, told in one sentence; argparse ends with it too."""
    KILLED = 130
    """Ctrl-C where nothing is kept, or a second one: 128 + SIGINT, as of a program that died of it."""
    INTERRUPTED = 75
    """Stopped by a signal with what was done kept: the same command goes on there (EX_TEMPFAIL of sysexits.h)."""
