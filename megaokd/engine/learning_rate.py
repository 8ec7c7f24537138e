"""The learning rate of a group as a function of the step: nothing to save, nothing to restore."""

import math

from megaokd.config import OptimizerGroup


def learning_rate(options: OptimizerGroup, step: int, total_steps: int) -> float:
    """Linear warm-up to `lr`, then cosine or linear to `lr * min_lr_ratio`, or constant. Steps count from 0."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    progress = min(1.0, (step - options.warmup_steps) / max(1, total_steps - options.warmup_steps))
    if options.schedule == "cosine":
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif options.schedule == "linear":
        remaining = 1.0 - progress
    else:
        return options.lr
    return options.lr * (options.min_lr_ratio + (1.0 - options.min_lr_ratio) * remaining)
