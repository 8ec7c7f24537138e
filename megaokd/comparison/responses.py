"""What the teacher of `base` writes to prompts, once for all cells that train on it (SeqKD).

FOLDER/responses/METHOD/responses.jsonl       as `megaokd generate` writes it
FOLDER/responses/METHOD/responses.jsonl.json  what it was made from and what that cost
FOLDER/responses/METHOD/data/                 the same, tokenized
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaokd.comparison.entry import Responses
from megaokd.comparison.recipe import Recipe
from megaokd.comparison.work import PARTS_FILE, Work, check_same, identity_of, must, output_of, read_json, write_parts
from megaokd.config_file import to_dict
from megaokd.evaluation.responses import Cost, cost_file


@dataclass(frozen=True, eq=False)
class ResponsesRun:
    """The responses of one entry, which those that are like it train on as well."""

    recipe: Recipe
    method: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.method}, responses"

    @property
    def folder(self) -> Path:
        """Of the responses and the data set that they become."""
        return self.recipe.responses_folder(self.method)

    @property
    def texts(self) -> Path:
        """The responses as JSONL."""
        return self.folder / "responses.jsonl"

    @property
    def data(self) -> Path:
        """The data set; it gets its name when it is whole."""
        return self.recipe.responses_data(self.method)

    @property
    def options(self) -> Responses:
        """What the recipe says."""
        responses = self.recipe.entries[self.method].options.responses
        assert responses is not None
        return responses

    @property
    def begun(self) -> bool:
        """Whether some are there."""
        return any(self.folder.glob(f"{self.texts.name}*"))

    @property
    def identity(self) -> str:
        """Of what they cost, which is written when they are whole."""
        return identity_of(cost_file(self.texts))

    @property
    def finished(self) -> bool:
        """Whether there is something to train on."""
        return self.data.is_dir()

    @property
    def sources(self) -> list[Work]:
        """None: they are of the recipe's own teacher."""
        return []

    def parts(self) -> dict[str, Any]:
        """What decides them; not how the teacher was split, nor how many prompts it had at a time."""
        options = dataclasses.replace(self.options, tensor=1, batch=1)
        return {"generation": {**to_dict(options), "teacher": self.recipe.teacher}}

    def check_unchanged(self) -> None:
        """Refuse other options than those that it was begun with."""
        done = {"generation": self.folder} if self.begun else {}
        check_same(self.name, self.folder / PARTS_FILE, self.parts(), done)

    def run(self, say: Callable[[str], None]) -> None:
        """Generate from where it stands, then tokenize.

        Raises:
            CellError: a command failed.
        """
        say(self.name)
        teacher = self.recipe.teacher
        assert teacher is not None
        with output_of(self.folder) as write:
            write_parts(self, self.parts())
            if not self.texts.is_file():
                words = ["megaokd", "generate", "--model", teacher, "--output", str(self.texts)]
                must([*words, *self.options.arguments()], write, self.recipe.processes)
            words = ["megaokd", "preprocess", "--input", str(self.texts), "--tokenizer", teacher]
            must([*words, "--output", str(self.data)], write)

    def cost(self) -> Cost:
        """Of finished ones."""
        return Cost(**read_json(cost_file(self.texts))["cost"])


def responses_of(recipe: Recipe, method: str) -> ResponsesRun | None:
    """Those that a method trains on; None: the data's own."""
    owner = recipe.responding(method)
    return None if owner is None else ResponsesRun(recipe, owner)
