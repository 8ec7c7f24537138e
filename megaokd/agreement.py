"""Work on files that each rank, or rank 0 alone, does for itself, and whose outcome every rank then knows."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from megaokd.errors import RunError

T = TypeVar("T")


def from_main(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Rank 0's result of `work`, or what it raised, on every rank. One broadcast of a small object over the world.

    group: another group of all ranks: `mesh.saving`, whose timeout is long, where `work` reads or writes much.
    """
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome = [work(), None]
        except Exception as error:  # whatever it is, the others must not wait for rank 0
            outcome = [None, error]
    dist.broadcast_object_list(outcome, src=0, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def together(work: Callable[[], T], group: dist.ProcessGroup) -> list[T]:
    """Do `work` on every rank and return all results, by rank. One gather of small objects over `group`.

    Raises:
        RunError: on every rank, if it failed on one of them.
    """
    result: Any = None
    problem: str | None = None
    try:
        result = work()
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except Exception as error:  # whatever it is, the others must not wait for this rank
        problem = f"{type(error).__name__}: {error}"
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, (result, problem), group=group)
    for rank, (_, text) in enumerate(found):
        if text is not None:
            raise RunError(f"rank {rank}: {text}")
    return [value for value, _ in found]
