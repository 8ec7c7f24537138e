"""Numbers on a command line, for argparse's `type`: a wrong one ends the command with its option and what is wrong.

And steps, START:STOP, of a configuration; names of sets of prompts.
"""

import argparse
import re

SET_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What a set of prompts may be called: a part of a file's name."""


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


def check_steps(value: object) -> object:
    """START:STOP with 1 <= START < STOP, as it was written; for pydantic, which turns the error into its sentence."""
    if isinstance(value, int):
        value = f"{value // 60}:{value % 60}"  # YAML 1.1 takes 3:5 for a number to base 60
    if value is None:
        return value
    found = re.fullmatch(r"(\d+):(\d+)", str(value))
    if found is None or not 1 <= int(found[1]) < int(found[2]):
        raise ValueError("expected START:STOP, two step numbers with 1 <= START < STOP")
    return value


def steps_of(text: str | None) -> range:
    """The steps of a checked START:STOP, without STOP; none for None."""
    if text is None:
        return range(0)
    start, stop = map(int, text.split(":"))
    return range(start, stop)


def _at_least(low: int, text: str) -> int:
    value = int(text)
    if value < low:
        raise argparse.ArgumentTypeError(f"{text} is less than {low}")
    return value
