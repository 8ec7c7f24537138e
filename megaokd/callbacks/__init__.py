"""Watching a run: a progress bar, a JSONL log, TensorBoard. The loop knows only `Callback`."""
