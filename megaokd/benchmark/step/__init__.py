"""A training step beside the same step by other means: time, memory, where the time goes, what FLOPs predict."""
