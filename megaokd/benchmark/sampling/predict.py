"""What the cost model says of an update, from the measured constants and nothing of the updates themselves.

writing   `cost/decode.py`
training  each model's FLOPs (`cost/flops.py`) by the rate of a pass through layers of its widths; the update's bytes
          (`cost/time.py`) by the memory's
"""

from megaokd.benchmark.sampling.constants import Constants
from megaokd.benchmark.sampling.updates import ON_POLICY, Cell, variants
from megaokd.benchmark.step.world import World
from megaokd.cost.decode import LAYER_CALLS, TOKEN_CALLS, GenerationTime, Responses, generation_time, layer_weights
from megaokd.cost.flops import StepFlops
from megaokd.cost.time import UPDATE_BYTES
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.huggingface_config import read_architecture
from megaokd.precision import Precision


def predict_writing(world: World, cell: Cell, constants: Constants, *, overlaps: bool) -> GenerationTime:
    """Seconds in which the student writes the responses of a cell."""
    responses = Responses(rows=cell.rows, prompt=world.pair.prompt, response=cell.response)
    return generation_time(read_architecture(world.student), responses, constants.rates(overlaps=overlaps))


def predict_update(name: str, world: World, cell: Cell, constants: Constants, *, overlaps: bool) -> float:
    """Seconds of an update."""
    of_cell = cell.of(world)
    flops: StepFlops = variants(world)[name].flops(of_cell)
    student = (flops.student + flops.student_head).total / constants.student_flops
    teacher = (flops.teacher + flops.teacher_head).total / constants.teacher_flops
    update = UPDATE_BYTES * num_weights(read_architecture(world.student)) / constants.bandwidth
    writing = predict_writing(world, cell, constants, overlaps=overlaps).total if name == ON_POLICY else 0.0
    variant = variants(world)[name]
    moving, layers = variant.online_layers or 0, world.pair.teacher.num_layers
    calls = training_calls(
        read_architecture(world.student),
        read_architecture(world.teacher),
        moving=moving,
        cached=(layers - moving) * variant.cached,
    )
    return student + teacher + update + writing + calls * constants.call_s


def training_calls(
    student: DecoderArchitecture,
    teacher: DecoderArchitecture,
    *,
    moving: int,
    cached: int,
    precision: Precision = "fp32",
) -> int:
    """Kernels of a step with one micro-batch: a backward pass starts twice as many as a forward pass.

    moving: layers of the teacher that carry modules; cached: those that are read instead of run.
    """
    forward = student.num_layers + teacher.num_layers - cached
    backward = student.num_layers + moving
    return (forward + 2 * backward) * LAYER_CALLS[precision] + 3 * TOKEN_CALLS[precision]


def num_weights(arch: DecoderArchitecture) -> int:
    """Elements of all matrices of a model."""
    return arch.num_layers * layer_weights(arch) + arch.vocab_size * arch.hidden_size * (1 if arch.tied_head else 2)
