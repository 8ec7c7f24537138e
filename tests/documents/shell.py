"""Folders in which bash finds the commands of the documents: `server.py` behind them, tiny models and data in them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from pyarrow import parquet

from tests.documents.blocks import ROOT, Block
from tests.support.forks import start_server, write_stand_in
from tests.support.tiny import TEACHER, save_random_llama

HERE = Path(__file__).resolve().parent
TEMPLATE = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}assistant: {% endif %}"
COMMANDS = (
    "megaokd",
    "torchrun",
    "python",
    "pip",
    "make",
    "deepspeed",
    "sbatch",
    "tensorboard",
    "pre-commit",
    "apt-get",
    "hf",
)
# What stands in the folder of every page, from the repository.
LINKS = ("launch_scripts", "constraints.txt", "docs", "kernels", "tests")


@dataclass(frozen=True)
class Shell:
    """bash with the stand-ins on its PATH."""

    bin: Path
    prepared: Path
    socket: str

    def folder(self, path: Path) -> Path:
        """A folder for a page, with a copy of what was prepared."""
        shutil.copytree(self.prepared, path, symlinks=True)
        return path

    def run(self, block: Block, folder: Path) -> None:
        """Run a block, or parse its commands; it must succeed."""
        text = block.text
        if block.language == "python":
            (folder / "block.py").write_text(text, encoding="utf-8")
            text = "python block.py"
        check = {} if block.reason is None else {"DOCUMENT_CHECK": "1"}
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=folder, env={**self.variables, **check}, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert result.returncode == 0, f"line {block.line}: exit status {result.returncode}\n{text}\n" + (
            f"{result.stdout[-3000:]}\n{result.stderr[-6000:]}"
        )

    @property
    def variables(self) -> dict[str, str]:
        """The environment: nothing of the tests' own but the addresses of the stand-ins."""
        return {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.prepared),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(ROOT),
            "FORKS_SOCKET": self.socket,
            "DOCUMENT_BIN": str(self.bin),
        }


@contextmanager
def start_shell(root: Path) -> Iterator[Shell]:
    """Start the server, prepare the folder that pages begin with; both end with the context."""
    (root / "bin").mkdir()
    for name in COMMANDS:
        write_stand_in(root / "bin" / name)
    with start_server(HERE / "server.py") as address:
        shell = Shell(root / "bin", root / "prepared", address)
        prepare(shell)
        yield shell


def prepare(shell: Shell) -> None:
    """What the documents take for granted: the quickstart's results, models, texts to learn from."""
    folder = shell.prepared
    folder.mkdir()
    for name in LINKS:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(shell.bin)
    shell.run(Block("bash", "megaokd quickstart\n", 0), folder)
    tokenizer = folder / "runs" / "quickstart" / "tokenizer"
    (tokenizer / "chat_template.jinja").write_text(TEMPLATE)
    for name in ("teacher", "llama"):
        save_random_llama(folder / "models" / name, tokenizer, TEACHER, 512, seed=0)
    for name in ("train", "validation", "test"):
        shutil.copy(folder / "runs" / "quickstart" / "corpus" / f"{name}.jsonl", folder)
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A list of items."}]
    (folder / "chat.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 20)
    (folder / "web").mkdir()
    texts = pyarrow.table({"text": [f"Item {n} of the list.\n" * 20 for n in range(20)]})
    parquet.write_table(texts, folder / "web" / "0.parquet")
