"""What this machine does in a second, measured on parts that are no update: what the cost model goes by.

Each figure is the best of a few tries: what disturbs a try makes it slower, never faster.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from megaokd.benchmark.measure import CLOCKS, Clock, synchronize
from megaokd.benchmark.sampling.updates import NO_EOS
from megaokd.benchmark.step.world import World
from megaokd.cost.decode import Rates, Responses, generation_time, layer_weights
from megaokd.cost.layer_flops import layer_work
from megaokd.generation.generate import generate
from megaokd.generation.options import GenerationOptions
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.initialize import freeze, initialize_decoder
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange

TRIES = 5
LAYERS = 2
ROWS, WIDTH = 4, 256
"""Of the pass whose rate is taken."""
SMALL_WIDTH, SMALL_LAYERS, SMALL_TOKENS = 64, 8, 33
"""A model whose weights and products are next to nothing: its time a token is that of its calls."""


@dataclass(frozen=True)
class Constants:
    """Of one pair of models on one machine."""

    student_flops: float
    """A second, over a forward and backward pass through layers of the student's widths."""
    teacher_flops: float
    """A second, over a forward pass through layers of the teacher's widths."""
    bandwidth: float
    """Bytes a second, of matrices as large as the student's that meet one vector each."""
    call_s: float
    """Of the host, for a kernel."""

    def rates(self, *, overlaps: bool) -> Rates:
        """For the student's writing."""
        return Rates(flops=self.student_flops, bandwidth=self.bandwidth, call_s=self.call_s, overlaps=overlaps)


def measure_constants(world: World, device: torch.device, clock: Clock) -> Constants:
    """Some seconds of work."""
    student, teacher = read_architecture(world.student), read_architecture(world.teacher)
    timer = _Timer(device, clock)
    student_flops = _pass_rate(student, timer, trains=True)
    bandwidth = _bandwidth(student, timer)
    return Constants(
        student_flops, _pass_rate(teacher, timer, trains=False), bandwidth, _call_s(student, timer, bandwidth)
    )


@dataclass(frozen=True)
class _Timer:
    device: torch.device
    clock: Clock

    def best(self, call: Callable[[], object]) -> float:
        """Seconds of the fastest of a few calls; one more goes before them."""
        call()
        now, found = CLOCKS[self.clock], []
        for _ in range(TRIES):
            synchronize(self.device)
            start = now()
            call()
            synchronize(self.device)
            found.append(now() - start)
        return min(found)


def _decoder(arch: DecoderArchitecture, device: torch.device) -> Decoder:
    vocab = VocabRange(0, arch.vocab_size, arch.vocab_size)
    built = Decoder(arch, DecoderSlice(range(arch.num_layers)), vocab, TensorParallel())
    initialize_decoder(built, seed=0)
    return built.to(device)


def _pass_rate(arch: DecoderArchitecture, timer: _Timer, *, trains: bool) -> float:
    decoder = _decoder(replace(arch, num_layers=LAYERS), timer.device)
    if not trains:
        freeze(decoder.parameters())
    tokens = torch.randint(arch.vocab_size, (ROWS, WIDTH), device=timer.device)

    def call() -> None:
        hidden = decoder(tokens)
        if trains:
            hidden.backward(torch.ones_like(hidden))

    work = layer_work(arch, ROWS, WIDTH, needs=trains, trains=trains)
    return LAYERS * work.total / timer.best(call)


def _bandwidth(arch: DecoderArchitecture, timer: _Timer) -> float:
    """A layer's weights as one matrix, each layer's after another's."""
    columns = arch.hidden_size
    shape = (layer_weights(arch) // columns, columns)
    matrices = [torch.ones(shape, device=timer.device) for _ in range(arch.num_layers)]
    vector = torch.ones(columns, device=timer.device)
    seconds = timer.best(lambda: [matrix @ vector for matrix in matrices])
    return sum(matrix.nbytes for matrix in matrices) / seconds


def _call_s(arch: DecoderArchitecture, timer: _Timer, bandwidth: float) -> float:
    heads = SMALL_WIDTH // arch.head_dim
    small = replace(
        arch,
        hidden_size=SMALL_WIDTH,
        num_layers=SMALL_LAYERS,
        num_heads=heads,
        num_kv_heads=heads,
        intermediate_size=SMALL_WIDTH,
        vocab_size=SMALL_WIDTH,
    )
    decoder = _decoder(small, timer.device)
    options = GenerationOptions(max_new_tokens=SMALL_TOKENS)
    seconds = timer.best(lambda: generate(decoder, [[0]], options, eos_id=NO_EOS))
    responses = Responses(rows=1, prompt=1, response=SMALL_TOKENS)
    one = Rates(flops=float("inf"), bandwidth=bandwidth, call_s=1.0, overlaps=False)
    time = generation_time(small, responses, one)
    memory = 0.0 if timer.device.type == "cuda" else time.prompts.memory + time.tokens.memory
    return (seconds - memory) / (time.prompts.calls + time.tokens.calls)
