"""One layout on a cluster: is it possible, does it fit, how long does a step take."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from megaokd.config import Config
from megaokd.cost.hardware import Cluster
from megaokd.cost.memory import RankMemory, largest_rank
from megaokd.cost.setting import Setting
from megaokd.cost.student_choice import Choice, choose_student_tensor, with_student_tensor
from megaokd.cost.time import StepTime, step_time
from megaokd.data.batch import BatchShape
from megaokd.errors import UserError
from megaokd.kernels.linear import GPU_BUDGET
from megaokd.mesh import data_parallel_size
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.huggingface_config import read_architecture
from megaokd.pipeline.blueprint import check_models, configured_student
from megaokd.pipeline.schedule import check_bucket, check_micro_batches, check_zero_stage
from megaokd.sampling.check import check_on_policy


@dataclass(frozen=True)
class Models:
    """Both architectures, and the tokens of their tokenizer."""

    student: DecoderArchitecture
    teacher: DecoderArchitecture | None
    vocab_size: int

    @classmethod
    def read(cls, config: Config) -> "Models":
        """From `config.json` alone. The vocabulary is the data's where there is data, else the smaller model's.

        Raises:
            UserError: a folder that is not there, or a model that is not supported.
        """
        teacher = read_architecture(config.teacher.path) if config.teacher.path is not None else None
        known = _tokens_of_data(config)
        if known is None and config.student.path is not None:
            known = read_architecture(config.student.path).vocab_size
        known = known or (teacher.vocab_size if teacher is not None else None)
        if known is None:
            raise UserError(
                "the student's vocabulary is that of its data, and data.train is not there; preprocess the data first, "
                "or give student.path or teacher.path"
            )
        if teacher is not None:
            known = min(known, teacher.vocab_size)
        return cls(configured_student(config.student, teacher, known), teacher, known)


@dataclass(frozen=True)
class Plan:
    """A layout and what it costs."""

    setting: Setting
    rank: int
    """The pipeline rank that needs most memory."""
    memory: RankMemory
    time: StepTime
    choice: Choice | None = None
    """What `parallel.student_tensor=auto` was chosen from."""

    @property
    def config(self) -> Config:
        """With its layout."""
        return self.setting.config

    def fits(self, cluster: Cluster) -> bool:
        """Whether the fullest rank's peak is within what is usable of a GPU."""
        return self.memory.peak <= cluster.usable_bytes


def make_setting(config: Config, models: Models, processes: int, loss_share: float) -> Setting:
    """A run that can be built; loss_share: of the positions, those whose label carries loss.

    Raises:
        UserError: what `megaokd train` would refuse.
    """
    replicas = data_parallel_size(config.parallel, processes)
    data, train, parallel = config.data, config.train, config.parallel
    BatchShape(
        sequence_length=data.sequence_length,
        bucket=data.bucket,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        dp_size=replicas,
    )
    check_micro_batches(parallel, train.global_batch // (train.micro_batch * replicas))
    check_on_policy(config)
    check_models(config, models.student, models.teacher, models.vocab_size)
    check_bucket(parallel, data.bucket)
    check_zero_stage(parallel, train.zero_stage)
    width = data.widest_batch
    loss_tokens = max(1, round(train.micro_batch * width * loss_share))
    return Setting(config, models.student, models.teacher, models.vocab_size, processes, width, loss_tokens, GPU_BUDGET)


def make_plan(setting: Setting, cluster: Cluster) -> Plan:
    """Memory of the fullest rank and time of a step; `parallel.student_tensor=auto` becomes a number."""
    choice = None
    parallel = setting.config.parallel
    if parallel.student_tensor == "auto" and parallel.tensor > 1 and setting.config.train.on_policy is None:
        choice = choose_student_tensor(setting, cluster)
        assert choice is not None, "a setting that was checked has a number that suits the student"
        setting = with_student_tensor(setting, choice.ranks)
    rank, memory = largest_rank(setting)
    return Plan(setting, rank, memory, step_time(setting, cluster), choice)


def with_recompute(setting: Setting, recompute: bool) -> Setting:
    """The same run with or without recomputation."""
    return replace(
        setting, config=replace(setting.config, parallel=replace(setting.config.parallel, recompute=recompute))
    )


def _tokens_of_data(config: Config) -> int | None:
    if not isinstance(config.data.train, str):
        return None
    try:
        meta = json.loads((Path(config.data.train) / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return int(meta["vocab_size"]) if isinstance(meta, dict) and "vocab_size" in meta else None
