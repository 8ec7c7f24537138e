"""What the page of error messages quotes is what the program says."""

import pytest

from tests.documents.blocks import ROOT
from tests.documents.messages import comes_from, quoted_messages, strings_of_the_source

QUOTED = quoted_messages(ROOT / "docs" / "troubleshooting.md")
# Said by others: DeepSpeed's launcher, srun, CUDA.
FOREIGN = {"... was not reachable via ssh", "Job step aborted", "CUDA error: invalid device ordinal"}


@pytest.fixture(scope="module")
def strings() -> list[str]:
    return strings_of_the_source()


def test_there_are_messages() -> None:
    assert len(QUOTED) > 60
    assert set(QUOTED) >= FOREIGN


@pytest.mark.parametrize("message", [message for message in QUOTED if message not in FOREIGN])
def test_a_quoted_message_stands_in_the_source(message: str, strings: list[str]) -> None:
    assert comes_from(message, strings)


@pytest.mark.parametrize(
    "message", ["given no sign of life since 120 s", "data.packing and data.window exclude one another", "..", "N"]
)
def test_a_message_that_nobody_gives_is_noticed(message: str, strings: list[str]) -> None:
    assert not comes_from(message, strings)
