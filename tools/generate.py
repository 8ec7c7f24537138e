"""`megaokd generate`: a model's responses to the prompts of a JSONL file, as training data.

Under a launcher or without one: the model is split over --tensor processes, and what is left of the processes shares
the prompts. Every line of the output is an object with `prompt`, `output` and `finish_reason`, which
`megaokd preprocess` reads. Started again after a kill, it goes on where it was; on SIGTERM it writes what it has in
hand, and the exit status is 75.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megaokd.cli import run
from megaokd.exit_status import ExitStatus
from megaokd.files import check_output_folder
from megaokd.option_types import count, positive, share
from megaokd.signals import StopRequest
from megaokd.train_command import run_split

if TYPE_CHECKING:
    from megaokd.mesh import ParallelMesh


def main(argv: Sequence[str]) -> int:
    """Generate; rank 0 says how far it is."""
    options = _parser().parse_args(argv)
    # After parsing: --help must not wait for torch.
    from megaokd.evaluation.ranks import Ranks
    from megaokd.evaluation.responses import Responding, write_responses
    from megaokd.generation.options import GenerationOptions
    from megaokd.models.hub import fetch_folder

    check_output_folder(options.output.parent)
    responding = Responding(
        model=Path(options.model),
        prompts=options.prompts,
        output=options.output,
        options=GenerationOptions(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
        ),
        batch=options.batch,
    )

    def work(mesh: "ParallelMesh", stop: StopRequest) -> ExitStatus:
        def say(text: str) -> None:
            if mesh.is_main:
                print(text, flush=True)

        fetched = replace(responding, model=Path(fetch_folder(options.model)))
        whole = write_responses(fetched, Ranks.of(mesh), say, lambda: stop.requested)
        return ExitStatus.FINISHED if whole else ExitStatus.INTERRUPTED

    with StopRequest() as stop:
        return run_split(options.tensor, lambda mesh: work(mesh, stop))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megaokd generate", description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face model with its tokenizer, a folder or a Hub name")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE.jsonl", help="objects with `prompt`")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl", help="must not exist")
    parser.add_argument("--max-new-tokens", type=positive, default=128, metavar="N", help="default: 128")
    parser.add_argument("--temperature", type=_temperature, default=1.0, metavar="T", help="0: greedy (default: 1)")
    parser.add_argument("--top-k", type=count, default=0, metavar="K", help="0: all tokens (default)")
    parser.add_argument("--top-p", type=share, default=1.0, metavar="P", help="default: 1")
    parser.add_argument("--seed", type=count, default=0, metavar="S", help="of sampling (default: 0)")
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="prompts at a time (default: 16)")
    parser.add_argument("--tensor", type=positive, default=1, metavar="N", help="processes the model is split over")
    return parser


def _temperature(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
