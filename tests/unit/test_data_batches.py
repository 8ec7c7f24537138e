"""The order of training: one global batch for every layout, a function of (seed, step) alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megaokd.data.batch import IGNORE, Batch, BatchShape
from megaokd.data.batches import BatchOptions, TrainBatches, ValidationBatches
from megaokd.data.dataset import TokenDataset
from megaokd.data.examples import Example
from megaokd.errors import UserError
from tests.unit.data_helpers import EXAMPLES, token_dataset

LAYOUTS = [(1, 12), (1, 4), (1, 1), (2, 6), (2, 3), (3, 2), (4, 1), (12, 1)]  # data-parallel ranks, micro-batch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    return token_dataset(tmp_path_factory.mktemp("batches"))


def train_batches(dataset: TokenDataset, **changes: Any) -> TrainBatches:
    seed = changes.pop("seed", 3)
    return TrainBatches(dataset, batch_shape(**changes), seed=seed)


def validation_batches(dataset: TokenDataset, **changes: Any) -> ValidationBatches:
    limit = changes.pop("limit", None)
    return ValidationBatches(dataset, batch_shape(**changes), limit=limit)


def batch_shape(**changes: Any) -> BatchShape:
    options = {"sequence_length": 64, "bucket": 8, "global_batch": 12, "micro_batch": 4}
    return BatchShape(**{**options, **changes})


def joined(parts: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch [global_batch, S] from the parts of all ranks, in order of their ranks."""
    assert len({part.loss_tokens for part in parts}) == 1
    tokens = torch.cat([part.tokens.flatten(0, 1) for part in parts])
    labels = torch.cat([part.labels.flatten(0, 1) for part in parts])
    assert int((labels != IGNORE).sum()) == parts[0].loss_tokens
    return tokens, labels


