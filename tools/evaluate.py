"""`megaokd evaluate`: cross-entropy, divergence to a teacher and ROUGE-L of a Hugging Face model folder.

Single process; on a GPU where there is one. Writes evaluation.json, evaluation.md and generations.jsonl.
"""

import argparse
import sys
from collections.abc import Sequence

from megaokd.cli import run


def main(argv: Sequence[str]) -> int:
    """Evaluate, write the report, print it."""
    options = _parser().parse_args(argv)
    # After parsing: --help must not wait for torch.
    from transformers.utils.logging import disable_progress_bar

    from megaokd.data.dataset import TokenDataset
    from megaokd.evaluation.evaluate import evaluate
    from megaokd.evaluation.report import summary, write_report

    disable_progress_bar()
    data = TokenDataset(options.data)
    result = evaluate(
        options.model,
        data,
        data_folder=options.data,
        tokenizer_folder=data.tokenizer_path,
        teacher_folder=options.teacher,
        num_generations=options.generate,
        max_new_tokens=options.max_new_tokens,
        max_length=options.max_length,
        max_batch_tokens=options.max_batch_tokens,
    )
    write_report(result, options.output)
    print(summary(result))
    print(
        f"\nwrote {options.output}: evaluation.json, evaluation.md"
        + (", generations.jsonl" if result.generations else "")
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megaokd evaluate", description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face model folder (safetensors)")
    parser.add_argument("--data", required=True, help="tokenized data set, as `megaokd preprocess` writes it")
    parser.add_argument("--teacher", help="Hugging Face folder of the teacher, for the divergences to it")
    parser.add_argument("--generate", type=_count, default=0, metavar="N", help="greedy generations (default: none)")
    parser.add_argument("--max-new-tokens", type=_positive, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--max-length", type=_positive, metavar="N", help="cut examples to N ids (default: the positions)"
    )
    parser.add_argument(
        "--max-batch-tokens", type=_positive, default=4096, metavar="N", help="padded tokens a forward (default: 4096)"
    )
    parser.add_argument("--output", required=True, help="folder for the report")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
