"""The exceptions whose message is all that the command line prints."""


class UserError(ValueError):
    """What was wrong, where, and what to do, in one sentence; the command line prints it without a traceback."""


class RunError(RuntimeError):
    """What failed outside of the program (a disk, a machine), in one sentence, printed without a traceback."""
