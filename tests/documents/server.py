"""The commands of the documents without the seconds of an import each (`tests/support/forks.py`).

With DOCUMENT_CHECK among its variables a command is parsed and not run. Training runs are cut to two steps and tiny
students, the quickstart to what its --smoke makes of it, with one student.

Usage: server.py SOCKET
"""

import argparse
import dataclasses
import importlib.util
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tests.support.forks import Call, fork, run_ranks, serve, wait_for

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[[list[str], bool], int]


def import_everything() -> None:
    """What the commands import when they are called, and the smaller runs in place of the real ones."""
    import deepspeed  # noqa: F401
    import transformers  # noqa: F401

    import megaokd.config_file

    megaokd.config_file.load_config = shrinking(megaokd.config_file.load_config)
    import megaokd.engine.engine
    import megaokd.evaluation.evaluate
    import megaokd.train_command
    import megaokd.trainer
    from megaokd.tools import quickstart

    quickstart.STUDENTS = {"online distillation": quickstart.STUDENTS["online distillation"]}  # all: its own test
    small = {"hidden_size": 16, "num_layers": 4, "num_heads": 4, "intermediate_size": 32}
    teacher = f"student.architecture={json.dumps({**small, 'hidden_size': 32})}"
    quickstart.SMOKE = dataclasses.replace(
        quickstart.SMOKE, generations=2, max_new_tokens=4, teacher=(teacher,), student=()
    )


def shrinking(load_config: Callable[..., Any]) -> Callable[..., Any]:
    """`load_config`, its result cut to two steps of a tiny student on short examples after everything was checked."""

    def load(path: str | Path, overrides: Any = ()) -> Any:
        config = load_config(path, overrides)
        saved = Path(config.checkpoint.folder, "checkpoints").glob("step-*")
        done = max((int(folder.name.partition("-")[2]) for folder in saved), default=0)  # where a run continues
        train = dataclasses.replace(config.train, steps=done + 2, validation_batches=1)
        train = dataclasses.replace(train, validate_every=min(train.validate_every, 2))
        data = dataclasses.replace(config.data, sequence_length=min(config.data.sequence_length, 96))
        checkpoint = dataclasses.replace(config.checkpoint, every=min(config.checkpoint.every, 2), keep_every=0)
        architecture, from_teacher = config.student.architecture, config.student.from_teacher
        if from_teacher is None:
            architecture = dataclasses.replace(architecture, hidden_size=16, intermediate_size=32)
        if from_teacher is not None and from_teacher.hidden_size is not None:
            from_teacher = dataclasses.replace(
                from_teacher, layers=2, hidden_size=16, num_heads=2, num_kv_heads=1, intermediate_size=32
            )
        student = dataclasses.replace(config.student, architecture=architecture, from_teacher=from_teacher)
        return dataclasses.replace(config, data=data, train=train, checkpoint=checkpoint, student=student)

    return load


def answer(call: Call) -> int:
    """Do what one call asks for."""
    sys.executable = f"{call['variables']['DOCUMENT_BIN']}/python"  # for commands that start others
    command, *arguments = call["argv"]
    return COMMANDS[command](arguments, "DOCUMENT_CHECK" in call["variables"])


def run_megaokd(arguments: list[str], check: bool) -> int:
    """`megaokd ...`."""
    if arguments[:1] == ["quickstart"] and not check:
        if Path("runs/quickstart/results.md").exists():  # what the folder was prepared with
            return 0
        arguments = [*arguments, "--smoke", "--folder", "runs/quickstart"]  # where the pages look for it
    shipped = [argument for argument in arguments if argument.startswith("launch_scripts/")]
    return exist(shipped) or wait_for(fork(lambda: megaokd_main(arguments, check), {}))


def megaokd_main(arguments: list[str], check: bool) -> int:
    """The command itself, in a process of its own."""
    from megaokd import cli, train_command

    if check:
        train_command.run_distributed = lambda config, work: 0  # the configuration was read and checked
        if arguments[0] != "train":
            argparse.ArgumentParser.parse_args = parse_and_leave  # type: ignore[method-assign]
    return cli.main(arguments)


