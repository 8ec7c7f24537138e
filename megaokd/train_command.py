"""`megaokd train CONFIG.yaml [section.key=value ...]`, under a launcher or without one."""

import argparse
import atexit
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from megaokd.config import Config, Parallel, Train
from megaokd.config_file import load_config
from megaokd.errors import RunError, UserError
from megaokd.exit_status import ExitStatus
from megaokd.signals import StopRequest

if TYPE_CHECKING:
    from megaokd.mesh import ParallelMesh

Work = Callable[["ParallelMesh"], ExitStatus]
"""What a rank does, and how it ended."""


def main(argv: Sequence[str]) -> int:
    """Train or distil; the exit status is 0 when finished, 75 when interrupted by SIGTERM, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="megaokd train", description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are YAML")
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.overrides)

    # torch and deepspeed take seconds to import: a mistake in the configuration is told before that.
    from megaokd.models.hub import fetch_models
    from megaokd.trainer import Trainer

    with StopRequest() as stop:  # from here on, so that a signal while models load is not lost
        return run_distributed(config, lambda mesh: Trainer(fetch_models(config), mesh).fit(stop))


def run_distributed(config: Config, work: Work) -> ExitStatus:
    """`run_ranks` in the layout of a run and with its limits."""
    return run_ranks(config.parallel, config.train.timeout_s, config.train.lost_rank_s, work)


def run_split(tensor: int, work: Work) -> ExitStatus:
    """`run_ranks` with models split over `tensor` processes and replicas on the rest, with the limits of a training."""
    defaults = Train(steps=1)
    return run_ranks(Parallel(tensor=tensor), defaults.timeout_s, defaults.lost_rank_s, work)


def run_ranks(parallel: Parallel, timeout_s: int, lost_rank_s: float, work: Work) -> ExitStatus:
    """Join the launcher's processes, do `work`, leave together; its status, or that of what it raised.

    After an error this process ends at once: other ranks may wait in a collective that it will never join. One of
    several processes does not return either: it has run the exit functions, and ends (`_leave`). SIGTERM ends each of
    them at once, unless the caller's `StopRequest` takes it as a request.
    """
    import torch.distributed as dist

    from megaokd.mesh import build_mesh, start_distributed
    from megaokd.rank_watch import RankWatch, failed_collective

    status, words = ExitStatus.FAILED, ""
    watch: RankWatch | None = None
    try:
        device = start_distributed(timeout_s)
        watch = RankWatch.start(lost_rank_s, _say_failed)
        mesh = build_mesh(parallel, device, timeout_s)
        outcome = work(mesh)
        if watch is not None:
            watch.finishing()
        dist.barrier()
        if watch is not None:
            watch.close()
        dist.destroy_process_group()
        status = outcome
    except UserError as error:
        status, words = ExitStatus.USER_ERROR, str(error)
        print(f"{_prefix()}error: {error}", file=sys.stderr)
    except RunError as error:
        words = str(error)
        _say_failed(words)
    except Exception as error:
        words, text = f"{type(error).__name__}: {error}", f"\n{traceback.format_exc()}"
        of_collective = failed_collective(error)
        if not of_collective:  # told first, as the watch may end this process in the meantime
            _say_failed(text)
        if watch is not None and isinstance(error, RuntimeError):
            watch.trouble()
        if of_collective:
            _say_failed(text)
    if status in (ExitStatus.USER_ERROR, ExitStatus.FAILED):
        # Other ranks may wait in a collective that this one will never join: they are told, and this one leaves without
        # the cleanup that waits for them.
        sys.stdout.flush()
        sys.stderr.flush()
        if watch is not None:
            watch.last_words(words)
        os._exit(status)
    if watch is not None:
        _leave(status)
    return status


def _leave(status: int) -> NoReturn:
    """End one of several processes as the interpreter would end it, without taking the interpreter down.

    A thread of gloo may still hold the last reference to a tensor of a collective that has long returned. Dropping it
    needs the interpreter; while that is taken down, the thread is ended instead, in C++ code that aborts the process
    ("terminate called without an active exception"): a run that is done and saved would look failed. Seen in 2 of 164
    runs of two processes with torch 2.13.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _say_failed(text: str) -> None:
    print(f"{_prefix()}failed: {text}", file=sys.stderr, flush=True)


def _prefix() -> str:
    rank = os.environ.get("RANK", "0")
    return f"megaokd: rank {rank}: " if os.environ.get("WORLD_SIZE", "1") != "1" else "megaokd: "
