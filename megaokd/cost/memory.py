"""What a rank holds: of both models, of the optimizer, of activations, and of the loss. Bytes.

Exact, by construction of the models and of the optimizer (n trained elements of a rank, d replicas):

    teacher       2 or 4 a frozen element, `teacher.dtype`
    weights       4 n: the student's and the modules', fp32 in either precision
    gradients     4 n, from the first micro-batch's backward to the reduction, with ZeRO-1 and ZeRO-2 alike
    optimizer     12 n / d: master weights and two moments

Counted operation by operation (`layer_tape`): what a micro-batch keeps for backward, times the passes in flight. The
rest follows from reading the code; the peak of it all is compared with steps by `megaokd benchmark growth`:

    loss          heads of T loss tokens, with V rows of the head on a rank, D hidden size of a model, p bytes a product
                  fused     logits of a chunk (a budget of 1 GiB on a GPU), p T D gradients, 4 V D of the student's head
                  not       p T V logits of each model and as much for the gradient of each that learns, and 4 V D
    buffers       of the pipeline: room for every micro-batch's hidden states and gradients
    writing       keys and values of a replica's rows while the student writes responses (`train.on_policy`)
    reduction     beside the gradients DeepSpeed's bucket and, where it is filled more than once, the owned share that
                  is already reduced; in the update, when only that share is left, four times it: as it comes, flat,
                  and two steps of Adam's
"""

from dataclasses import dataclass

