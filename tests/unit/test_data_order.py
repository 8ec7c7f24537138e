"""Mixtures, batches by length and packed rows: each a function of seed and step, the same for every layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megaokd.config_file import load_config, parse_config
from megaokd.data.batch import IGNORE, BatchShape
from megaokd.data.batches import BatchOptions, TrainBatches
from megaokd.data.dataset import TokenDataset
from megaokd.data.mixture import ExampleSet, Mixture, open_training_data
from megaokd.data.order import MIXING_BLOCK, EpochOrder, LengthOrder, MixtureOrder, exact_shares
from megaokd.data.packing import PackedOrder, best_fit, padding_share
from megaokd.data.preprocess import preprocess
from megaokd.errors import UserError
from megaokd.models.architecture import AttentionKind
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.huggingface_weights import load_decoder
from megaokd.models.positions import Positions
from megaokd.models.rotary import Rotary
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange
from tests.support import families
from tests.unit.data_helpers import EXAMPLES, token_dataset, tokenizer_folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[TokenDataset]:
    folders = [tmp_path_factory.mktemp("part") for _ in range(2)]
    return [
        token_dataset(folder, EXAMPLES[start:end])
        for folder, start, end in zip(folders, (0, 40), (40, 50), strict=True)
    ]


def batches(dataset: ExampleSet, *, options: BatchOptions | None = None, **changes: Any) -> TrainBatches:
    shape = {"sequence_length": 250, "bucket": 8, "global_batch": 12, "micro_batch": 2, **changes}
    return TrainBatches(dataset, BatchShape(**shape), seed=5, options=options)


OPTIONS = [BatchOptions(), BatchOptions(length_window=3), BatchOptions(packing=True)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_is_the_same_for_every_layout_and_after_every_resume(
    parts: list[TokenDataset], options: BatchOptions, mixed: bool
) -> None:
    dataset: ExampleSet = Mixture(parts, [1.0, 3.0]) if mixed else parts[0]
    walked = batches(dataset, options=options)
    whole = [walked.batch(step) for step in range(9)]
    for step in (8, 2, 5):
        ranks = [
            batches(dataset, options=options, micro_batch=micro_batch, dp_rank=rank, dp_size=3).batch(step)
            for micro_batch, rank in ((2, 0), (2, 1), (2, 2))
        ]
        for name in ("tokens", "labels", "positions"):
            expected = getattr(whole[step], name)
            found = [getattr(rank, name) for rank in ranks]
            if expected is None:
                assert found == [None] * 3
            else:
                assert torch.equal(torch.cat([part.flatten(0, 1) for part in found]), expected.flatten(0, 1))
        assert {(rank.loss_tokens, rank.input_tokens) for rank in ranks} == {
            (whole[step].loss_tokens, whole[step].input_tokens)
        }
        assert int((whole[step].labels != IGNORE).sum()) == whole[step].loss_tokens


def test_any_part_of_a_stream_can_be_asked_for() -> None:
    orders = [EpochOrder(np.arange(start, start + size), 1, start) for start, size in ((0, 7), (100, 50))]
    stream = MixtureOrder(orders, [1, 2], seed=3).part(0, 2 * MIXING_BLOCK + 10)
    for start, count in ((0, 5), (MIXING_BLOCK - 3, 9), (2 * MIXING_BLOCK + 1, 4), (17, 0)):
        assert np.array_equal(MixtureOrder(orders, [1, 2], seed=3).part(start, count), stream[start : start + count])
    first = stream < 100
    assert first[:MIXING_BLOCK].sum() == round(MIXING_BLOCK / 3)
    assert 250 < first[:900].sum() < 350  # arranged at random, not in runs
    small = stream[first]
    epochs = small[: len(small) // 7 * 7].reshape(-1, 7)
    assert (np.sort(epochs, axis=1) == np.arange(7)).all(), "a part has whole epochs of its own"


@pytest.mark.parametrize(
    ("weights", "expected"), [([1, 1, 1], [4, 3, 3]), ([1000, 1e-9], [9, 1]), ([0.25, 0.75], [3, 7]), ([5], [10])]
)
def test_shares(weights: list[float], expected: list[int]) -> None:
    shares = exact_shares(weights, 10)
    assert shares.sum() == 10
    assert sorted(shares) == sorted(expected)


def test_a_window_has_the_examples_that_it_would_have_had_with_less_padding(parts: list[TokenDataset]) -> None:
    plain, sorted_ = (batches(parts[0], options=BatchOptions(length_window=window)) for window in (0, 5))
    for window in range(3):
        steps = range(5 * window, 5 * window + 5)
        assert sorted(np.concatenate([plain.examples(step) for step in steps])) == sorted(
            np.concatenate([sorted_.examples(step) for step in steps])
        )
    widths = [[each.batch(step).tokens.shape[-1] for step in range(15)] for each in (plain, sorted_)]
    assert sum(widths[1]) < sum(widths[0])
    assert widths[1] != sorted(widths[1]), "the batches of a window come in no order of length"


def test_length_order_asks_for_whole_batches() -> None:
    order = LengthOrder(EpochOrder(np.arange(10), 0), np.arange(10), 4, 2, seed=0)
    with pytest.raises(AssertionError):
        order.part(2, 4)


def test_best_fit() -> None:
    assert best_fit([5, 3, 4, 8, 2], 8) == [[3], [0, 1], [2, 4]]
    assert best_fit([1], 1) == [[0]]
    assert padding_share(np.array([5, 3, 4, 8, 2]), 8) == pytest.approx(2 / 24)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 200, 4096)
    rows = best_fit(lengths.tolist(), 512)
    assert sorted(place for row in rows for place in row) == list(range(4096))
    assert max(lengths[row].sum() for row in rows) <= 512
    assert padding_share(lengths, 512) < 0.01


def test_packed_rows_hold_every_example_once_an_epoch(parts: list[TokenDataset]) -> None:
    lengths = parts[0].lengths - 1
    order = PackedOrder(EpochOrder(np.arange(40), 2), lengths, 256, seed=2)
    order.rows(0, 1)
    per_block = order._ends[0]
    counts = np.bincount(np.concatenate(order.rows(0, per_block)), minlength=40)
    assert set(counts) <= {4096 // 40, 4096 // 40 + 1}
    again = PackedOrder(EpochOrder(np.arange(40), 2), lengths, 256, seed=2).rows(per_block - 2, 5)
    assert [row.tolist() for row in again] == [row.tolist() for row in order.rows(per_block - 2, 5)]


def test_a_packed_row_is_its_examples_side_by_side(parts: list[TokenDataset]) -> None:
    packed = batches(parts[0], options=BatchOptions(packing=True), sequence_length=253, micro_batch=12)
    batch = packed.batch(1)
    assert batch.tokens.shape == (1, 12, 256)
    assert batch.positions is not None
    shared = 0
    for row, examples in enumerate(packed._rows(1)):
        start = 0
        shared += len(examples) > 1
        for example in examples:
            ids, prompt = parts[0][example].tolist(), int(parts[0].prompt_lengths[example])
            end = start + len(ids) - 1
            assert batch.tokens[0, row, start:end].tolist() == ids[:-1]
            assert batch.labels[0, row, start:end].tolist() == [IGNORE] * (prompt - 1) + ids[prompt:]
            assert batch.positions[0, row, start:end].tolist() == list(range(len(ids) - 1))
            start = end
        assert batch.positions[0, row, start:].tolist() == list(range(256 - start))
        assert (batch.labels[0, row, start:] == IGNORE).all()
    assert shared > 6
    assert any("of their positions are padding" in note for note in packed.notes)


@pytest.mark.parametrize("family", ["llama", "llama-llama3", "mistral", "qwen3", "gpt2", "opt", "gpt_neox"])
def test_a_packed_row_has_the_loss_and_gradients_of_its_examples_alone(family: str, tmp_path: Path) -> None:
    families.save(families.random_model(family), tmp_path)
    arch = read_architecture(tmp_path)
    part, vocab = DecoderSlice(range(arch.num_layers)), VocabRange(0, arch.vocab_size, arch.vocab_size)
    decoder = Decoder(arch, part, vocab, TensorParallel())
    load_decoder(decoder, tmp_path)
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(1, arch.vocab_size, (length,), generator=generator) for length in (13, 5, 1, 21)]
    tokens = torch.cat([*texts, torch.zeros(5, dtype=torch.int64)])[None]
    places = torch.cat([torch.arange(len(text)) for text in (*texts, range(5))])[None]

    def gradients(hidden: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        assert decoder.head is not None
        decoder.zero_grad()
        logits = decoder.head(torch.cat(hidden, dim=1))
        loss = torch.nn.functional.cross_entropy(logits[0], torch.cat(texts).roll(-1), reduction="sum")
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in decoder.parameters() if p.grad is not None]

    loss, found = gradients([decoder(tokens, places)[:, :40]])
    expected_loss, expected = gradients([decoder(text[None]) for text in texts])
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * expected[0].norm() + 1e-5 * theirs.norm()
    leaking, _ = gradients([decoder(tokens)[:, :40]])
    assert leaking != pytest.approx(expected_loss.item(), rel=1e-4)


def test_rotations_begin_again_with_each_text() -> None:
    """Attention sees differences of positions only, so no loss would tell."""
    kind = AttentionKind(Rotary(dim=8), None)
    known = Positions.build(kind, 6, torch.device("cpu"))
    places = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]])
    packed = known.within(places).rotary
    assert known.rotary is not None
    assert packed is not None
    assert torch.equal(packed.cos[:, 0], known.rotary.cos[places])
    assert torch.equal(packed.sin[:, 0], known.rotary.sin[places])


def configuration(**data: Any) -> Any:
    return parse_config({"data": data, "train": {"steps": 1}, "checkpoint": {"folder": "x"}}).data


def test_a_mixture_from_the_configuration(parts: list[TokenDataset], tmp_path: Path) -> None:
    sources = [{"path": str(parts[0].folder), "weight": 3}, {"path": str(parts[1].folder)}]
    mixed = open_training_data(configuration(train=sources))
    assert isinstance(mixed, Mixture)
    assert mixed.weights == [3.0, 1.0]
    assert len(mixed) == 50
    assert [mixed[index].tolist() for index in (39, 40)] == [parts[0][39].tolist(), parts[1][0].tolist()]
    seen = np.concatenate([batches(mixed).examples(step) for step in range(100)])
    assert 0.7 < (seen < 40).mean() < 0.8
    reweighted = open_training_data(configuration(train=[{**sources[0], "weight": 2}, sources[1]]))
    assert len({mixed.fingerprint, reweighted.fingerprint, parts[0].fingerprint}) == 3
    assert isinstance(open_training_data(configuration(train=str(parts[0].folder))), TokenDataset)

    token_dataset(tmp_path, EXAMPLES[:5])
    other = str(tokenizer_folder(tmp_path / "other", 310))
    preprocess([str(tmp_path / "examples.jsonl")], other, tmp_path / "data310")
    with pytest.raises(UserError, match=r"data310 and .* were made with different tokenizers"):
        open_training_data(configuration(train=[*sources, {"path": str(tmp_path / "data310")}]))
    mixed = Mixture([parts[0], _Long(parts[1])], [1, 1])
    with pytest.raises(UserError, match=r"no example has anything to learn at this sequence length"):
        batches(mixed)


class _Long:
    """A dataset whose prompts fill any sequence."""

    def __init__(self, dataset: TokenDataset) -> None:
        self._dataset = dataset
        self.prompt_lengths = dataset.lengths + 10_000
        self.lengths = dataset.lengths + 10_001

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)


def test_how_batches_are_made_belongs_to_the_fingerprint(parts: list[TokenDataset]) -> None:
    found = [batches(parts[0], options=options).fingerprint for options in OPTIONS]
    assert found[0] == parts[0].fingerprint  # checkpoints of plain runs stay good
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "data.train"),
        ("[{path: a, weigth: 2}]", "weigth"),
        ("[{weight: 2}]", "path"),
        ("[{path: a, weight: 0}]", "greater than 0"),
    ],
)
def test_mistakes_in_a_mixture(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "run.yaml").write_text(f"data: {{train: {text}}}\ntrain: {{steps: 3}}\ncheckpoint: {{folder: r}}\n")
    with pytest.raises(UserError, match=expected) as error:
        load_config(tmp_path / "run.yaml")
    assert "run.yaml:1" in str(error.value)


def test_packing_and_sorting_by_length_exclude_one_another() -> None:
    with pytest.raises(UserError, match="exclude one another"):
        BatchOptions(packing=True, length_window=2)
