"""`megaokd evaluate`: cross-entropy, divergence to a teacher and ROUGE-L of a Hugging Face model or a run's checkpoint.

Under a launcher or without one: each model is split over --tensor processes, and what is left of the processes shares
the data. Writes evaluation.json, evaluation.md and generations.jsonl, or generations.NAME.jsonl of each of several sets
of prompts, when all is measured; SIGTERM ends it before that without a result.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megaokd.cli import run
from megaokd.errors import UserError
from megaokd.exit_status import ExitStatus
from megaokd.files import check_output_folder
from megaokd.option_types import SET_NAME, count, positive, positive_number, share
from megaokd.train_command import run_split

if TYPE_CHECKING:
    from megaokd.mesh import ParallelMesh


def main(argv: Sequence[str]) -> int:
    """Evaluate, write the report, print it."""
    options = _parser().parse_args(argv)
    _check_used(options)
    # After parsing: --help must not wait for torch.
    from transformers.utils.logging import disable_progress_bar

    from megaokd.data.dataset import TokenDataset
    from megaokd.evaluation.evaluate import Folders, GenerationOptions, evaluate
    from megaokd.evaluation.ranks import Ranks
    from megaokd.evaluation.report import check_no_report, generation_files, summary, write_report
    from megaokd.models.hub import fetch_folder

    disable_progress_bar()
    data = TokenDataset(options.data)
    generations = GenerationOptions(
        count=options.generate,
        max_new_tokens=options.max_new_tokens,
        prompts=prompt_files(options.prompts),
        seeds=options.seeds,
        temperature=options.temperature,
        top_p=options.top_p,
    )
    check_output_folder(Path(options.output))
    if not options.overwrite:
        check_no_report(options.output)
    sizes = {"max_length": options.max_length, "max_batch_tokens": options.max_batch_tokens}

    def work(mesh: "ParallelMesh") -> ExitStatus:
        folders = Folders(
            model=fetch_folder(options.model),
            data=options.data,
            tokenizer=data.tokenizer_path,
            teacher=options.teacher and fetch_folder(options.teacher),
            adapted_teacher=options.adapted_teacher,
        )
        result = evaluate(folders, data, generations, Ranks.of(mesh), **sizes)
        if mesh.is_main:
            write_report(result, options.output)
            print(summary(result))
            files = ["evaluation.json", "evaluation.md", *generation_files(result)]
            print(f"\nwrote {options.output}: {', '.join(files)}")
        return ExitStatus.FINISHED

    return run_split(options.tensor, work)


def _check_used(options: argparse.Namespace) -> None:
    """Refuse options of generations where nothing is generated: they would change nothing, without a word."""
    for name in ("prompts", "seeds"):
        if getattr(options, name) and options.generate == 0:
            raise UserError(f"--{name} is of generations, and none are made: give --generate N, or leave --{name} out")


def prompt_files(words: Sequence[str] | None) -> str | dict[str, str] | None:
    """The words of --prompts: one file, or NAME=FILE of each set.

    Raises:
        UserError: a file without a name beside others, a name that is none or is there twice.
    """
    if words is None:
        return None
    if len(words) == 1 and ("=" not in words[0] or Path(words[0]).exists()):
        return words[0]
    files: dict[str, str] = {}
    for word in words:
        name, _, file = word.partition("=")
        if not file or not re.match(SET_NAME, name):
            raise UserError(f"--prompts {word}: of several files each is NAME=FILE; letters, digits, '_', '-', '.'")
        if name in files:
            raise UserError(f"--prompts {word}: there are two sets {name!r}; give one of them another name")
        files[name] = file
    return files


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megaokd evaluate", description=__doc__)
    parser.add_argument(
        "--model",
        required=True,
        help="Hugging Face model (safetensors), a folder or a Hub name; or RUN/checkpoints/step-N",
    )
    parser.add_argument("--data", required=True, help="tokenized data set, as `megaokd preprocess` writes it")
    parser.add_argument("--teacher", help="Hugging Face model of the teacher, for the divergences to it")
    parser.add_argument("--adapted-teacher", help="the moved teacher: a model folder, or the adapter that a run leaves")
    parser.add_argument("--generate", type=count, default=0, metavar="N", help="prompts to continue (default: none)")
    parser.add_argument(
        "--prompts",
        nargs="+",
        metavar="[NAME=]FILE.jsonl",
        help="prompts with references, instead of the data set's; several files, each with the name of its set",
    )
    parser.add_argument("--seeds", type=count, default=0, metavar="N", help="sample with N seeds (default: greedy)")
    parser.add_argument(
        "--temperature", type=positive_number, default=1.0, metavar="T", help="of sampling (default: 1)"
    )
    parser.add_argument("--top-p", type=share, default=1.0, metavar="P", help="of sampling (default: 1)")
    parser.add_argument("--max-new-tokens", type=positive, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--max-length", type=positive, metavar="N", help="cut examples to N ids (default: the positions)"
    )
    parser.add_argument(
        "--max-batch-tokens", type=positive, default=4096, metavar="N", help="padded tokens a forward (default: 4096)"
    )
    parser.add_argument("--tensor", type=positive, default=1, metavar="N", help="processes a model is split over")
    parser.add_argument("--output", required=True, help="folder for the report")
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is there already")
    return parser


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
