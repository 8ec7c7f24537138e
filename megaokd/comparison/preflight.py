"""What is looked at before the first run of a grid: mistakes that would else be met in the middle, in every cell."""

from collections.abc import Iterable

from megaokd.comparison.recipe import Recipe
from megaokd.comparison.work import Work, outdated
from megaokd.config_file import parse_config
from megaokd.data.dataset import TokenDataset
from megaokd.distill.objective import Terms
from megaokd.errors import UserError
from megaokd.evaluation.prompts import prompt_texts
from megaokd.pipeline.schedule import check_zero_stage
from megaokd.sampling.check import check_on_policy, terms_on_generated


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
    """Open what every evaluation reads, and ask of each method what its training would ask first.

    Raises:
        UserError: files that are missing or not what they should be; a method whose parts exclude one another.
    """
    TokenDataset(recipe.evaluation.data)
    for file in recipe.evaluation.prompt_files:
        prompt_texts(file)
    for name in recipe.entries:
        seed = recipe.seeds_of(name)[0]
        config = parse_config(recipe.values(name, seed, recipe.cell_folder(name, seed)))
        has_teacher = config.teacher.path is not None
        online = has_teacher and config.teacher.online is not None
        try:
            terms = Terms.from_config(config.objective, has_teacher=has_teacher, online=online)
            check_zero_stage(config.parallel, config.train.zero_stage)
            check_on_policy(config)
            if config.train.on_policy is not None:
                terms_on_generated(terms, keep_ce=config.train.on_policy.ce)
        except UserError as error:
            raise UserError(f"method {name!r}: {error}") from None
