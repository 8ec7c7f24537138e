"""`megaokd data`: what a person sees of a dataset, and the comparison with the tokenizer library."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megaokd.cli import main
from megaokd.data.dataset import TokenDataset
from megaokd.data.inspection import GIVEN, LEARNED, histogram, summary
from megaokd.data.speed import Speed
from megaokd.data.tokenizer import load_tokenizer
from tests.unit.data_helpers import EXAMPLES, token_dataset, write_jsonl


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    return token_dataset(tmp_path_factory.mktemp("inspect"))


def inspect(dataset: TokenDataset, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["data", "inspect", str(dataset.folder), *options]) == 0
    return capsys.readouterr().out


def test_the_mask_is_shown_in_brackets_without_a_terminal(
    dataset: TokenDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    found = inspect(dataset, capsys, "--first", "7", "--examples", "2")
    for example in EXAMPLES[7:9]:
        assert f"<s>{example.prompt}[[{example.response}</s>]]\n" in found
    assert "\x1b" not in found
    assert EXAMPLES[9].prompt not in found


def test_the_mask_is_shown_in_colour(dataset: TokenDataset, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(dataset, capsys, "--first", "7", "--examples", "1", "--colour", "always")
    assert f"{LEARNED}{EXAMPLES[7].response}</s>" in found
    assert f"{GIVEN}<s>{EXAMPLES[7].prompt.strip()}" in found


@pytest.mark.parametrize("cut", [3, 70, 80])
def test_what_the_sequence_length_cuts_off_is_shown(
    dataset: TokenDataset, capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    found = inspect(dataset, capsys, "--first", "9", "--examples", "1", "--sequence-length", str(cut))
    ids, prompt = dataset[9], int(dataset.prompt_lengths[9])
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    assert f"{{{{{tokenizer.decode(ids[cut + 1 :])}}}}}" in found
    assert f"{len(ids)} tokens, {max(cut + 1 - prompt, 0)} of them learned" in found
    lost = int((dataset.lengths - 1 > cut).sum())
    assert f"data.sequence_length={cut}: {lost} examples are cut" in found


def test_the_choice_follows_the_seed(dataset: TokenDataset, capsys: pytest.CaptureFixture[str]) -> None:
    first, again, other = (inspect(dataset, capsys, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again != other
    assert len(re.findall(r"^example \d+:", first, flags=re.MULTILINE)) == 3


def test_the_histogram_counts_every_example_once() -> None:
    for lengths in (np.array([7]), np.array([3, 3, 4]), np.random.default_rng(0).integers(1, 999, 5000)):
        rows = [line.split() for line in histogram(lengths)]
        for bounds, count, *_ in rows:
            start, end = map(int, bounds.split("-"))
            assert ((lengths >= start) & (lengths <= end)).sum() == int(count)
        assert sum(int(row[1]) for row in rows) == len(lengths)
        assert max(len(row[2]) for row in rows if len(row) > 2) == 50


def test_padding_of_the_three_ways(dataset: TokenDataset) -> None:
    found = re.findall(r"([\d.]+)% (?:as|by|packed)", list(summary(dataset, sequence_length=512))[-1])
    as_they_come, by_length, packed = map(float, found)
    assert 0.0 < by_length < as_they_come
    assert packed < as_they_come


def test_mistakes(dataset: TokenDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(tmp_path / "missing")]) == 2
    assert main(["data", "inspect", str(dataset.folder), "--first", "50"]) == 2
    assert "has 50 examples, counted from 0" in capsys.readouterr().err
    assert main(["data", "inspect", str(dataset.folder), "--tokenizer", "other"]) == 2
    assert "carries its own tokenizer; leave the option out" in capsys.readouterr().err
    for option, value, least in (("--sequence-length", "0", 1), ("--seed", "-1", 0)):
        with pytest.raises(SystemExit, match="2"):
            main(["data", "inspect", str(dataset.folder), option, value])
        assert f"{option} must be at least {least}, not {value}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark_compares_equal_work(dataset: TokenDataset, tmp_path: Path) -> None:
    records = [{"prompt": example.prompt, "response": example.response} for example in EXAMPLES]
    command = ["data", "benchmark", "--input", str(write_jsonl(tmp_path / "x.jsonl", records)), "--rounds", "1"]
    found = subprocess.run(  # in a process of its own: it pins itself to cores
        [sys.executable, "-m", "megaokd.cli", *command, "--tokenizer", str(dataset.tokenizer_path), "--workers", "1"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"\n{dataset.meta.num_tokens - 2 * len(dataset)} tokens on 1 cores" in found  # without begin and end


def test_the_ratio_is_taken_round_by_round() -> None:
    assert Speed([1.0, 2.0, 9.0], [2.0, 2.5, 10.0], 5, 5).ratio == pytest.approx(0.8)