from megaokd.cost.communication import FP32, bucket_size, held_on, slots
from megaokd.cost.layer_tape import LayerCost
from megaokd.cost.part_cost import part_cost
from megaokd.cost.setting import Setting
from megaokd.cost.writing import writing_memory
from megaokd.kernels.linear import chunk_tokens


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank of a pipeline stage; tensor- and data-parallel ranks hold as much as one another."""

    teacher: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """All passes in flight, and what recomputation keeps of one layer once more."""
    loss: int
    buffers: int
    reduction: int
    """Of reduction and update, what is more than `gradients`."""
    modules: int
    """Of `weights`, and of `gradients` as many, the modules'; the rest is the student's."""
    modules_optimizer: int
    """Of `optimizer` likewise."""
    teacher_activations: int
    """Of `activations` the teacher's, with its modules'."""
    writing: int = 0

    @property
    def peak(self) -> int:
        """The largest of three moments: writing, backward of a micro-batch, or reduction and update after the last."""
        backward = self.activations + self.loss
        return (
            self.teacher
            + self.weights
            + self.gradients
            + self.optimizer
            + self.buffers
            + max(backward, self.reduction, self.writing)
        )


def rank_memory(setting: Setting, pipeline_rank: int) -> RankMemory:
    """Memory of a rank of this pipeline stage."""
    student, teacher = held_on(setting, pipeline_rank)
    trained = student.trained + teacher.trained
    stored = 2 if setting.config.teacher.dtype == "bfloat16" else FP32
    owned = -(-trained // setting.data_parallel)
    bucket = bucket_size(setting, trained)
    is_last = setting.config.parallel.num_stages - 1 in setting.own_stages(pipeline_rank)
    activations, of_teacher = _activations(setting, pipeline_rank)
    return RankMemory(
        teacher=teacher.frozen * stored,
        weights=trained * FP32,
        gradients=trained * FP32,
        optimizer=3 * owned * FP32,
        activations=activations,
        loss=loss_memory(setting, fused=setting.config.objective.fused) if is_last else 0,
        buffers=_pipeline_buffers(setting, pipeline_rank),
        reduction=FP32 * max(bucket + (owned if bucket < trained else 0), 4 * owned - trained),
        modules=teacher.trained * FP32,
        modules_optimizer=3 * FP32 * teacher.trained // setting.data_parallel,
        teacher_activations=of_teacher,
        writing=writing_memory(setting),
    )


def largest_rank(setting: Setting) -> tuple[int, RankMemory]:
    """The pipeline rank that needs most, and what it holds."""
    ranks = [(rank, rank_memory(setting, rank)) for rank in range(setting.config.parallel.pipeline)]
    return max(ranks, key=lambda found: found[1].peak)


def in_flight(setting: Setting, pipeline_rank: int) -> int:
    """Passes through a stage of this rank that wait for their backward at the same time, at most.

    1F1B: one for each stage from this one to the last. Interleaved, v stages a rank: (v - 1) rounds of P micro-batches
    and two for each rank behind this one are begun before the first backward, one more with it.
    """
    parallel, count = setting.config.parallel, setting.micro_batches
    behind = parallel.pipeline - 1 - pipeline_rank
    if parallel.schedule == "1f1b":
        return min(count, behind + 1)
    a_round = count // max(1, count // parallel.pipeline)
    begun = (parallel.virtual_stages - 1) * a_round + 2 * behind
    return min(count * parallel.virtual_stages, begun + 1)


def _activations(setting: Setting, pipeline_rank: int) -> tuple[int, int]:
    """Of both models, and of them the teacher's. The one layer that is kept once more is the larger one's."""
    stages = setting.own_stages(pipeline_rank)
    recompute, last = setting.config.parallel.recompute, setting.config.parallel.num_stages - 1
    kept, again = [0, 0], [0, 0]
    for stage in stages:
        sent = slots(setting, stage) if stage < last else []
        for model, slot in enumerate((sent[:1], sent[1:])):
            part = (setting.students[stage], setting.teachers[stage])[model]
            cost = part_cost(part, setting.shape(part), recompute=recompute) if part is not None else LayerCost()
            kept[model] += cost.kept + sum(slot)
            again[model] = max(again[model], cost.again)
    passes = in_flight(setting, pipeline_rank)
    total = -(-passes * sum(kept) // len(stages)) + max(again)
    return total, passes * kept[1] // len(stages) + (again[1] if again[1] > again[0] else 0)


def _pipeline_buffers(setting: Setting, pipeline_rank: int) -> int:
    """Receive buffers of every micro-batch, those left out whose content the activations count."""
    total = 0
    last = setting.config.parallel.num_stages - 1
    stages = setting.own_stages(pipeline_rank)
    waiting = setting.micro_batches - in_flight(setting, pipeline_rank) // len(stages)
    for stage in stages:
        if stage > 0:
            total += max(0, waiting) * sum(slots(setting, stage - 1))
        if stage < last:
            total += setting.micro_batches * sum(slots(setting, stage, gradients=True))
    return total


def loss_memory(setting: Setting, *, fused: bool) -> int:
    """One micro-batch's loss on a rank of the last stage, from the final hidden states to their gradients."""
    tokens, rows = setting.loss_tokens, setting.vocab.rows
    product = 2 if setting.config.train.precision == "bf16" else FP32
    models = [arch for arch in (setting.student, setting.teacher) if arch is not None]
    learning = [setting.student, *([setting.teacher] if setting.has_modules and setting.teacher is not None else [])]
    widths = sum(arch.hidden_size for arch in models)
    total = tokens * widths * FP32 + rows * setting.student.hidden_size * FP32
    for arch, shape in zip(models, (setting.student_shape, setting.teacher_shape), strict=False):
        if shape.sequence_parallel:
            total += shape.tokens * arch.hidden_size * FP32
    if product != FP32:  # copies for the products: of hidden states, and of heads that are stored in fp32
        total += tokens * widths * product + rows * setting.student.hidden_size * product
        if setting.teacher is not None and setting.config.teacher.dtype == "float32":
            total += rows * setting.teacher.hidden_size * product
    total += tokens * sum(arch.hidden_size for arch in learning) * product
    if not fused:
        return total + tokens * rows * product * (len(models) + len(learning))
    return total + _chunk_bytes(setting, product, len(models))


def _chunk_bytes(setting: Setting, product: int, models: int) -> int:
    """Logits of a chunk, of two where a group's all-gather is overlapped."""
    ranks = setting.tp.size
    chunk = chunk_tokens(
        setting.vocab_size, ranks, setting.loss_tokens, product, setting.logit_budget, has_teacher=models > 1
    )
    return min(2, ranks) * models * chunk * setting.vocab.rows * product


def trunk_bytes(setting: Setting, positions: int) -> int:
    """Size on disk of a trunk cache of so many positions, whether or not the run has one: a row of D numbers each."""
    assert setting.teacher is not None
    cache = setting.config.teacher.cache
    return positions * setting.teacher.hidden_size * (2 if cache is not None and cache.dtype == "bfloat16" else 4)
