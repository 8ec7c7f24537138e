"""Putting a run together: data, models, pipeline, engine, from one configuration."""

import sys
from dataclasses import dataclass

import torch
from torch import nn

from megaokd.config import Config
from megaokd.cost.student_choice import settle_student_tensor
from megaokd.data.batch import BatchShape
from megaokd.data.batches import BatchOptions, TrainBatches, ValidationBatches
from megaokd.data.mixture import ExampleSet, open_dataset, open_training_data
from megaokd.data.tokenizer import first_difference, load_tokenizer, vocabulary_hash
from megaokd.distill.objective import HiddenStateLoss, Terms, check_backend
from megaokd.engine.engine import TrainingEngine
from megaokd.engine.parameters import GroupName, trainable_parameters
from megaokd.engine.step import TrainingStep
from megaokd.errors import UserError
from megaokd.kernels import Term
from megaokd.mesh import ParallelMesh
from megaokd.models.decoder import Decoder
from megaokd.models.huggingface_config import read_architecture
from megaokd.pipeline.blueprint import Blueprint
from megaokd.pipeline.models import DistillationModels, build_models
from megaokd.pipeline.schedule import Runner, build_runner, check_bucket, check_micro_batches, check_zero_stage
from megaokd.pipeline.stage import DriftStage, Slot
from megaokd.precision import Precision
from megaokd.sampling.adaptive import Schedule
from megaokd.sampling.check import chosen_terms
from megaokd.sampling.on_policy import OnPolicyBatches
from megaokd.trunk_cache.fill import Source
from megaokd.trunk_cache.prepare import prepare_trunks
from megaokd.trunk_cache.reader import TrunkReader


@dataclass
class Run:
    """The parts of a run on this rank."""

    config: Config
    mesh: ParallelMesh
    dataset: ExampleSet
    train_batches: TrainBatches
    validation_batches: ValidationBatches | None
    models: DistillationModels
    engine: TrainingEngine
    step: TrainingStep
    drift: "Drift | None"
    validation_trunk: TrunkReader | None
    """What a trunk cache knows of the validation data; `step` holds that of the training data."""
    on_policy: OnPolicyBatches | None
    """Writes the student's own responses, if the run trains on them."""
    notes: list[str]
    """What a user should know of the layout and the precision, a sentence each."""


@dataclass
class Drift:
    """How far the adapted teacher is from the original: KL(p_phi || p_0), through the same pipeline, no gradients."""

    runner: Runner
    loss: HiddenStateLoss


def build_run(config: Config, mesh: ParallelMesh) -> Run:
    """Build everything for this rank. Collective.

    Raises:
        UserError: what the user asked for does not fit together; the same on every rank where all see the same files.
    """
    # What the configuration alone decides comes first: a mistake is told before models are read or trunks computed.
    terms, generated = chosen_terms(config)
    check_zero_stage(config.parallel, config.train.zero_stage)
    online = config.teacher.path is not None and config.teacher.online is not None
    check_backend(config.objective.backend, mesh.device, terms)
    dataset = open_training_data(config.data)
    train, validation = _batches(config, dataset, mesh)
    _check_tokenizers(config, dataset)
    config, notes = settle_student_tensor(config, dataset.vocab_size, mesh)
    notes += precision_notes(config.train.precision, mesh.device)
    plan = Blueprint.draw(config, dataset.vocab_size, mesh)
    trunk, validation_trunk = _trunks(plan, train, validation)
    models = build_models(plan)
    parts = [models.students, models.teachers, *([models.teachers] if terms.anchor else [])]
    loss = _loss(config, models, terms, parts)
    runner = build_runner(models.stages, models.slots, loss, config.parallel, mesh.pipeline, mesh.device)
    engine = TrainingEngine(
        nn.ModuleList(models.stages),
        trainable_parameters(models),
        config.optimizer,
        mesh,
        models.tp,
        models.rows,
        zero_stage=config.train.zero_stage,
        deepspeed_options=config.deepspeed,
    )
    groups: tuple[GroupName, ...] = ("student", "online") if online else ("student",)
    step = TrainingStep(engine, runner, loss, mesh, config.optimizer, config.train.steps, groups, trunk, generated)
    # With an anchor the loss itself measures the drift.
    drift = _drift(config, models, mesh) if online and not terms.anchor else None
    writer = _on_policy(config, models, train, mesh)
    return Run(config, mesh, dataset, train, validation, models, engine, step, drift, validation_trunk, writer, notes)


def precision_notes(precision: Precision, device: torch.device) -> list[str]:
    """What to tell of the precision: the default is the exact one, and on a GPU the slow one."""
    if precision != "fp32" or device.type != "cuda":
        return []
    return [
        "train.precision=fp32: on a GPU matrix products take several times as long as with train.precision=bf16, which "
        "keeps weights, gradients and optimizer in fp32"
    ]


