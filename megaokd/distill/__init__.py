"""Online distillation: the teacher's trainable modules and the objective of both models."""
