"""The loop: resume, step, validate, save, export."""

import resource
import time
from pathlib import Path

import torch
import torch.distributed as dist

from megaokd.callbacks.base import Callback, CheckpointRecord, StepRecord, ValidationRecord
from megaokd.callbacks.build import build_callbacks
from megaokd.callbacks.summary import SUMMARY_FILE, changed_since
from megaokd.checkpoint.checkpointer import Checkpointer, refuse_checkpoints
from megaokd.checkpoint.folder_lock import FolderLock
from megaokd.checkpoint.frozen import frozen_weights_hash
from megaokd.checkpoint.identity import new_state
from megaokd.checkpoint.state import (
    EXPORT_CHECK_FILE,
    MERGED_TEACHER_FOLDER,
    REPLAY,
    STUDENT_FOLDER,
    TEACHER_ADAPTER_FOLDER,
    RunState,
)
from megaokd.config import Config
from megaokd.config_file import to_dict
from megaokd.engine.monitors import check_monitors
from megaokd.engine.report import StepReport
from megaokd.errors import UserError
from megaokd.exit_status import ExitStatus
from megaokd.export import export_student, write_export_check
from megaokd.export_teacher import check_teacher_export, export_adapter, export_merged_teacher
from megaokd.files import write_json
from megaokd.mesh import ParallelMesh
from megaokd.option_types import steps_of
from megaokd.profiling import PROFILE_FOLDER, StepProfiler
from megaokd.run import Run, build_run
from megaokd.samples import NO_PIPELINE, TextSampler
from megaokd.signals import StopRequest
from megaokd.validation import check_best_metric, judge, validate