def _on_policy(
    config: Config, models: DistillationModels, batches: TrainBatches, mesh: ParallelMesh
) -> OnPolicyBatches | None:
    options = config.train.on_policy
    if options is None:
        return None
    eos_id = int(load_tokenizer(batches.dataset.tokenizer_path).eos_token_id)
    train, schedule = config.train, None
    if options.adaptive is not None:
        schedule = Schedule(options.adaptive, options.probability, train.steps, options.max_new_tokens)
    return OnPolicyBatches(options, models.students[0], batches, mesh, eos_id, train.seed, train.precision, schedule)


def _batches(config: Config, dataset: ExampleSet, mesh: ParallelMesh) -> tuple[TrainBatches, ValidationBatches | None]:
    data, train = config.data, config.train
    check_bucket(config.parallel, data.bucket)
    shape = BatchShape(
        sequence_length=data.sequence_length,
        bucket=data.bucket,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        dp_rank=mesh.data.rank,
        dp_size=mesh.data.size,
    )
    options = BatchOptions(packing=data.packing, length_window=data.length_window)
    batches = TrainBatches(dataset, shape, seed=train.seed, options=options)
    check_micro_batches(config.parallel, train.global_batch // (train.micro_batch * mesh.data.size))
    if train.early_stopping and not train.validate_every:
        raise UserError("train.early_stopping needs train.validate_every, and data.validation to validate on")
    if data.validation is None:
        if train.validate_every:
            raise UserError("train.validate_every is set, but data.validation names no data set")
        return batches, None
    held_out = open_dataset(data.validation, data)
    if held_out.vocabulary_hash != dataset.vocabulary_hash:
        raise UserError(
            f"{data.validation} and {dataset.folder} were made with different tokenizers; preprocess one again"
        )
    return batches, ValidationBatches(held_out, shape, limit=train.validation_batches)


def _trunks(
    plan: Blueprint, train: TrainBatches, validation: ValidationBatches | None
) -> tuple[TrunkReader | None, TrunkReader | None]:
    """Readers of the trunk cache for training and validation, after whatever is missing was written."""
    config = plan.config
    if config.teacher.cache is None:
        return None, None

    def say(text: str) -> None:
        if plan.mesh.is_main:
            print(f"megaokd: {text}", file=sys.stderr, flush=True)

    sources = [Source(train.dataset, train.visited(config.train.steps), packed=config.data.packing)]
    if validation is not None and config.train.validate_every:
        sources.append(Source(validation.dataset, validation.visited()))
    readers = prepare_trunks(plan, sources, train.shape, say)
    return readers[0], readers[1] if len(readers) > 1 else None


def _check_tokenizers(config: Config, dataset: ExampleSet) -> None:
    """Refuse a model whose tokenizer is not the data's: equal ids would mean different tokens."""
    for name, path in (("teacher", config.teacher.path), ("student", config.student.path)):
        if path is None:
            continue
        read_architecture(path)  # a folder that is no model is told before a tokenizer is looked for in it
        tokenizer = load_tokenizer(path)
        if vocabulary_hash(tokenizer) != dataset.vocabulary_hash:
            difference = first_difference(tokenizer, load_tokenizer(dataset.tokenizer_path))
            raise UserError(
                f"the tokenizer of the {name} ({path}) is not the one of the data ({dataset.folder}): {difference}; "
                f"preprocess the data with the {name}'s tokenizer"
            )


def _loss(
    config: Config, models: DistillationModels, terms: Terms, models_of_slots: list[list[Decoder]]
) -> HiddenStateLoss:
    """The loss over the last stage's heads; on other ranks one that only knows its names."""
    ends = [parts[-1] for parts in models_of_slots if parts and parts[-1].part.last]
    has_teacher = models.teacher_architecture is not None
    return HiddenStateLoss(
        tuple(ends),
        terms,
        models.vocab,
        models.tp,
        config.train.precision,
        has_teacher=has_teacher,
        fused=config.objective.fused,
        backend=config.objective.backend,
    )


def _drift(config: Config, models: DistillationModels, mesh: ParallelMesh) -> Drift:
    assert models.teacher_architecture is not None
    size = models.teacher_architecture.hidden_size
    begin = models.slots[1].sent_from_stage
    stages_in_all, parts = config.parallel.num_stages, models.tp.sequence_parts
    slots = (Slot(size, grad_from_stage=stages_in_all, sent_from_stage=begin, sequence_parts=parts),) * 2
    stages = [DriftStage(stage.teacher, config.train.precision, stage.takes_trunk) for stage in models.stages]
    terms = Terms(student=(Term("forward_kl", 1.0),), teacher=(), temperature=1.0)
    loss = _loss(config, models, terms, [models.teachers, models.teachers])
    runner = build_runner(stages, slots, loss, config.parallel, mesh.pipeline, mesh.device)
    return Drift(runner, loss)
