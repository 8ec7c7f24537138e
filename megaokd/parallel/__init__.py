"""Tensor parallelism: the region between two collectives, the layers inside it, and who holds which slice."""
