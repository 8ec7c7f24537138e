"""Numbers on a command line, for argparse's `type`: a wrong one ends the command with its option and what is wrong."""

import argparse


def count(text: str) -> int:
    """0, 1, ..."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """1, 2, ..."""
    return _at_least(1, text)


def positive_number(text: str) -> float:
    """Above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def share(text: str) -> float:
    """Above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _at_least(low: int, text: str) -> int:
    value = int(text)
    if value < low:
        raise argparse.ArgumentTypeError(f"{text} is less than {low}")
    return value
