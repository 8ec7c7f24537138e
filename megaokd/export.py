"""The student as a Hugging Face folder with the data's tokenizer, and a sample of our own logits to check it by."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megaokd.data.tokenizer import load_tokenizer
from megaokd.files import make_empty
from megaokd.models.decoder import Decoder
from megaokd.models.huggingface_config import derived_config, huggingface_config, read_json_object
from megaokd.models.huggingface_weights import export_weights, gather_whole
from megaokd.parallel.layout import TensorLayout
from megaokd.pipeline.schedule import build_runner
from megaokd.pipeline.stage import DistillationStage
from megaokd.precision import DTYPES, Precision
from megaokd.run import Run

# What is copied from the folder that a student came from: everything but weights and texts about it.
_COPIED = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab.*", "merges.txt", "*.model", "chat_template*",
)  # fmt: skip
_CHECKED_TOKENS = 64
"""Positions of a row whose logits `write_export_check` keeps."""


def export_student(run: Run, folder: Path) -> None:
    """Write FOLDER (config.json, safetensors, tokenizer files). Collective over the world.

    A student that came from a folder keeps that folder's files as they are; only `dtype` in config.json follows
    `checkpoint.export_dtype`. One that started from the teacher has the teacher's, with its own sizes. One that was
    trained from scratch gets the tokenizer of the data.
    """
    dtype = run.config.checkpoint.export_dtype
    if run.mesh.is_main:
        make_empty(folder)
        if run.config.student.path is not None:
            copy_model_files(Path(run.config.student.path), folder, dtype=dtype)
        elif run.config.student.from_teacher is not None and run.config.teacher.path is not None:
            copy_model_files(Path(run.config.teacher.path), folder)
            values = derived_config(run.config.teacher.path, run.models.student_architecture)
            write_json(folder / "config.json", {**values, "dtype": dtype})
        else:
            _write_own_files(run, folder, dtype)
    dist.barrier(run.mesh.saving)

    def rounded(part: Decoder) -> Iterator[tuple[str, torch.Tensor, TensorLayout]]:
        return ((name, parameter.to(DTYPES[dtype]), layout) for name, parameter, layout in part.named_layouts())

    export_weights(run.models.students, folder, run.mesh, rounded)


def copy_model_files(source: Path, folder: Path, *, dtype: str = "float32") -> None:
    """Copy what belongs to a model beside its weights; `dtype` is what they will have."""
    for file in sorted({file for pattern in _COPIED for file in source.glob(pattern) if file.is_file()}):
        shutil.copyfile(file, folder / file.name)
    values = read_json_object(folder / "config.json")
    if values.get("dtype", values.get("torch_dtype")) != dtype:
        values.pop("torch_dtype", None)
        write_json(folder / "config.json", {**values, "dtype": dtype})


def _write_own_files(run: Run, folder: Path, dtype: str) -> None:
    tokenizer_folder = run.dataset.tokenizer_path
    tokenizer = load_tokenizer(tokenizer_folder)
    values = huggingface_config(
        run.models.student_architecture, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    write_json(folder / "config.json", {**values, "dtype": dtype})
    for file in tokenizer_folder.iterdir():
        shutil.copy(file, folder / file.name)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """As `transformers` writes it: sorted and indented."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_export_check(run: Run, path: Path) -> None:
    """Write `tokens` [b, S] and the parallel student's `logits` [b, S, V] fp32 of a few tokens of the training data.

    b: one row for each group that a student split less than its teacher forms; S: at most about 64. So few, since whole
    logits of a vocabulary stand beside the optimizer state here. The weights are rounded as in the export. Collective
    over the world; what the first data-parallel rank computes is written.
    """
    precision: Precision = "fp32"
    stages = [DistillationStage(student, None, precision) for student in run.models.students]
    recorder = _LogitRecorder(run)
    runner = build_runner(
        stages, run.models.slots[:1], recorder, run.config.parallel, run.mesh.pipeline, run.mesh.device
    )
    tokens = _few_tokens(run)
    with _rounded(run.models.students, DTYPES[run.config.checkpoint.export_dtype]):
        runner.forward(tokens.to(run.mesh.device), torch.zeros_like(tokens))
    if recorder.logits is not None and run.mesh.tensor.rank == 0 and run.mesh.data.rank == 0:
        save_file({"tokens": tokens[0].contiguous(), "logits": recorder.logits.cpu()}, path)
    dist.barrier(run.mesh.saving)


def _few_tokens(run: Run) -> torch.Tensor:
    """[M, b, S] of the first batch, as few of each as the layout runs: a micro-batch a stage, a row a row group.

    Rows that examples share are read as one text, which is how the exported model will read them.
    """
    tokens, parts = run.train_batches.batch(0).tokens, run.models.tp.sequence_parts
    width = min(tokens.shape[-1], -(-_CHECKED_TOKENS // parts) * parts)
    return tokens[: run.mesh.pipeline.size, : run.models.slots[0].row_groups, :width].contiguous()


@contextmanager
def _rounded(students: list[Decoder], dtype: torch.dtype) -> Iterator[None]:
    """Inside, weights have the values that they have when written in `dtype`; their own wait in host memory."""
    parameters = [parameter for part in students for parameter in part.parameters() if parameter.dtype != dtype]
    before = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(parameter.to(dtype))
        yield
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)


class _LogitRecorder:
    """Stands in the loss function's place and keeps the first micro-batch's logits, gathered over the vocabulary."""

    def __init__(self, run: Run) -> None:
        self.models = run.models
        self.mesh = run.mesh
        self.logits: torch.Tensor | None = None

    def __call__(self, hidden: tuple[torch.Tensor, ...], labels: torch.Tensor, *, scale: float) -> torch.Tensor:
        if self.logits is None:
            student = self.models.students[-1]
            assert student.head is not None
            every = torch.ones(labels.shape, dtype=torch.bool, device=labels.device)
            local = student.head(student.kept_tokens(hidden[0], every)).unflatten(0, labels.shape)
            # The vocabulary is the last dimension of logits and the first of the head's weight.
            whole = gather_whole(local.movedim(-1, 0).contiguous(), student.head.layout, self.mesh)
            self.logits = whole.movedim(0, -1).float().contiguous()
        return hidden[0].new_zeros(())
