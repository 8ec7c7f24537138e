"""How many elements DeepSpeed reduces over the replicas at a time."""

DEEPSPEED_BUCKET = 500_000_000
"""DeepSpeed's own default."""


def reduce_bucket_size(num_trained: int) -> int:
    """Elements of a bucket on a rank that trains `num_trained`, unless the `deepspeed` section says otherwise.

    No more than there is to reduce: a bucket is allocated whole in every step, 2 GB by DeepSpeed's default.
    """
    return min(DEEPSPEED_BUCKET, max(1, num_trained))
