"""What the student answers to a few prompts of the validation data, beside what it should have answered."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from megaokd.callbacks.base import TextSample
from megaokd.data.tokenizer import load_tokenizer
from megaokd.errors import UserError
from megaokd.generation.generate import generate
from megaokd.generation.options import GenerationOptions
from megaokd.run import Run

_OPTIONS = GenerationOptions(max_new_tokens=64, temperature=0.0)
NO_PIPELINE = "logging.samples: no samples are written with parallel.pipeline > 1, where no rank has the whole student"


@dataclass(frozen=True)
class TextSampler:
    """The first `logging.samples` prompts of the validation data, continued greedily."""

    run: Run
    tokenizer: PreTrainedTokenizerBase
    prompts: list[list[int]]
    references: list[list[int]]

    @classmethod
    def build(cls, run: Run) -> "TextSampler | None":
        """None where there is nothing to do: not asked for, or a pipeline.

        Raises:
            UserError: samples are asked for without validation.
        """
        wanted, batches = run.config.logging.samples, run.validation_batches
        if not wanted or run.mesh.pipeline.size > 1:
            return None
        if batches is None or not run.config.train.validate_every:
            raise UserError("logging.samples needs train.validate_every, and data.validation to take prompts from")
        lengths = batches.dataset.prompt_lengths
        chosen = [int(index) for index in batches.visited()[:wanted]]
        examples = [(batches.dataset[index].tolist(), int(lengths[index])) for index in chosen]
        prompts, references = [tokens[:end] for tokens, end in examples], [tokens[end:] for tokens, end in examples]
        return cls(run, load_tokenizer(run.dataset.tokenizer_path), prompts, references)

    def __call__(self, step: int) -> list[TextSample]:
        """Samples where they are due; empty elsewhere, and on ranks other than 0.

        The tensor-parallel ranks of the first replica generate together, with the collectives of `generate`.
        """
        config = self.run.config
        number = step // config.train.validate_every
        due = number % config.logging.samples_every == 0 or step == config.train.steps
        if not due or self.run.mesh.data.rank != 0:
            return []
        eos_id = int(self.tokenizer.eos_token_id)
        (student,) = self.run.models.students
        answers = generate(student, self.prompts, _OPTIONS, eos_id=eos_id, precision=config.train.precision)
        if not self.run.mesh.is_main:
            return []
        texts = ([str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in rows]
                 for rows in (self.prompts, self.references, answers))  # fmt: skip
        return [TextSample(*parts) for parts in zip(*texts, strict=True)]
