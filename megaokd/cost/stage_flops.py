"""Matrix-product FLOPs of one micro-batch on one stage: `flops.count_step`, cut into stages."""

from megaokd.cost.flops import heads_work
from megaokd.cost.layer_flops import Work, bottleneck_work, layer_work
from megaokd.cost.parts import Part
from megaokd.cost.setting import Setting


def stage_work(setting: Setting, stage: int) -> Work:
    """Both models' slices on a stage, one micro-batch, all its tensor-parallel ranks together."""
    total = _layers(setting, setting.students[stage])
    teacher = setting.teachers[stage]
    if teacher is not None:
        total += _layers(setting, teacher)
    if stage == setting.config.parallel.num_stages - 1:
        total += _heads(setting)
    return total


def _layers(setting: Setting, part: Part) -> Work:
    rows, width, recompute = setting.config.train.micro_batch, setting.width, setting.config.parallel.recompute
    total = Work()
    for layer in part.part.layers:
        kind = part.kind(layer)
        total += layer_work(
            part.arch, rows, width, needs=kind.needs, trains=kind.trains, online=kind.online, recompute=recompute
        )
    for _ in range(part.num_again):
        total += layer_work(part.arch, rows, width, needs=False, trains=False)
    if part.part.last and part.online is not None and part.online.kind == "head":
        total += bottleneck_work(part.online.rank, part.arch.hidden_size, rows * width, needs=False)
    return total


def _heads(setting: Setting) -> Work:
    padded = max(arch.vocab_size for arch in (setting.student, setting.teacher) if arch is not None)
    logits, anchor = setting.loss_tokens * padded, bool(setting.terms.anchor)
    student, teacher = heads_work(setting.student, setting.teacher, logits, moves=setting.has_modules, anchor=anchor)
    return student + teacher
