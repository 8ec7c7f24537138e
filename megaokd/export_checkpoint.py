"""A checkpoint of a run in Hugging Face's forms: the student, the online modules as a PEFT adapter, or both merged."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from megaokd.checkpoint.choice import find_checkpoint
from megaokd.checkpoint.identity import new_state
from megaokd.checkpoint.tensors import load_tensors
from megaokd.config import Config
from megaokd.errors import UserError
from megaokd.export import export_student
from megaokd.export_teacher import export_adapter, export_merged_teacher
from megaokd.files import check_output_folder
from megaokd.mesh import ParallelMesh
from megaokd.run import build_run

What = Literal["student", "adapter", "merged-teacher"]
WHAT: tuple[What, ...] = get_args(What)


def check_export(config: Config, what: What, output: Path) -> None:
    """Refuse what cannot be written, before anything is built.

    Raises:
        UserError: the run has no such part, or `output` holds something or cannot be written.
    """
    online = config.teacher.online if config.teacher.path is not None else None
    if what != "student" and (online is None or online.kind != "lora"):
        kind = "no online modules" if online is None else f"online modules of kind={online.kind}"
        raise UserError(
            f"--what={what} needs LoRA modules (teacher.online.kind=lora); this run has {kind}"
            + ("" if online is None else ": peft has no form for them, and a bottleneck is not linear")
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} is not an empty folder; name one that does not exist yet")
    check_output_folder(output)


def export_checkpoint(config: Config, mesh: ParallelMesh, *, which: str, what: What, output: Path) -> str:
    """Load a checkpoint of `config`'s run, in any layout, and write a part of it; in words, what was done. Collective.

    which: "last", "best" or a step. Takes the memory of a training run without activations.

    Raises:
        UserError: there is no such checkpoint, or it belongs to another configuration.
    """
    choice = find_checkpoint(Path(config.checkpoint.folder), which, mesh.saving)
    # All of the teacher is loaded, whether or not the run kept its lower layers' output.
    run = build_run(replace(config, teacher=replace(config.teacher, cache=None)), mesh)
    differences = choice.contents.state.differences(new_state(config, run))
    if differences:
        raise UserError(
            f"{choice.path}: {'; '.join(differences)}. Give the configuration that the run was started with"
        )
    load_tensors(choice.path, run.engine, mesh, choice.contents.state.step, {})
    teacher = config.teacher
    if what == "student":
        export_student(run, output)
    elif teacher.path is not None and what == "adapter":
        export_adapter(run.models.teachers, teacher.path, output, mesh)
    elif teacher.path is not None:
        export_merged_teacher(run.models.teachers, teacher.path, output, mesh, dtype=teacher.dtype)
    return f"wrote {output}: the {what} of {choice.path}"
