"""A Python interpreter that has imported what `megaokd` needs: `forks.py` with the arguments of `python` as a call.

With FORKS_RANKS=N among the variables of a call N ranks do it, in a group as torchrun makes one.

Usage: python_server.py SOCKET
"""

import os
import runpy
import sys
from pathlib import Path

from tests.support.forks import Call, fork, run_ranks, serve, wait_for, write_stand_in


def import_everything() -> None:
    """What the commands import when they are called."""
    import deepspeed  # noqa: F401
    import torch._dynamo  # noqa: F401
    import transformers  # noqa: F401

    import megaokd.evaluation.evaluate
    import megaokd.train_command
    import megaokd.trainer  # noqa: F401


def answer(call: Call) -> int:
    """Run what one call asks for."""
    ranks = int(os.environ.pop("FORKS_RANKS", "0"))

    def work() -> int:
        return run(call["argv"][1:])

    return run_ranks(work, ranks) if ranks else wait_for(fork(work, {}))


def run(arguments: list[str]) -> int:
    """`python FILE ...` or `python -m MODULE ...`."""
    if arguments[0] != "-m":
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    import_everything()
    python = Path(sys.argv[1]).with_name("python")
    write_stand_in(python)
    sys.executable = str(python)  # commands that start others call this server
    serve(sys.argv[1], answer)
