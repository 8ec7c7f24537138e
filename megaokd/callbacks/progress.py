"""What a terminal shows: a progress bar with loss, tokens/s and time left, and warnings."""

import io
import sys

from tqdm import tqdm

from megaokd.callbacks.base import Callback, StepRecord, ValidationRecord, WarningRecord

_SHOWN = ("student_ce", "forward_kl", "top1_agreement", "teacher_ce", "teacher_drift")


class ProgressBar(Callback):
    """On stderr: a bar where there is a terminal, a line every tenth of the run where there is none."""

    def __init__(self, total_steps: int, first_step: int) -> None:
        self._interactive = sys.stderr.isatty()
        # Without a terminal the bar draws into the void and is printed as a line now and then.
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=self._interactive,
            file=sys.stderr if self._interactive else io.StringIO(),
        )
        self._every = max(1, total_steps // 10)

    def on_step(self, record: StepRecord) -> None:
        shown = {
            "loss": f"{record.metrics['student_loss']:.4f}",
            "tok/s": f"{record.input_tokens / record.seconds:.0f}",
        }
        if record.metrics.get("teacher_loss"):
            shown["teacher"] = f"{record.metrics['teacher_loss']:.4f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
        if not self._interactive and (record.step % self._every == 0 or record.step == record.total_steps):
            print(self._bar, file=sys.stderr, flush=True)

    def on_validation(self, record: ValidationRecord) -> None:
        values = [
            f"{name} {record.metrics[f'validation/{name}']:.4f}"
            for name in _SHOWN
            if f"validation/{name}" in record.metrics
        ]
        self.on_message(f"step {record.step}: validation {', '.join(values)}")

    def on_message(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class MessageLines(Callback):
    """Messages on stderr where there is no bar: that a run was stopped is told all the same."""

    def on_message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class WarningLines(Callback):
    """Warnings on stderr, above the bar where there is one."""

    def on_warning(self, record: WarningRecord) -> None:
        tqdm.write(f"megaokd: {record}", file=sys.stderr)
