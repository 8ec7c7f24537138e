"""What a rank sends in one training step, by kind and process group.

    tensor    a region's border twice a layer each way (`layer_cost`), the embedding, and the loss: a chunk of c tokens
              gathers 14 fp32 numbers a token and rank (6 without a teacher; see kernels/README.md for terms), and sums
              [c, D] for each model that learns; once a step the partial gradients (docs/design.md, "Sums")
    trunk     the same of a student that is split less than its teacher: its layers' borders, over its ranks alone
    rows      and over its groups of ranks, fp32: the embedding's rows scattered, [b, S, D], gathered in backward; the
              loss tokens gathered, [T, D] as if every group had as many as the fullest; once a step the trunk's
              gradients, in buckets
    pipeline  a hidden state [b, S or S/t, D] fp32 for each model and micro-batch forward, its gradient back where one
              is wanted
    data      4 bytes a trained parameter reduced, in buckets; then the updated parameters gathered, each optimizer
              group padded to two elements a replica
    ends      the gradient of a tied embedding
    world     the step's report: fp64 metrics, norms, a flag a rank

ZeRO-1 and ZeRO-2 send the same: gradients are reduced once, after the last micro-batch, by all-reduces of buckets
(DeepSpeed 0.19's default for both).
"""

from collections.abc import Sequence

from megaokd.cost.layer_shape import Shape
from megaokd.cost.part_cost import part_cost
from megaokd.cost.parts import Held, held_by
from megaokd.cost.setting import Setting
from megaokd.cost.traffic import Traffic
from megaokd.distill.objective import HiddenStateLoss
from megaokd.engine.buckets import reduce_bucket_size
from megaokd.kernels.linear import chunk_tokens
from megaokd.kernels.spec import NUM_MIXTURE_SUMS, LossSpec
from megaokd.kernels.terms import Term
from megaokd.models.architecture import DecoderArchitecture
from megaokd.parallel.rows import ROW_BUCKET

FP32, FP64 = 4, 8
PADDING = 2
"""Elements a replica to whose multiple DeepSpeed pads an optimizer group."""


LossTokens = tuple[int, ...]
"""Loss tokens of a micro-batch, those of each row group apart; of one group, one number."""


def step_traffic(setting: Setting, pipeline_rank: int, loss_tokens: Sequence[LossTokens] | None = None) -> Traffic:
    """What a rank of this pipeline stage sends in a step; groups of one rank send nothing.

    loss_tokens: of each micro-batch of this rank; default: `setting.loss_tokens` in each, shared evenly.
    """
    return pass_traffic(setting, pipeline_rank, loss_tokens) + closing_traffic(setting, pipeline_rank)


