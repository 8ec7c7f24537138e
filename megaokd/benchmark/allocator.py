"""The setting of torch's CPU allocator, which a page of measurements states and its command repeats."""

import os
import shlex
from collections.abc import Sequence

_VARIABLE = "THP_MEM_ALLOC_ENABLE"


def allocator_setting() -> str:
    """`NAME=value` for the environment of a page. Unless it is 1, large allocations cost a tenth of a step and more."""
    return f"{_VARIABLE}={os.environ.get(_VARIABLE, 'unset')}"


def measuring_command(benchmark: str, argv: Sequence[str]) -> str:
    """What a user types to measure again, behind the setting where there is one."""
    command = f"megaokd benchmark {benchmark} {shlex.join(argv)}"
    return f"{allocator_setting()} {command}" if _VARIABLE in os.environ else command
