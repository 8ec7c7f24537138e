"""Pipeline parallelism: both models split over the same stages, run by torch.distributed.pipelining."""