def pass_traffic(setting: Setting, pipeline_rank: int, loss_tokens: Sequence[LossTokens] | None = None) -> Traffic:
    """What belongs to forward and backward of the micro-batches."""
    num = setting.micro_batches if loss_tokens is None else len(loss_tokens)
    total = (_passes(setting, pipeline_rank) + _between_stages(setting, pipeline_rank)).times(num)
    if setting.config.parallel.num_stages - 1 in setting.own_stages(pipeline_rank):
        if loss_tokens is None:
            shared = -(-setting.loss_tokens // setting.row_groups)
            total += _loss(setting, setting.loss_tokens, shared).times(num)
        for counts in loss_tokens or ():
            total += _loss(setting, sum(counts), max(counts))
    return total


def closing_traffic(setting: Setting, pipeline_rank: int) -> Traffic:
    """What follows the last micro-batch: the gradients, what they updated, the step's report."""
    return _gradients(setting, pipeline_rank) + _report(setting)


def held_on(setting: Setting, pipeline_rank: int) -> tuple[Held, Held]:
    """Parameters of a rank: the student's, and the teacher's with its modules."""
    student, teacher = Held(), Held()
    for stage in setting.own_stages(pipeline_rank):
        student += held_by(setting.students[stage], setting.vocab, setting.student_tp)
        part = setting.teachers[stage]
        if part is not None:
            teacher += held_by(part, setting.vocab, setting.tp)
    return student, teacher


def _passes(setting: Setting, pipeline_rank: int) -> Traffic:
    """Both models' layers, one micro-batch, forward and backward."""
    total = Traffic()
    for stage in setting.own_stages(pipeline_rank):
        for part in (setting.students[stage], setting.teachers[stage]):
            if part is not None:
                cost = part_cost(part, setting.shape(part), recompute=setting.config.parallel.recompute)
                total += cost.forward + cost.backward
    return total


def _loss(setting: Setting, tokens: int, fullest: int) -> Traffic:
    """One micro-batch with so many loss tokens, so many in the row group that has most, on the last stage."""
    if setting.tp.size == 1:
        return Traffic()
    anchored = bool(setting.terms.anchor)
    total = _before_head(setting.student, setting.student_shape)
    if setting.row_groups > 1:
        gathered = setting.row_groups * fullest * setting.student.hidden_size * FP32
        total += Traffic.of("all-gather", "rows", gathered, min(1, fullest))
    if setting.teacher is not None:
        total += _before_head(setting.teacher, setting.teacher_shape).times(1 + anchored)
    learn = [setting.student.hidden_size]
    if setting.teacher is not None and any(term.weight for term in setting.terms.teacher):
        learn.append(setting.teacher.hidden_size)
    total += _loss_call(setting, tokens, learn, (*setting.terms.student, *setting.terms.teacher))
    if anchored and setting.teacher is not None:
        total += _loss_call(setting, tokens, [setting.teacher.hidden_size], ())
    return total


def _before_head(arch: DecoderArchitecture, shape: Shape) -> Traffic:
    """The sequence made whole again, of which the head takes the loss tokens."""
    size = shape.tokens * arch.hidden_size * FP32
    return Traffic.of("all-gather", shape.group, size, int(shape.sequence_parallel))


def _loss_call(setting: Setting, tokens: int, learn: Sequence[int], terms: tuple[Term, ...]) -> Traffic:
    """learn: hidden sizes of the models that get a gradient."""
    spec = LossSpec(terms, (), 1.0, 0, setting.vocab.rows, setting.vocab_size, setting.teacher is not None)
    fused, bf16 = setting.config.objective.fused, setting.config.train.precision == "bf16"
    chunks = loss_chunks(setting, tokens) if fused else min(1, tokens)
    ranks, numbers = setting.tp.size, spec.num_stats + 2 * spec.num_candidates
    total = Traffic.of("all-gather", "tensor", ranks * numbers * tokens * FP32, chunks)
    if spec.mixtures:
        sums = NUM_MIXTURE_SUMS * len(spec.mixtures)
        total += Traffic.of("all-gather", "tensor", ranks * sums * tokens * FP32, chunks)
    for size in learn:
        itemsize = 2 if fused and bf16 else FP32
        total += Traffic.of("all-reduce", "tensor", tokens * size * itemsize, chunks if fused else 1)
    return total


def loss_chunks(setting: Setting, tokens: int) -> int:
    """Chunks in which the fused loss walks over so many tokens."""
    if tokens == 0:
        return 0
    itemsize = 2 if setting.config.train.precision == "bf16" else FP32
    chunk = chunk_tokens(
        setting.vocab_size,
        setting.tp.size,
        tokens,
        itemsize,
        setting.logit_budget,
        has_teacher=setting.teacher is not None,
    )
    return -(-tokens // chunk)


def _between_stages(setting: Setting, pipeline_rank: int) -> Traffic:
    """One micro-batch: hidden states to the next stage, gradients to the one before."""
    total = Traffic()
    last = setting.config.parallel.num_stages - 1
    for stage in setting.own_stages(pipeline_rank):
        if stage < last:
            for size in slots(setting, stage):
                total += Traffic.of("send", "pipeline", size)
        if stage > 0:
            for size in slots(setting, stage - 1, gradients=True):
                total += Traffic.of("send", "pipeline", size)
    return total


def slots(setting: Setting, stage: int, *, gradients: bool = False) -> list[int]:
    """Bytes of each hidden state that a stage puts out for one micro-batch; or of those that want a gradient."""
    found = [setting.student_shape.outside * setting.student.hidden_size * FP32]
    if setting.teacher is not None:
        size = setting.teacher_shape.outside * setting.teacher.hidden_size * FP32
        moves = stage >= setting.moves_from
        if moves if gradients else stage >= setting.sent_from:
            found.append(size)
        if setting.terms.anchor and moves and not gradients:
            found.append(size)
    return found


def _gradients(setting: Setting, pipeline_rank: int) -> Traffic:
    """Once a step: partial sums, row groups, tied ends, reduction over the replicas, gathering of what they updated."""
    student, teacher = held_on(setting, pipeline_rank)
    partial = student.partial + teacher.partial
    total = Traffic.of("all-reduce", "tensor", partial * FP32, min(1, partial))
    if setting.row_groups > 1:
        summed = count_buckets(student.complete, ROW_BUCKET)
        total += Traffic.of("all-reduce", "rows", sum(student.complete) * FP32, summed)
    pipeline = setting.config.parallel.pipeline
    if pipeline > 1 and setting.student.tied_head and pipeline_rank in (0, pipeline - 1):
        total += Traffic.of("all-reduce", "ends", setting.vocab.rows * setting.student.hidden_size * FP32)
    if setting.data_parallel > 1:
        groups = [g for g in (student.matrices, student.vectors, teacher.matrices, teacher.vectors) if g]
        elements = [count for group in groups for count in group]
        buckets = count_buckets(elements, bucket_size(setting, sum(elements)))
        total += Traffic.of("all-reduce", "data", sum(elements) * FP32, buckets)
        gathered = sum(padded(sum(group), setting.data_parallel) for group in groups)
        total += Traffic.of("all-gather", "data", gathered * FP32, len(groups))
    return total


def bucket_size(setting: Setting, num_trained: int) -> int:
    """Elements of DeepSpeed's buckets on a rank that trains `num_trained`."""
    zero = setting.config.deepspeed.get("zero_optimization", {})
    return int(zero.get("reduce_bucket_size", reduce_bucket_size(num_trained)))


def count_buckets(elements: Sequence[int], size: int) -> int:
    """Reductions of parameters of these sizes, in their order; one that is larger than a bucket goes by itself."""
    buckets, filled = 0, size + 1
    for count in elements:
        if filled + count > size:
            buckets, filled = buckets + 1, 0
        filled += count
    return buckets


def padded(elements: int, replicas: int) -> int:
    """An optimizer group's elements as DeepSpeed lays them out."""
    unit = PADDING * replicas
    return -(-elements // unit) * unit


def _report(setting: Setting) -> Traffic:
    if setting.processes == 1:
        return Traffic()
    precision, has_teacher = setting.config.train.precision, setting.teacher is not None
    loss = HiddenStateLoss((), setting.terms, setting.vocab, setting.tp, precision, has_teacher=has_teacher, fused=True)
    return Traffic.of("all-reduce", "world", (len(loss.names) + 3 + setting.processes) * FP64)
