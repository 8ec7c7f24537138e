"""The one exception that carries a user's mistake to the command line."""


class UserError(ValueError):
    """What was wrong, where, and what to do, in one sentence; the command line prints it without a traceback."""
