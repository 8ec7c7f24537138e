"""What a rank says when it ends by an error, while its watch may end the process at any moment."""

from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist

from megaokd import mesh, rank_watch
from megaokd.config import Parallel
from megaokd.exit_status import ExitStatus
from megaokd.train_command import run_ranks


class EndedError(BaseException):
    """Stands for the end of the process."""


class Watch:
    """One that finds a rank lost as soon as it is told of trouble."""

    def trouble(self) -> NoReturn:
        raise EndedError


def wrapped(cause: Exception) -> RuntimeError:
    error = RuntimeError("stage 1 failed to run forward")
    error.__cause__ = cause
    return error


GLOO = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
ERRORS = {
    "out of memory": (torch.OutOfMemoryError("CUDA out of memory"), True),
    "gloo": (GLOO, False),
    "NCCL": (dist.DistBackendError("NCCL error"), False),
    "gloo in a stage": (wrapped(GLOO), False),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_of_its_own_is_told_before_the_watch_is_asked(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of a collective is not: the watch's sentence, where it has one, says more."""
    error, told = ERRORS[case]
    monkeypatch.setattr(mesh, "start_distributed", lambda *_: torch.device("cpu"))
    monkeypatch.setattr(mesh, "build_mesh", lambda *_: None)
    monkeypatch.setattr(rank_watch.RankWatch, "start", lambda *_: Watch())

    def work(_: Any) -> ExitStatus:
        raise error

    with pytest.raises(EndedError):
        run_ranks(Parallel(), 600, 60.0, work)
    assert (f"{type(error).__name__}: {error}" in capsys.readouterr().err) == told
