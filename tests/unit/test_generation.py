"""Generation with our decoders: what `transformers` generates, row by row as in a batch, and drawn as it should be."""

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from megaokd.generation.generate import generate
from megaokd.generation.options import GenerationOptions
from megaokd.generation.selection import Selection
from megaokd.models.decoder import Decoder
from megaokd.parallel.region import TensorParallel
from tests.support import families

GREEDY = GenerationOptions(max_new_tokens=14, temperature=0.0)
NO_EOS = -1


def prompts(name: str) -> list[list[int]]:
    """Of several lengths; with LongRoPE of one, since the width of a batch chooses its factors."""
    generator = torch.Generator().manual_seed(3)
    lengths = (20, 20, 20) if name == "phi3-long" else (3, 17, 9)
    return [torch.randint(families.VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def of_transformers(model: PreTrainedModel, prompt: list[int], new: int) -> list[int]:
    model.generation_config = GenerationConfig()
    ids = torch.tensor([prompt])
    output = model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


@pytest.mark.parametrize("name", families.CASES)
def test_greedy_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    model = families.random_model(name)
    families.save(model, tmp_path)
    decoder = families.load(tmp_path)
    together = generate(decoder, prompts(name), GREEDY, eos_id=NO_EOS)
    assert together == [of_transformers(model, prompt, 14) for prompt in prompts(name)]
    assert together == [generate(decoder, [prompt], GREEDY, eos_id=NO_EOS)[0] for prompt in prompts(name)]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("generation")
    families.save(families.random_model("qwen2-windows"), folder)
    return families.load(folder)


@pytest.mark.parametrize(
    "options",
    [GenerationOptions(max_new_tokens=14, seed=5), GenerationOptions(max_new_tokens=14, top_k=9, top_p=0.8)],
    ids=["plain", "cut"],
)
def test_a_sampled_row_depends_on_no_other(decoder: Decoder, options: GenerationOptions) -> None:
    given = prompts("llama")
    together = generate(decoder, given, options, eos_id=NO_EOS, streams=[4, 7, 4])
    alone = [
        generate(decoder, [p], options, eos_id=NO_EOS, streams=[s])[0] for p, s in zip(given, (4, 7, 4), strict=True)
    ]
    assert together == alone
    assert generate(decoder, [given[0]], options, eos_id=NO_EOS, streams=[5]) != [together[0]]


def test_each_row_ends_at_its_own_end(decoder: Decoder) -> None:
    endless = generate(decoder, prompts("llama"), GREEDY, eos_id=NO_EOS)
    eos = endless[1][4]
    ended = generate(decoder, prompts("llama"), GREEDY, eos_id=eos)
    assert ended == [row[: row.index(eos) + 1] if eos in row else row for row in endless]
    assert len(ended[1]) <= 5 < max(map(len, ended))
    within = generate(decoder, prompts("llama"), GREEDY, eos_id=NO_EOS, max_length=17)
    assert within == [endless[0], [], endless[2][:8]]


def test_all_rows_end_then_no_pass_follows(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    run = Decoder.run_with
    monkeypatch.setattr(Decoder, "run_with", lambda *arguments: passes.append(1) or run(*arguments))  # type: ignore[func-returns-value]
    eos = generate(decoder, prompts("llama")[:1], GREEDY, eos_id=NO_EOS)[0][2]
    passes.clear()
    found = generate(decoder, prompts("llama")[:1], GREEDY, eos_id=eos)[0]
    assert len(passes) == len(found) <= 3


LOGITS = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 3


def exact(options: GenerationOptions, existing: int) -> torch.Tensor:
    """The probabilities, in fp64, by sorting as the definitions say."""
    logits = LOGITS[0, :existing].double() / options.temperature
    if options.top_k:
        logits[logits < logits.sort(descending=True).values[options.top_k - 1]] = -torch.inf
    values, order = logits.softmax(0).sort(descending=True)
    needed = int((values.cumsum(0) < options.top_p).sum()) + 1
    kept = torch.zeros_like(values)
    kept[order[:needed]] = values[:needed]
    return kept / kept.sum()


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(),
        GenerationOptions(temperature=0.6),
        GenerationOptions(top_k=5),
        GenerationOptions(top_p=0.7),
        GenerationOptions(temperature=2.0, top_k=12, top_p=0.9),
        GenerationOptions(top_p=1e-6),
    ],
    ids=str,
)
def test_the_distribution_is_exact(options: GenerationOptions) -> None:
    """A grid of uniform numbers must meet each token as often as its probability says, to one point of the grid."""
    points, existing = 20_000, 37
    choose = Selection(options, TensorParallel(), 0, existing)
    uniform = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    tokens = torch.cat([choose(LOGITS.expand(len(part), -1), part) for part in uniform.split(5_000)])
    shares = torch.bincount(tokens, minlength=existing).double() / points
    assert torch.allclose(shares, exact(options, existing), rtol=0.0, atol=1.5 / points)


def test_greedy_takes_the_first_of_equals_that_exist() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 9.0], [5.0, 3.0, 3.0, 9.0]])
    assert Selection(GREEDY, TensorParallel(), 0, 3)(logits, None).tolist() == [1, 0]
