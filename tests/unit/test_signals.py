"""SIGTERM and Ctrl-C as requests, and what a command without one does."""

import os
import signal

import pytest

from megaokd import cli, signals
from megaokd.exit_status import ExitStatus
from megaokd.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a terminal and a launcher both send it
        assert stop.requested
    assert signal.getsignal(number) is before


def test_who_insists_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(signals, "INSIST_AFTER_S", 0.0)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capsys.readouterr().err.count("Ctrl-C once more ends it now") == 1


def test_ctrl_c_ends_a_command_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: object) -> int:
        raise KeyboardInterrupt

    assert cli.run(command, []) == ExitStatus.KILLED
    assert capsys.readouterr().err == "\nmegaokd: interrupted\n"
