"""The training step and the only code that imports deepspeed."""