@pytest.mark.parametrize(("dp_size", "micro_batch"), LAYOUTS)
@pytest.mark.parametrize("sequence_length", [64, 20])
def test_every_layout_sees_the_same_global_batch(
    dataset: TokenDataset, dp_size: int, micro_batch: int, sequence_length: int
) -> None:
    alone = train_batches(dataset, sequence_length=sequence_length)
    ranks = [
        train_batches(
            dataset, sequence_length=sequence_length, micro_batch=micro_batch, dp_size=dp_size, dp_rank=dp_rank
        )
        for dp_rank in range(dp_size)
    ]
    for step in range(6):
        parts = [rank.batch(step) for rank in ranks]
        assert {tuple(part.tokens.shape[:2]) for part in parts} == {(12 // dp_size // micro_batch, micro_batch)}
        for ours, expected in zip(joined(parts), joined([alone.batch(step)]), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("sequence_length", [1000, 20])
def test_labels_are_the_tokens_that_follow_and_only_the_responses(dataset: TokenDataset, sequence_length: int) -> None:
    batches = train_batches(dataset, sequence_length=sequence_length)
    tokens, labels = joined([batches.batch(0)])
    assert tokens.dtype == labels.dtype == torch.int64
    examples = batches.examples(0)
    longest = max(min(len(dataset[example]) - 1, sequence_length) for example in examples)
    assert tokens.shape == (12, -(-longest // 8) * 8)
    for row, example in enumerate(examples):
        ids, prompt = dataset[example].tolist(), dataset.prompt_lengths[example]
        end = min(len(ids) - 1, sequence_length)
        assert tokens[row].tolist() == ids[:end] + [0] * (tokens.shape[1] - end)
        expected = [ids[t + 1] if t + 1 >= prompt and t < end else IGNORE for t in range(tokens.shape[1])]
        assert labels[row].tolist() == expected


def test_an_epoch_is_a_permutation_and_epochs_differ(dataset: TokenDataset) -> None:
    batches = train_batches(dataset)
    stream = np.concatenate([batches.examples(step) for step in range(25)]).reshape(6, 50)  # 25 x 12 = 6 x 50
    assert all(sorted(epoch) == list(range(50)) for epoch in stream)
    assert len({tuple(epoch) for epoch in stream}) == 6
    assert not np.array_equal(stream[0], np.arange(50))
    other = np.concatenate([train_batches(dataset, seed=4).examples(step) for step in range(25)])
    assert not np.array_equal(other, stream.ravel())


def test_a_step_depends_on_nothing_that_came_before(dataset: TokenDataset) -> None:
    walked = train_batches(dataset)
    history = [walked.batch(step) for step in range(11)]
    for step in (10, 3, 4):  # 4 reaches over the end of the first epoch
        resumed = train_batches(dataset).batch(step)
        assert torch.equal(resumed.tokens, history[step].tokens)
        assert torch.equal(resumed.labels, history[step].labels)
        assert resumed.loss_tokens == history[step].loss_tokens


def test_a_dataset_smaller_than_a_global_batch_repeats(tmp_path: Path) -> None:
    batches = train_batches(token_dataset(tmp_path, EXAMPLES[:5]))
    stream = np.concatenate([batches.examples(step) for step in range(5)]).reshape(12, 5)
    assert all(sorted(epoch) == list(range(5)) for epoch in stream)


def test_examples_with_nothing_left_to_learn_are_left_out(tmp_path: Path) -> None:
    long = Example("def " + "item " * 60, "Return.")
    dataset = token_dataset(tmp_path, [long, *EXAMPLES[:9], long])
    batches = train_batches(dataset)
    assert (batches.left_out, batches.epoch_size) == (2, 9)
    whole = dataset.lengths[1:10] - 1
    cut, left_out = batches.notes
    assert f"of 11 examples {(whole > 64).sum()} are cut to data.sequence_length=64, so that the end of their" in cut
    assert cut.endswith(f"the longest needs {whole.max()}")
    assert left_out == f"{dataset.folder}: of 11 examples 2 are left out: their prompt fills data.sequence_length"
    assert train_batches(dataset, sequence_length=512).notes == []
    assert set(np.concatenate([batches.examples(step) for step in range(3)])) == set(range(1, 10))
    assert len(validation_batches(dataset)) == 1
    with pytest.raises(UserError, match=r"every prompt fills data\.sequence_length = 2 "):
        train_batches(dataset, sequence_length=2)


@pytest.mark.parametrize(("dp_size", "micro_batch"), LAYOUTS)
def test_validation_sees_each_example_once_in_order(dataset: TokenDataset, dp_size: int, micro_batch: int) -> None:
    ranks = [
        validation_batches(dataset, micro_batch=micro_batch, dp_size=dp_size, dp_rank=dp_rank)
        for dp_rank in range(dp_size)
    ]
    assert {len(rank) for rank in ranks} == {5}
    rows = []
    for parts in zip(*ranks, strict=True):
        tokens, labels = joined(list(parts))
        assert tokens.shape[0] == 12  # the last one too, filled with rows without loss
        rows += [row for row, label in zip(tokens, labels, strict=True) if (label != IGNORE).any()]
    assert len(rows) == 50
    for index, row in enumerate(rows):
        ids = dataset[index][:-1][:64]
        assert row[: len(ids)].tolist() == ids.tolist()


def test_validation_can_be_repeated_and_limited(dataset: TokenDataset) -> None:
    batches = validation_batches(dataset)
    first, second = list(batches), list(batches)
    assert len(first) == len(batches) == 5
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True))
    assert sum(batch.loss_tokens for batch in first) == (np.minimum(dataset.lengths, 65) - dataset.prompt_lengths).sum()
    limited = validation_batches(dataset, limit=2)
    assert len(limited) == len(list(limited)) == 2
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(limited, first, strict=False))
    assert len(validation_batches(dataset, limit=100)) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"global_batch": 30, "micro_batch": 8, "dp_size": 2},
            r"30 .* 8 x 2 = 16; what fits: .*16 or 32, .*1, 3, 5, 15$",
        ),
        ({"global_batch": 3, "micro_batch": 8}, r"3 .* 8 x 1 = 8; what fits: a global batch of 8, .*1, 3$"),
        ({"global_batch": 9, "micro_batch": 2, "dp_size": 2}, r"9 .* 2 x 2 = 4; what fits: a global batch of 8 or 12$"),
    ],
)
def test_a_global_batch_that_does_not_divide(dataset: TokenDataset, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_batches(dataset, **changes)
    with pytest.raises(UserError, match=message):
        validation_batches(dataset, **changes)


@pytest.mark.parametrize("options", [None, BatchOptions(packing=True), BatchOptions(length_window=3)])
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_what_is_visited_is_listed_once_in_the_order_of_training(
    options: BatchOptions | None, steps: int, dataset: TokenDataset
) -> None:
    batches = TrainBatches(dataset, batch_shape(), seed=3, options=options)
    met = [int(example) for step in range(steps) for example in batches.examples(step)]
    assert batches.visited(steps).tolist() == list(dict.fromkeys(met))


def test_a_batch_names_the_examples_of_its_rows(dataset: TokenDataset) -> None:
    for options in (BatchOptions(), BatchOptions(packing=True)):
        batches = TrainBatches(dataset, batch_shape(), seed=3, options=options)
        batch = batches.batch(2)
        assert np.concatenate(batch.examples).tolist() == batches.examples(2).tolist()
        for row, together in zip(batch.tokens.flatten(0, 1), batch.examples, strict=True):
            ids = np.concatenate([dataset[example][:-1][:64] for example in together])
            assert row[: len(ids)].tolist() == ids.tolist()
