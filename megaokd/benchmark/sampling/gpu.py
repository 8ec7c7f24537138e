"""What to expect on an H100, where nothing was measured: the same ratios from data sheets and stated assumptions.

Writing is that of `cost/decode.py`; a training step lasts as long as the longer of `cost/time.py`'s and of the host's
calls. With CUDA graphs calls cost nothing, in both.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from megaokd.benchmark.sampling.predict import training_calls
from megaokd.config import (
    Architecture,
    Checkpoint,
    Config,
    Data,
    Objective,
    OnlineModules,
    Parallel,
    Student,
    Teacher,
    Train,
    TrunkCache,
)
from megaokd.cost.decode import Bound, Rates, Responses, generation_time
from megaokd.cost.hardware import Assumptions, Cluster, find_gpu
from megaokd.cost.setting import Setting
from megaokd.cost.time import step_time
from megaokd.kernels.linear import GPU_BUDGET
from megaokd.models.architecture import DecoderArchitecture
from megaokd.precision import Precision

GPU, PROMPT = "h100", 512
LENGTHS, BATCHES = (64, 128, 256, 512), (1, 16, 128)
PRECISION: Precision = "bf16"


@dataclass(frozen=True)
class LargePair:
    """Two models, split over so many GPUs."""

    name: str
    teacher: DecoderArchitecture
    student: DecoderArchitecture
    tensor: int


@dataclass(frozen=True)
class Expected:
    """Ratios of one on-policy update to one of OKD; `graphs`: where calls cost nothing."""

    pair: str
    rows: int
    response: int
    uncached: float
    cached: float
    uncached_graphs: float
    cached_graphs: float
    bound: Bound
    bound_graphs: Bound


def large_pairs() -> list[LargePair]:
    """The sizes of Llama 3.1 70B -> 8B, and of Llama 2 7B -> a student of 1.1B (TinyLlama's sizes)."""
    return [
        LargePair("70B -> 8B, tensor 8", _llama(8192, 80, 64, 8, 28672), _llama(4096, 32, 32, 8, 14336), 8),
        LargePair(
            "7B -> 1.1B, one GPU",
            _llama(4096, 32, 32, 32, 11008, vocab=32000),
            _llama(2048, 22, 32, 4, 5632, vocab=32000),
            1,
        ),
    ]


def _llama(width: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int = 128256) -> DecoderArchitecture:
    options = Architecture(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=mlp,
        tied_head=False,
    )
    return DecoderArchitecture.from_config(options, vocab)


def expected() -> Iterator[Expected]:
    """Of each pair, batch and length."""
    for pair in large_pairs():
        for rows in BATCHES:
            for response in LENGTHS:
                yield _expected(pair, rows, response)


def _expected(pair: LargePair, rows: int, response: int) -> Expected:
    ratios: list[float] = []
    bounds: list[Bound] = []
    for assumptions in (Assumptions(), Assumptions(call_s=0.0)):
        rates = Rates.of_gpu(find_gpu(GPU), assumptions, PRECISION)
        responses = Responses(rows=rows, prompt=PROMPT, response=response, tensor=pair.tensor, precision=PRECISION)
        writing = generation_time(pair.student, responses, rates)
        on_policy = writing.total + _training(pair, rows, response, assumptions, moves=False)
        for is_cached in (False, True):
            ratios.append(on_policy / _training(pair, rows, response, assumptions, moves=True, cached=is_cached))
        bounds.append(writing.tokens.bound)
    uncached, cached, uncached_graphs, cached_graphs = ratios
    return Expected(pair.name, rows, response, uncached, cached, uncached_graphs, cached_graphs, *bounds)


def _training(
    pair: LargePair, rows: int, response: int, assumptions: Assumptions, *, moves: bool, cached: bool = False
) -> float:
    """Seconds of a step on given text."""
    quarter = pair.teacher.num_layers // 4
    width = PROMPT + response - 1
    config = Config(
        data=Data(train="data", sequence_length=width),
        teacher=Teacher(
            path="teacher",
            dtype="bfloat16",
            online=OnlineModules(layers=quarter) if moves else None,
            cache=TrunkCache(path="trunk") if cached else None,
        ),
        student=Student(path="student"),
        objective=Objective(),
        parallel=Parallel(tensor=pair.tensor),
        train=Train(steps=1, global_batch=rows, micro_batch=rows, precision=PRECISION),
        checkpoint=Checkpoint(folder="run"),
    )
    vocab = pair.teacher.vocab_size
    setting = Setting(config, pair.student, pair.teacher, vocab, pair.tensor, width, rows * response, GPU_BUDGET)
    cluster = Cluster(find_gpu(GPU), 1, 8, assumptions)
    calls = training_calls(
        pair.student,
        pair.teacher,
        moving=quarter * moves,
        cached=(pair.teacher.num_layers - quarter) * cached,
        precision=PRECISION,
    )
    return max(step_time(setting, cluster).total, calls * assumptions.call_s)
