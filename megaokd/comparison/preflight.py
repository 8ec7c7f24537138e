"""What is looked at before the first run of a grid: mistakes that would else be met in the middle, in every cell."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from megaokd.comparison.recipe import Recipe
from megaokd.comparison.work import Work, outdated
from megaokd.config import Config
from megaokd.config_file import parse_config
from megaokd.data.dataset import TokenDataset
from megaokd.data.mixture import open_dataset, open_training_data
from megaokd.distill.online_modules import first_online_layer
from megaokd.errors import UserError
from megaokd.evaluation.prompts import prompt_texts
from megaokd.models.hub import CONFIG_FILES, fetch_models
from megaokd.pipeline.blueprint import check_models, read_architectures
from megaokd.pipeline.schedule import check_zero_stage
from megaokd.sampling.check import chosen_terms


def check_sources(grid: Iterable[Work]) -> None:
    """Refuse to show beside one another what no longer belongs together.

    Raises:
        UserError: cells were made from an earlier run of what they take something from.
    """
    old = outdated(grid)
    if old:
        taken = dict.fromkeys(source.name for work in old for source in work.sources)
        folders = " ".join(str(work.folder) for work in old)
        raise UserError(
            f"{', '.join(work.name for work in old)}: made from an earlier run of {', '.join(taken)}, which has been "
            f"made again since or is gone; remove {folders} to have them made again too"
        )


def check_before_training(recipe: Recipe) -> None:
    """Open what every evaluation and every run reads, and ask of each method what its training would ask first.

    Of models their config.json is read, no weights.

    Raises:
        UserError: files that are missing or not what they should be; a method whose parts exclude one another.
    """
    vocab_size = TokenDataset(recipe.evaluation.data).vocab_size
    for file in recipe.evaluation.prompt_files:
        prompt_texts(file)
    configs: dict[str, Config] = {}
    for name in recipe.entries:
        seed = recipe.seeds_of(name)[0]
        configs[name] = parse_config(recipe.values(name, seed, recipe.cell_folder(name, seed)))
    for name, config in configs.items():
        with _named(name):
            chosen_terms(config)
            check_zero_stage(config.parallel, config.train.zero_stage)
    _check_data(recipe, configs)
    for name, config in configs.items():
        if recipe.entries[name].options.adapted_teacher_of is None:  # that teacher is not there yet
            with _named(name):
                _check_models(fetch_models(config, CONFIG_FILES), vocab_size)


@contextmanager
def _named(method: str) -> Iterator[None]:
    """Inside, a user's mistake is told as this method's."""
    try:
        yield
    except UserError as error:
        raise UserError(f"method {method!r}: {error}") from None


def _check_data(recipe: Recipe, configs: Mapping[str, Config]) -> None:
    """What all methods share; training data that the teacher is to write are not there yet."""
    data = next(iter(configs.values())).data
    shared = next((config.data.train for name, config in configs.items() if recipe.responding(name) is None), None)
    if shared is not None:
        open_training_data(replace(data, train=shared))
    if data.validation is not None:
        open_dataset(data.validation, data)


def _check_models(config: Config, vocab_size: int) -> None:
    student, teacher = read_architectures(config, vocab_size)
    check_models(config, student, teacher, vocab_size)
    if teacher is not None and config.teacher.online is not None:
        first_online_layer(config.teacher.online, teacher.num_layers)
