"""From text on disk to batches: examples, tokenizers, token datasets, the order of training."""