def parse_and_leave(parser: argparse.ArgumentParser, arguments: list[str] | None = None, _: Any = None) -> NoReturn:
    """In place of `parse_args`: errors as usual, else the end of the command."""
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    raise SystemExit(0)


def run_torchrun(arguments: list[str], check: bool) -> int:
    """`torchrun ... -m megaokd.cli ...`: its options are read by its own parser, its workers forked here."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    assert (options.module, options.training_script) == (True, "megaokd.cli"), arguments
    if check:
        return run_megaokd(options.training_script_args, check)
    return run_ranks(lambda: megaokd_main(options.training_script_args, check), int(options.nproc_per_node))


def run_python(arguments: list[str], check: bool) -> int:
    """`python -m MODULE ...` or `python FILE`."""
    if arguments[:2] == ["-m", "megaokd.cli"]:
        return run_megaokd(arguments[2:], check)
    if arguments[:2] == ["-m", "torch.distributed.run"]:
        return run_torchrun(arguments[2:], check)
    if check and arguments[:2] == ["-m", "pytest"]:
        return exist(argument for argument in arguments[2:] if argument.startswith("tests"))
    if check:
        assert arguments[0] == "-m"
        return 0 if importlib.util.find_spec(arguments[1]) else 1
    assert arguments[0] != "-m", "a module is run by the test of its own"
    sys.argv = arguments
    return wait_for(fork(lambda: bool(runpy.run_path(arguments[0], run_name="__main__")) and 0, {}))


def run_pip(arguments: list[str], check: bool) -> int:
    """Checked only: `pip install` of this project's extras and of packages that constraints.txt pins."""
    assert check, "pip is not run"
    parser = argparse.ArgumentParser("pip install")
    parser.add_argument("-c")
    parser.add_argument("-e", action="append", default=[])
    parser.add_argument("--index-url")
    parser.add_argument("packages", nargs="*")
    assert arguments[0] == "install"
    options = parser.parse_args(arguments[1:])
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    extras = (ROOT / "setup.py").read_text()
    for target in [*options.e, *options.packages]:
        name, _, wanted = target.removesuffix("]").partition("[")
        assert name in (".", "megaokd") or name.partition("==")[0] in pinned, target
        assert all(f'"{extra}": [' in extras for extra in wanted.split(",") if extra), target
    return exist([options.c] if options.c else [])


def run_launcher(arguments: list[str], check: bool) -> int:
    """Checked only: whatever starts `megaokd.cli` on other machines, or a script of this repository that does."""
    assert check, "there is one machine"
    if "megaokd.cli" in arguments:
        return run_megaokd(arguments[arguments.index("megaokd.cli") + 1 :], check)
    script = next((number for number, argument in enumerate(arguments) if argument.endswith(".sbatch")), None)
    if script is None:
        return 0
    return exist([arguments[script]]) or run_megaokd(["train", *arguments[script + 1 :]], check)


def run_elsewhere(_: list[str], check: bool) -> int:
    """Programs of others, which are not tried."""
    return 0 if check else 127


def run_make(arguments: list[str], check: bool) -> int:
    """`make quickstart` as the command that it calls; of the other targets, that there is a rule for them."""
    if arguments == ["quickstart"] and not check:
        return run_megaokd(["quickstart"], check)
    assert check, "only the quickstart is run"
    rules = [line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines()]
    return 0 if set(arguments) <= set(rules) else 2


def exist(paths: Any) -> int:
    """0 if all of them are there."""
    missing = [path for path in paths if not ((ROOT / path.partition("::")[0]).exists() or Path(path).exists())]
    print(*(f"there is no {path}" for path in missing), sep="\n", end="", file=sys.stderr)
    return 1 if missing else 0


COMMANDS: dict[str, Command] = {
    "megaokd": run_megaokd,
    "torchrun": run_torchrun,
    "python": run_python,
    "pip": run_pip,
    "make": run_make,
    "deepspeed": run_launcher,
    "sbatch": run_launcher,
    **dict.fromkeys(("tensorboard", "pre-commit", "apt-get", "hf"), run_elsewhere),
}

if __name__ == "__main__":
    import_everything()
    serve(sys.argv[1], answer)
