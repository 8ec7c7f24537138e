"""The command `megaokd`: a subcommand for training and one for each file in tools/."""

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence

from megaokd.errors import RunError, UserError
from megaokd.exit_status import ExitStatus
from megaokd.version import __version__

# Subcommand -> (module with `main(argv)`, one line of help). Modules are imported when asked for: `megaokd --help`
# must not wait for torch.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("megaokd.train_command", "train or distil a student: train CONFIG.yaml [section.key=value ...]"),
    "corpus": ("megaokd.tools.corpus", "signature -> docstring pairs from installed Python packages"),
    "debian-descriptions": ("megaokd.tools.debian_descriptions", "long description -> synopsis, from apt's lists"),
    "tokenizer": ("megaokd.tools.tokenizer", "train a sentencepiece tokenizer"),
    "preprocess": ("megaokd.tools.preprocess", "text or instruction data -> token data"),
    "data": ("megaokd.tools.data", "inspect a token dataset, or measure how fast one is made"),
    "export": ("megaokd.tools.export", "the student or the moved teacher of any checkpoint, for transformers and peft"),
    "evaluate": ("megaokd.tools.evaluate", "cross-entropy, divergence and ROUGE-L of a Hugging Face model folder"),
    "generate": ("megaokd.tools.generate", "a model's responses to prompts, as training data"),
    "report": ("megaokd.tools.report", "a run on one page of HTML, from its folder"),
    "compare": ("megaokd.tools.compare", "methods x seeds from the same initial student: one grid, one report"),
    "plan": ("megaokd.tools.plan", "memory, communication and time of a run on a cluster; the layouts that fit"),
    "benchmark": ("megaokd.tools.benchmark", "speed and memory of the loss, or of a step, beside alternatives"),
    "quickstart": ("megaokd.tools.quickstart", "the whole path on a small real corpus"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a subcommand; a `UserError` becomes one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return ExitStatus.FINISHED if arguments else ExitStatus.USER_ERROR
    if arguments[0] == "--version":
        print(f"megaokd {__version__}")
        return ExitStatus.FINISHED
    if arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(COMMANDS)}"
        print(f"megaokd: unknown command {arguments[0]!r}; {hint}", file=sys.stderr)
        return ExitStatus.USER_ERROR
    module = importlib.import_module(COMMANDS[arguments[0]][0])
    return run(module.main, arguments[1:])


def run(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run a command's `main(argv)`; a user's mistake becomes one line and exit status 2, a `RunError` one and 1."""
    try:
        return command(arguments)
    except UserError as error:
        print(f"megaokd: error: {error}", file=sys.stderr)
        return ExitStatus.USER_ERROR
    except RunError as error:
        print(f"megaokd: failed: {error}", file=sys.stderr)
        return ExitStatus.FAILED
    except KeyboardInterrupt:
        print("\nmegaokd: interrupted", file=sys.stderr)
        return ExitStatus.KILLED


def _usage() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: megaokd COMMAND [...]   (megaokd COMMAND --help for its options)", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
