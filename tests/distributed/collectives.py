"""Recording every operation that reaches a process group: its kind, its group and the bytes that it moves."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "allreduce_": "all-reduce",
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "send": "send",
}
"""Operation of torch's c10d namespace -> its kind. What a rank receives is what another sends."""
RECEIVING = ("recv_",)

Traffic = Counter[tuple[str, str]]


class RecordedTraffic(TorchDispatchMode):
    """Calls and bytes by (kind, group), of groups with more than one rank; another kind of operation is an error.

    Bytes are those of the whole tensor: what is reduced, the result of an all-gather, the input of a reduce-scatter,
    what is sent. Backward runs in this thread too on a CPU, so nothing is missed.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self.names = names
        """Name of a process group in torch -> ours."""
        self.calls: Traffic = Counter()
        self.bytes: Traffic = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d" and func._opname not in RECEIVING:
            self._record(func._opname, args)
        return func(*args, **(kwargs or {}))

    def _record(self, operation: str, args: tuple) -> None:
        group = next(dist.ProcessGroup.unbox(a) for a in args if isinstance(a, torch.ScriptObject) and _is_group(a))
        if group.size() == 1:
            return
        key = (KINDS[operation], self.names[group.group_name])
        whole = args[1] if operation == "_reduce_scatter_base_" else args[0]
        self.calls[key] += 1
        self.bytes[key] += sum(tensor.nbytes for tensor in _tensors(whole))


def _is_group(value: torch.ScriptObject) -> bool:
    return "ProcessGroup" in str(value._type())


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)]
