"""megaokd quickstart: the whole path on a small real corpus, by the commands that a user would type.

corpus -> tokenizer -> token data -> a teacher -> three students of a ninth of its size (supervised only, plain
distillation, online distillation) from the same initial weights on the same batches -> evaluation -> one table.
"""

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megaokd.cli import run
from megaokd.errors import UserError
from megaokd.files import check_output_folder, make_empty
from megaokd.option_types import positive
from megaokd.subcommand import run_command, shown_command

RECIPES = Path(__file__).resolve().parent
PARTS = ("train", "validation", "test")
COMMANDS_FILE = "commands.sh"
FROZEN = ["teacher.online=null", "objective.teacher={}"]
SUPERVISED = ["teacher.path=null", *FROZEN, "objective.student={ce: 1.0}"]
# Method -> (its folder, what turns student.yaml into it).
STUDENTS: dict[str, tuple[str, list[str]]] = {
    "supervised only": ("sft", SUPERVISED),
    "distillation": ("distillation", FROZEN),
    "online distillation": ("okd", []),
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What --smoke shrinks; None leaves it to the recipe or the tool."""

    corpus_pairs: int | None = None
    vocab_size: int = 2048
    generations: int = 64
    max_new_tokens: int = 40
    teacher: tuple[str, ...] = ()
    student: tuple[str, ...] = ()


_TINY_RUN = (
    *("train.steps=4", "train.global_batch=8", "train.micro_batch=4"),
    *("train.validate_every=2", "logging.every=1"),
)
SMOKE = Scale(
    corpus_pairs=300,
    vocab_size=512,
    generations=4,
    max_new_tokens=8,
    teacher=(*_TINY_RUN, "student.architecture={hidden_size: 64, num_layers: 2, num_heads: 4}"),
    student=(
        *_TINY_RUN,
        "student.architecture={hidden_size: 32, num_layers: 1, num_heads: 4}",
        "teacher.online.layers=1",
    ),
)


@dataclass
class Commands:
    """Runs commands one after another: prints each, shows its output, keeps both in `folder`."""

    folder: Path
    start: float = field(default_factory=time.perf_counter)

    def run(self, title: str, *command: str) -> None:
        """Run `megaokd ...` or `torchrun ...` with this Python.

        Raises:
            UserError: the command failed; holds the command, its exit status and its last lines.
        """
        shown = shown_command(command)
        minutes, seconds = divmod(int(self.seconds), 60)
        print(f"\n[{minutes:02}:{seconds:02}] {title}\n$ {shown}", flush=True)
        with (self.folder / COMMANDS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"# {title}\n{shown}\n")
        status, last_lines = run_command(command, _pass_on)
        if status != 0:
            raise UserError(f"this command ended with exit status {status}:\n$ {shown}\nits last lines:\n{last_lines}")

    @property
    def seconds(self) -> float:
        """Since the first command."""
        return time.perf_counter() - self.start


def main(argv: Sequence[str]) -> int:
    """Run everything, print the table, check the exported student."""
    options = _parser().parse_args(argv)
    folder = Path(options.folder or ("runs/quickstart_smoke" if options.smoke else "runs/quickstart"))
    scale = SMOKE if options.smoke else Scale()
    _check_folder(folder, overwrite=options.overwrite)
    check_output_folder(folder)
    own_data = None if options.data is None else _split(options)  # before anything is removed
    _prepare(folder)
    commands = Commands(folder)
    _make_data(commands, own_data, scale)
    _train(commands, options, scale)
    for model in ("teacher", *(name for name, _ in STUDENTS.values())):
        _evaluate(commands, model, scale)
    _conclude(commands, options)
    return 0


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless that is a former quickstart's and may be replaced."""
    if (folder / COMMANDS_FILE).is_file():
        if not overwrite:
            raise UserError(
                f"{folder}: holds a former quickstart; give another --folder, or --overwrite to remove that one "
                "(make quickstart ARGS=--overwrite)"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not empty, and not from a former quickstart; give another --folder")


def _prepare(folder: Path) -> None:
    """An empty folder with the recipes in it, in place of a former quickstart's."""
    make_empty(folder)
    (folder / COMMANDS_FILE).write_text("# What `megaokd quickstart` ran, from the same directory.\n", encoding="utf-8")
    for role in ("teacher", "student"):
        recipe = (RECIPES / f"quickstart_{role}.yaml").read_text(encoding="utf-8")
        (folder / f"{role}.yaml").write_text(_fill_in(recipe, folder), encoding="utf-8")


def _fill_in(recipe: str, folder: Path) -> str:
    """FOLDER/name becomes the path, quoted as YAML where it holds anything unusual."""
    lines = recipe.splitlines(keepends=True)
    for number, line in enumerate(lines):
        key, found, name = line.partition(": FOLDER/")
        if found:
            lines[number] = f"{key}: {json.dumps(str(folder / name.strip()), ensure_ascii=False)}\n"
    return "".join(lines)


def _make_data(commands: Commands, own_data: Mapping[str, Sequence[str]] | None, scale: Scale) -> None:
    corpus, tokenizer, data = (commands.folder / name for name in ("corpus", "tokenizer", "data"))
    if own_data is None:
        limit = [] if scale.corpus_pairs is None else ["--limit", str(scale.corpus_pairs)]
        title = "Collect (signature -> docstring) pairs from the standard library; test modules are unseen in training"
        commands.run(title, "megaokd", "corpus", "--output", str(corpus), *limit)
    else:
        corpus.mkdir()
        for part, lines in own_data.items():
            (corpus / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = {part: str(corpus / f"{part}.jsonl") for part in PARTS}
    commands.run(
        "Train a sentencepiece tokenizer on the training part",
        *("megaokd", "tokenizer", "--input", files["train"]),
        *("--output", str(tokenizer), "--vocab-size", str(scale.vocab_size)),
    )
    for part in PARTS:
        commands.run(
            f"Tokenize the {part} part, prompts masked",
            *("megaokd", "preprocess", "--input", files[part]),
            *("--tokenizer", str(tokenizer), "--output", str(data / part)),
        )


def _split(options: argparse.Namespace) -> dict[str, list[str]]:
    """The lines of three files of the user's examples: by a hash of the prompt 5% each for validation and test, at
    most 500.

    Raises:
        UserError: the data cannot be read, or are too few.
    """
    from megaokd.data.examples import Example, Keys, read_examples

    print(f"\nSplit {options.data} into {', '.join(PARTS)}", flush=True)
    keys = Keys(prompt=options.prompt_key, response=options.response_key)
    rows: dict[str, list[str]] = {part: [] for part in PARTS}
    for example in read_examples([options.data], split=options.split, keys=keys):
        if not isinstance(example, Example):
            raise UserError(f"{options.data}: the quickstart needs prompts with responses, not plain text")
        share = hashlib.sha256(example.prompt.encode()).digest()[0] / 256
        part = "test" if share < 0.05 else "validation" if share < 0.1 else "train"
        if part == "train" or len(rows[part]) < 500:
            rows[part].append(json.dumps({"prompt": example.prompt, "response": example.response}, ensure_ascii=False))
    for part, lines in rows.items():
        if not lines:
            raise UserError(f"{options.data}: too few examples to have a {part} part; give some hundreds at least")
    return rows


def _train(commands: Commands, options: argparse.Namespace, scale: Scale) -> None:
    folder = commands.folder
    torchrun = ("torchrun", "--standalone", "--nproc-per-node=2", "-m", "megaokd.cli", "train")
    steps = [] if options.teacher_steps is None else [f"train.steps={options.teacher_steps}"]
    commands.run(
        "Train the teacher: supervised, two data-parallel processes",
        *(*torchrun, str(folder / "teacher.yaml"), *scale.teacher, *steps),
    )
    steps = [] if options.steps is None else [f"train.steps={options.steps}"]
    for method, (name, overrides) in STUDENTS.items():
        commands.run(
            f"Train a student: {method}, tensor-parallel over two processes",
            *(*torchrun, str(folder / "student.yaml"), *scale.student, *steps),
            *(*overrides, "parallel.tensor=2", f"checkpoint.folder={folder / name}"),
        )


def _evaluate(commands: Commands, model: str, scale: Scale) -> None:
    folder = commands.folder
    teacher = [] if model == "teacher" else ["--teacher", str(folder / "teacher" / "student")]
    commands.run(
        f"Evaluate {model} on the test part",
        *("megaokd", "evaluate", "--model", str(folder / model / "student"), *teacher),
        *("--data", str(folder / "data" / "test"), "--generate", str(scale.generations)),
        *("--max-new-tokens", str(scale.max_new_tokens), "--output", str(folder / "evaluation" / model)),
    )


def _conclude(commands: Commands, options: argparse.Namespace) -> None:
    """The table, three generations, the check of the export; all of it also in results.md and results.json."""
    from transformers.utils.logging import disable_progress_bar

    from megaokd.evaluation.comparison import comparison_table, read_entry, side_by_side, write_comparison
    from megaokd.evaluation.environment import describe_environment
    from megaokd.evaluation.export_check import check_export

    disable_progress_bar()
    folder = commands.folder
    names = {"(teacher)": "teacher", **{method: name for method, (name, _) in STUDENTS.items()}}
    entries = [read_entry(method, folder / "evaluation" / name, folder / name) for method, name in names.items()]
    difference = check_export(folder / "okd")
    source = "the standard library's docstrings" if options.data is None else options.data
    test = entries[0].evaluation
    notes = [
        f"On {test['examples']:,} held-out examples ({test['tokens']:,} response tokens) of {source}; "
        f"ROUGE-L of {test['generations']} greedy generations; one seed, no setting tuned for a method.",
        f"The exported student gives the trained student's logits to {difference:.1e} of the largest.",
        f"The whole quickstart took {commands.seconds:.0f} seconds.",
    ]
    if options.smoke:
        notes.insert(0, "Made with --smoke, a few steps of tiny models: the path works, the numbers mean nothing.")
    write_comparison(entries, folder, "MegaOKD quickstart", notes, describe_environment())
    print(f"\n{side_by_side(entries)}\n\n{comparison_table(entries)}\n")
    print("\n".join(notes))
    print(f"Results:     {folder / 'results.md'}, {folder / 'results.json'}")
    print(f"Curves:      {shlex.join(['tensorboard', '--logdir', str(folder)])}")
    print(f"The student: {folder / 'okd' / 'student'}   (transformers.AutoModelForCausalLM loads it)")


def _pass_on(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megaokd quickstart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", metavar="DIR", help="default: runs/quickstart, with --smoke runs/quickstart_smoke")
    parser.add_argument("--overwrite", action="store_true", help="remove what a former quickstart left in the folder")
    parser.add_argument("--data", metavar="DATA", help=".jsonl or .parquet file, or Hugging Face dataset, instead")
    parser.add_argument("--split", default="train", help="part of a Hugging Face dataset (default: train)")
    parser.add_argument("--prompt-key", default="prompt", metavar="KEY", help="field of --data (default: prompt)")
    parser.add_argument("--response-key", metavar="KEY", help="field of --data (default: response, or output)")
    parser.add_argument("--steps", type=positive, metavar="N", help="updates of each student (default: the recipe's)")
    parser.add_argument(
        "--teacher-steps", type=positive, metavar="N", help="updates of the teacher (default: the recipe's)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="shrink everything: does the path work? the numbers mean nothing"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
