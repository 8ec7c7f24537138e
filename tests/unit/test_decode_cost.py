"""The time of generation: its calls, products and bytes are those of the generator, counted while it runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from megaokd.config import Architecture
from megaokd.cost import decode
from megaokd.cost.decode import Pass, Rates, Responses, generation_time
from megaokd.cost.hardware import GPUS, Assumptions
from megaokd.generation.generate import generate
from megaokd.generation.options import GenerationOptions
from megaokd.generation.selection import Selection
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.initialize import initialize_decoder
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange
from megaokd.precision import Precision

ROWS, PROMPT, RESPONSE, VOCABULARY = 3, 5, 7, 97
NO_EOS = -1
RESPONSES = Responses(rows=ROWS, prompt=PROMPT, response=RESPONSE)
# A processor without costs; each test gives it one.
FREE = Rates(flops=float("inf"), bandwidth=float("inf"), call_s=0.0, overlaps=True)


def llama(num_layers: int) -> DecoderArchitecture:
    options = Architecture(hidden_size=24, num_layers=num_layers, num_heads=4, num_kv_heads=2, tied_head=False)
    return DecoderArchitecture.from_config(options, VOCABULARY)


def decoder(arch: DecoderArchitecture) -> Decoder:
    built = Decoder(arch, DecoderSlice(range(arch.num_layers)), VocabRange(0, VOCABULARY, VOCABULARY), TensorParallel())
    initialize_decoder(built, seed=0)
    return built


class Kernels(TorchDispatchMode):
    """Counts what starts a kernel, and what of it is read and written."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs, outputs = ([x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in (args, result))
        known = {x.untyped_storage().data_ptr() for x in inputs}
        is_view = not function._schema.is_mutable and all(x.untyped_storage().data_ptr() in known for x in outputs)
        if outputs and not is_view:
            self.count += 1
            if function is not torch.ops.aten.searchsorted.Tensor:  # it looks at a few places
                self.bytes += sum(x.nbytes for x in (*inputs, *outputs) if x.numel() >= ROWS * VOCABULARY)
        return result


def kernels_of_a_token(num_layers: int, precision: Precision) -> int:
    def count(new: int) -> int:
        with Kernels() as kernels:
            options = GenerationOptions(max_new_tokens=new)
            generate(decoder(llama(num_layers)), [[1] * PROMPT] * ROWS, options, eos_id=NO_EOS, precision=precision)
        return kernels.count

    return count(4) - count(3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_calls_are_those_of_the_generator(precision: Precision) -> None:
    one, two = kernels_of_a_token(1, precision), kernels_of_a_token(2, precision)
    assert two - one == decode.LAYER_CALLS[precision]
    assert one - decode.LAYER_CALLS[precision] == decode.TOKEN_CALLS[precision]


def test_products_are_those_of_the_generator() -> None:
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {flash: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    arch = llama(2)
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        generate(decoder(arch), [[1] * PROMPT] * ROWS, GenerationOptions(max_new_tokens=RESPONSE), eos_id=NO_EOS)
    time = generation_time(arch, RESPONSES, replace(FREE, flops=1.0))
    assert time.prompts.products + time.tokens.products == counter.get_total_flops()
    assert time.total == counter.get_total_flops()


def test_memory_is_that_of_weights_keys_and_logits() -> None:
    arch = llama(2)
    built = decoder(arch)
    weights = sum(p.numel() for name, p in built.named_parameters() if p.ndim == 2 and "embed" not in name)
    contexts = range(PROMPT + 1, PROMPT + RESPONSE)
    kept = sum(2 * ROWS * 2 * arch.head_dim * arch.num_layers * context for context in contexts)
    logits = ROWS * VOCABULARY * decode.LOGIT_BYTES
    time = generation_time(arch, RESPONSES, replace(FREE, bandwidth=1.0))
    assert time.tokens.memory == (RESPONSE - 1) * (4 * weights + logits) + 4 * kept
    half = generation_time(arch, replace(RESPONSES, precision="bf16", tensor=2), replace(FREE, bandwidth=1.0))
    assert half.tokens.memory == (RESPONSE - 1) * (weights + logits / 2) + kept


def test_bytes_of_a_draw() -> None:
    choose = Selection(GenerationOptions(), TensorParallel(), 0, VOCABULARY)
    logits, uniform = torch.randn(ROWS, VOCABULARY), torch.rand(ROWS, dtype=torch.float64)
    with Kernels() as kernels:
        choose(logits, uniform)
    written_by_head = 4
    assert kernels.bytes / logits.numel() + written_by_head == decode.LOGIT_BYTES


def test_what_overlaps_lasts_as_long_as_the_longest() -> None:
    arch, rates = llama(2), Rates(flops=1e7, bandwidth=1e6, call_s=1e-3, overlaps=True)
    tokens = generation_time(arch, RESPONSES, rates).tokens
    one_after_another = generation_time(arch, RESPONSES, replace(rates, overlaps=False)).tokens
    assert tokens.total == pytest.approx(max(tokens.calls, tokens.memory))
    assert tokens.memory > tokens.products
    assert one_after_another.total == pytest.approx(tokens.calls + tokens.memory)


@pytest.fixture
def large() -> DecoderArchitecture:
    """Of the size of Llama 3.1 8B."""
    options = Architecture(
        hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8, intermediate_size=14336, tied_head=False
    )
    return DecoderArchitecture.from_config(options, 128256)


def test_what_a_gpu_waits_for(large: DecoderArchitecture) -> None:
    rates = Rates.of_gpu(GPUS["h100"], Assumptions(), "bf16")
    graphs = replace(rates, call_s=0.0)
    few = Responses(rows=1, prompt=512, response=128, precision="bf16")

    def tokens(responses: Responses, rates: Rates) -> Pass:
        return generation_time(large, responses, rates).tokens

    assert tokens(few, rates).bound == "calls"
    assert tokens(few, graphs).bound == "memory"
    # 7.5e9 weights in bf16, at 70% of 3.35 TB/s.
    assert tokens(few, graphs).total / 127 == pytest.approx(2 * 7.5e9 / (0.7 * 3.35e12), rel=0.03)
    assert tokens(replace(few, rows=4096, prompt=8), graphs).bound == "products"
    split = tokens(replace(few, tensor=8), graphs)
    assert split.bound == "collectives"
    assert split.collectives / 127 == pytest.approx((2 * 32 + 1 + 3) * 20e-6)
