"""What a training step asks of the host: reads of a device's values; operators and Python calls, at any length."""

import multiprocessing
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from megaokd.benchmark.step.ours import Variant
from megaokd.benchmark.step.user_loop import read_batches
from megaokd.benchmark.step.world import ModelSize, Pair, build_world
from megaokd.config import Architecture, Config, OnlineModules
from megaokd.data.batch import IGNORE, Batch
from megaokd.data.batches import TrainBatches
from megaokd.distill.online_modules import attach_online_modules
from megaokd.engine.step import TrainingStep, runner_inputs
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.initialize import freeze
from megaokd.parallel.kept import take_kept
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange
from megaokd.pipeline.stage import DistillationStage

LENGTHS = (64, 256)
PAIR = Pair(ModelSize(4, 64), ModelSize(2, 64), vocab=37, global_batch=4, micro_batch=2)
MICRO_BATCHES = PAIR.global_batch // PAIR.micro_batch

# Where a step reads values: how often for each micro-batch, how often besides, and why no GPU is waited for.
READS = {
    "kept.take_kept": (2, 0),  # the mask is in host memory: once for each model
    "objective.__call__": (1, 0),  # so are the labels
    "checks.check_labels": (1, 0),  # asks on a CPU only
    "blocks.row_blocks": (2, 0),  # of the loss in plain torch: a GPU's kernels take every row
    "eager.gradients": (2, 0),  # likewise
    "report.reduce_report": (0, 1),  # losses and norms must be known to be finite before weights change: one read
    "optimizer._get_value": (0, 3),  # AdamW keeps its step count in host memory: once for each of its groups
}
_READING_OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}
_READING_METHODS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}
_BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass
class Asked:
    """What one step asked for."""

    reads: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    calls: int = 0


class _Operators(TorchDispatchMode):
    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self._asked = asked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._asked.operators[str(func)] += 1
        name = func.overloadpacket.__name__
        by_mask = name in _BY_INDEX and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in _READING_OPERATORS or by_mask:
            self._asked.reads[_place()] += 1
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self._asked = asked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READING_METHODS:
            self._asked.reads[_place()] += 1
        return func(*args, **(kwargs or {}))


def _place() -> str:
    """The innermost function of this project, of DeepSpeed or of torch's optimizers: file.function."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        ours = not {"site-packages", "unit"} & set(path.parts) and {"megaokd", "kernels"} & set(path.parts)
        if ours or "deepspeed" in path.parts or path.parent.name == "optim":
            return f"{path.stem}.{frame.name}"
    return "elsewhere"


def _count(step: TrainingStep, batches: TrainBatches, first: int) -> Asked:
    asked = Asked()
    with _Operators(asked), _Methods(asked):
        step(first, batches.batch(first))
    asked.calls = _python_calls(lambda: step(first + 1, batches.batch(first + 1)))
    return asked


def _python_calls(action: Callable[[], Any]) -> int:
    calls = 0

    def on_event(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(on_event)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


def _config(variant: Variant, world: Any) -> Config:
    """Unclipped: whether a gradient is scaled depends on its norm. In plain torch: other loss code hides operators."""
    config = variant.config(world)
    options = config.optimizer
    student, online = replace(options.student, clip=0.0), replace(options.online, clip=0.0)
    optimizer = replace(options, student=student, online=online)
    return replace(config, optimizer=optimizer, objective=replace(config.objective, backend="eager"))


def count_steps(folder: Path) -> list[Asked]:
    """One run, in a process of its own; it makes steps on sequences of both lengths."""
    from megaokd.mesh import build_mesh, start_distributed
    from megaokd.run import build_run

    torch.set_num_threads(1)
    worlds = []
    for length in LENGTHS:
        (folder / str(length)).mkdir()
        worlds.append(build_world(replace(PAIR, sequence=length), folder / str(length), 6))
    config = _config(Variant("moving", online_layers=1), worlds[-1])
    run = build_run(config, build_mesh(config.parallel, start_distributed(config.train.timeout_s)))
    found = []
    for world in worlds:
        batches = read_batches(world)
        run.step(0, batches.batch(0))  # makes what it keeps for a length
        found.append(_count(run.step, batches, 1))
    return found


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """For each length."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(count_steps, tmp_path_factory.mktemp("operators")).result()


@pytest.mark.slow
def test_a_step_reads_values_at_known_places_only(asked: list[Asked]) -> None:
    expected = {place: MICRO_BATCHES * each + once for place, (each, once) in READS.items()}
    for one in asked:
        assert dict(one.reads) == expected


@pytest.mark.slow
def test_work_of_the_host_does_not_depend_on_the_length(asked: list[Asked]) -> None:
    """At these sizes the logits of a micro-batch are one chunk, the longest that the loss works on at a time."""
    short, long = asked
    assert short.operators == long.operators
    assert short.operators.total() > 1000
    assert short.calls == long.calls


def test_kept_tokens_are_those_of_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 4, generator=generator, requires_grad=True)
    keep = torch.rand(3, 5, generator=generator) < 0.5
    upstream = torch.randn(int(keep.sum()), 4, generator=generator)
    found, expected = take_kept(x, keep), x[keep]
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(rows, x, upstream)[0] for rows in (found, expected)))
    assert take_kept(x, torch.zeros_like(keep)).shape == (0, 4)


def test_labels_stay_in_host_memory() -> None:
    labels = torch.tensor([[[IGNORE, 3, 4], [IGNORE, IGNORE, 5]]])
    batch = Batch(torch.zeros_like(labels), labels, loss_tokens=3, input_tokens=6)
    tokens, moved, _ = runner_inputs(batch, torch.device("meta"))
    assert tokens.device.type == "meta"
    assert moved is labels


def test_models_run_where_no_value_can_be_read() -> None:
    """On the meta device, where reading a value raises: both models, the choice of loss tokens, and backward."""
    arch = DecoderArchitecture.from_config(Architecture(hidden_size=16, num_layers=2, num_heads=2), 37)
    vocab = VocabRange(0, 37, 37)
    with torch.device("meta"):
        student, teacher = (Decoder(arch, DecoderSlice(range(2)), vocab, TensorParallel()) for _ in range(2))
    freeze(teacher.parameters())
    attach_online_modules(teacher, OnlineModules(layers=1), seed=0)
    labels = torch.tensor([[IGNORE, 3, 4], [IGNORE, IGNORE, 5]])
    tokens = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    outputs = DistillationStage(student, teacher, "fp32")(tokens)
    kept = [
        model.kept_tokens(hidden, labels != IGNORE) for model, hidden in zip((student, teacher), outputs, strict=True)
    ]
    assert [rows.shape for rows in kept] == [(3, 16)] * 2
    torch.stack(kept).sum().backward()
    assert all(parameter.grad is not None for parameter in student.layers.parameters())
    with pytest.raises(NotImplementedError, match="meta"):
        student.kept_tokens(outputs[0], torch.zeros(2, 3, dtype=torch.bool, device="meta"))