class Trainer:
    """A run from its configuration to its last checkpoint. Every method is collective."""

    def __init__(self, config: Config, mesh: ParallelMesh) -> None:
        self.config = config
        self.mesh = mesh
        self.folder = Path(config.checkpoint.folder)
        check_teacher_export(config)
        check_monitors(config.deepspeed)
        self.lock = FolderLock(self.folder, mesh)
        if config.train.resume == "never":
            refuse_checkpoints(self.folder)
        self.run: Run = build_run(config, mesh)
        check_best_metric(config.train, self.run)
        self.schedule = self.run.on_policy.schedule if self.run.on_policy is not None else None
        beside = {REPLAY: self.schedule.replay.table} if self.schedule is not None else {}
        self.checkpointer = Checkpointer(config.checkpoint, self.run.engine, mesh, beside)
        self.state = new_state(config, self.run)
        self.sampler = TextSampler.build(self.run)
        self.frozen_hash = frozen_weights_hash(self.run.models.teachers) if config.teacher.check_frozen_every else ""
        self.watcher = Callback()
        self.profiler = StepProfiler(
            steps_of(config.train.profile), self.folder / PROFILE_FOLDER, mesh.rank, self._tell
        )
        self._cpu_seconds = 0.0  # this rank's, not yet in the state

    def fit(self, stop: StopRequest) -> ExitStatus:
        """Train to the end, or until SIGTERM or early stopping."""
        told = self._resume()
        self.watcher = build_callbacks(self.config, self.mesh, self.state.step)
        for text in told:
            self.watcher.on_message(text)
        for text in (*self.lock.told, *self.run.notes, *self.run.train_batches.notes):
            self.watcher.on_message(text)
        if self.config.logging.samples and self.sampler is None:
            self.watcher.on_message(NO_PIPELINE)
        try:
            outcome = self._loop(stop)
            self.profiler.close()
            if outcome is ExitStatus.FINISHED:
                self._finish()
        except UserError:  # seen by every rank: a save under way can still be completed
            self.checkpointer.settle()
            raise
        finally:
            self.watcher.close()
            self.lock.release()
        return outcome

    def _tell(self, text: str) -> None:
        self.watcher.on_message(text)

    def _loop(self, stop: StopRequest) -> ExitStatus:
        if self._stop_agreed(stop):
            self.watcher.on_message(
                f"SIGTERM received before step {self.state.step + 1}, nothing to save; start again with resume=auto"
            )
            return ExitStatus.INTERRUPTED
        saved_at = self.state.step
        validated_at = self.state.validated_at
        if self.schedule is not None and self.state.step == 0:
            self._validate()  # the student that its validation losses are compared with; no checkpoint has it
        self._validate_if_due()  # one that SIGTERM left out
        if self.state.validated_at != validated_at and saved_at:
            self.checkpointer.update(self._state_to_save())
        while self.state.step < self.config.train.steps and not self._stops_early():
            with self.profiler.step(self.state.step + 1):
                report = self._step(stop)
            # Asked to stop, a run has little time left: it saves, and leaves out a validation that was due.
            improved = not report.stop_requested and self._validate_if_due()
            if report.stop_requested or self._stops_early() or improved or self._checkpoint_due():
                self._save()
                saved_at = self.state.step
            if report.stop_requested:
                self._tell_saved(self.checkpointer.wait())
                self.watcher.on_message(
                    f"step {self.state.step}: SIGTERM received, checkpoint saved; start again with resume=auto"
                )
                return ExitStatus.INTERRUPTED
        if self._stops_early():
            self.watcher.on_message(f"step {self.state.step}: stopped early, best {self.state.best}")
        if saved_at < self.state.step:
            self._save()
        self._tell_saved(self.checkpointer.wait())
        return ExitStatus.FINISHED

    def _stop_agreed(self, stop: StopRequest) -> bool:
        """Whether any rank was asked to stop before the first step. One all-reduce, once a run."""
        asked = torch.tensor(float(stop.requested), device=self.mesh.device)
        dist.all_reduce(asked)
        return bool(asked.item() > 0)

    def _save(self) -> None:
        self.state.training_cpu_seconds += self._take_cpu_seconds()
        self._tell_saved(self.checkpointer.save(self._state_to_save()))

    def _state_to_save(self) -> RunState:
        if self.schedule is not None:
            self.state.on_policy = self.schedule.state
        return self.state

    def _take_cpu_seconds(self) -> float:
        """What all ranks spent in training steps since the last call. One all-reduce."""
        total = torch.tensor(self._cpu_seconds, dtype=torch.float64, device=self.mesh.device)
        dist.all_reduce(total)
        self._cpu_seconds = 0.0
        return total.item()

    def _tell_saved(self, record: CheckpointRecord | None) -> None:
        if record is not None:
            self.watcher.on_checkpoint(record)

    def _step(self, stop: StopRequest) -> StepReport:
        started, cpu_started = time.perf_counter(), time.process_time()
        step = self.state.step
        batch = self.run.train_batches.batch(step)
        data_seconds = time.perf_counter() - started
        origin: dict[str, float] = {}
        if self.run.on_policy is not None:
            sampled = self.run.on_policy(step, batch)
            batch, origin = sampled.batch, sampled.scalars
        # A save that failed ends the run as SIGTERM does: all ranks at one step, in the next call of `save`.
        report = self.run.step(step, batch, stop_requested=stop.requested or self.checkpointer.failed)
        self._tell_saved(self.checkpointer.finished())
        self.state.step += 1
        self.state.generated_steps += int(origin.get("on_policy/generated", 0.0))
        self.state.replayed_steps += int(origin.get("on_policy/replayed", 0.0))
        seconds = time.perf_counter() - started
        self.state.training_seconds += seconds
        self._cpu_seconds += time.process_time() - cpu_started
        self._check_frozen()
        record = StepRecord(
            step=self.state.step,
            total_steps=self.config.train.steps,
            metrics=report.metrics,
            norms={str(name): norm for name, norm in report.norms.items()},
            learning_rates={str(name): rate for name, rate in self.run.step.learning_rates(step).items()},
            tokens=report.tokens,
            input_tokens=batch.input_tokens,
            seconds=seconds,
            memory_bytes=_peak_memory(self.mesh.device),
            data_seconds=data_seconds,
            origin=origin,
        )
        self.watcher.on_step(record)
        return report

    def _validate_if_due(self) -> bool:
        """Whether a validation was made and is the best so far."""
        every = self.config.train.validate_every
        step = self.state.step
        if not every or step == self.state.validated_at or (step % every and step != self.config.train.steps):
            return False
        return judge(self._validate(), self.state, self.config.train)

    def _validate(self) -> ValidationRecord:
        self.state.validated_at = self.state.step
        record = validate(self.run, self.state.step, self.sampler)
        self.watcher.on_validation(record)
        if self.schedule is not None:
            self.schedule.after_validation(record.metrics["validation/student_ce"])
        return record

    def _stops_early(self) -> bool:
        patience = self.config.train.early_stopping
        return 0 < patience <= self.state.validations_without_gain

    def _checkpoint_due(self) -> bool:
        every = self.config.checkpoint.every
        return every > 0 and self.state.step % every == 0

    def _check_frozen(self) -> None:
        every = self.config.teacher.check_frozen_every
        if every and self.state.step % every == 0 and frozen_weights_hash(self.run.models.teachers) != self.frozen_hash:
            raise RuntimeError(
                f"step {self.state.step}, rank {self.mesh.rank}: the frozen teacher's weights are not what they were "
                "at the start; something outside the optimizer wrote to them"
            )

    def _resume(self) -> list[str]:
        """Continue from a checkpoint, if there is one; returns what there is to tell about that."""
        if self.config.train.resume == "never":
            return []
        state, told = self.checkpointer.resume(self.state)
        self.state = state or self.state
        if self.schedule is not None and self.state.on_policy:
            self.schedule.restore(self.state.on_policy)
        return told if state is None else [*told, self._continues()]

    def _continues(self) -> str:
        """Where a run goes on, and what is not as it was; it may be meant."""
        step, steps = self.state.step, self.config.train.steps
        if step > steps:
            raise UserError(
                f"train.steps={steps}, but {self.folder} is at step {step} already; give at least as many, or another "
                "checkpoint.folder"
            )
        words = f"continuing from step {step} of {self.folder}"
        if step == steps:
            words = f"{self.folder} is at step {step}, the last one: nothing is trained; for more give train.steps"
        changed = changed_since(self.folder, self.config) if self.mesh.is_main else []
        return f"{words}; changed since then: {', '.join(changed)}" if changed else words

    def _finish(self) -> None:
        if self.config.checkpoint.export:
            export_student(self.run, self.folder / STUDENT_FOLDER)
        self._export_teacher()
        if self.mesh.is_main:
            summary = {
                "steps": self.state.step,
                "training_seconds": self.state.training_seconds,
                "training_cpu_seconds": self.state.training_cpu_seconds,
                "generated_steps": self.state.generated_steps,
                "replayed_steps": self.state.replayed_steps,
                "best": self.state.best,
                "processes": self.mesh.world_size,
                "config": to_dict(self.config),
            }
            write_json(self.folder / "summary.json", summary)
        if self.config.checkpoint.export:  # last, since it needs room on the device and nothing needs it
            write_export_check(self.run, self.folder / EXPORT_CHECK_FILE)
        made = (STUDENT_FOLDER, TEACHER_ADAPTER_FOLDER, MERGED_TEACHER_FOLDER, "checkpoints", SUMMARY_FILE)
        self._tell(f"{self.folder} holds {', '.join(name for name in made if (self.folder / name).exists())}")

    def _export_teacher(self) -> None:
        teacher, options = self.config.teacher, self.config.checkpoint
        if teacher.path is None or teacher.online is None:
            return
        slices = self.run.models.teachers
        if options.export and teacher.online.kind != "lora":
            self.watcher.on_message(
                f"no {TEACHER_ADAPTER_FOLDER}: peft has no form for modules of kind={teacher.online.kind}; "
                "they are in the checkpoints"
            )
        elif options.export:
            export_adapter(slices, teacher.path, self.folder / TEACHER_ADAPTER_FOLDER, self.mesh)
        if options.export_merged_teacher:
            folder = self.folder / MERGED_TEACHER_FOLDER
            export_merged_teacher(slices, teacher.path, folder, self.mesh, dtype=teacher.dtype)


def _peak_memory(device: torch.device) -> int:
    """The most memory this process has held: of the GPU, or of the process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
