"""A model's responses to the prompts of a file, as training data: SeqKD (arXiv 1606.07947).

A line of the output is an object with `prompt`, `output` and `finish_reason`: `stop`, or `length` for a response that
was cut, behind which preprocessing puts no end-of-sequence token; otherwise the student would learn to end early.
Beside it FILE.json says what it was made from and what that cost, a part of the price of training on it.

The responses grow in FILE.partial, block by block in the order of the prompts, beside FILE.partial.json, which becomes
FILE.json. After a kill the same command goes on behind the last whole line. What a prompt's response is
depends on nothing but the model, the prompt, its place in the file and the options; so the file is that of a run that
was never interrupted, in whatever layout it goes on.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megaokd.agreement import from_main
from megaokd.data.examples import CUT, FINISH_REASON
from megaokd.data.tokenizer import encode_prompts, load_tokenizer
from megaokd.errors import UserError
from megaokd.evaluation.generation import continue_prompts
from megaokd.evaluation.loading import ModelLoader, check_is_whole
from megaokd.evaluation.prompts import prompt_records
from megaokd.evaluation.ranks import Ranks
from megaokd.files import drop_torn_line, file_sha256, sync_folder, write_json
from megaokd.generation.options import GenerationOptions
from megaokd.models.decoder import Decoder

BLOCK = 64
"""Prompts of a data-parallel rank between two writes: what a kill costs at most."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, its token ids, and its line in the file, counted from 0: which random numbers it draws."""

    text: str
    ids: list[int]
    line: int


@dataclass(frozen=True, kw_only=True)
class Responding:
    """What is made from what; `batch` rows are generated at a time."""

    model: Path
    prompts: Path
    output: Path
    options: GenerationOptions
    batch: int = 16


@dataclass(frozen=True)
class Cost:
    """Of the responses that are there; starting and loading are left out, and of a killed call its last block."""

    responses: int = 0
    cut: int = 0
    """Of them, those that did not end within `max_new_tokens`."""
    tokens: int = 0
    """With those that end a response."""
    seconds: float = 0.0
    """By the clock."""
    cpu_seconds: float = 0.0
    """Of all threads of all processes."""


def cost_file(output: Path) -> Path:
    """Where it stands what a file of responses was made from and what that cost."""
    return output.with_name(f"{output.name}.json")


def write_responses(
    work: Responding, ranks: Ranks, say: Callable[[str], None], stopped: Callable[[], bool] = lambda: False
) -> bool:
    """Write `work.output`, one line a prompt in their order; whether it is whole. Collective over world and `ranks`.

    Prompts that leave no room for `max_new_tokens` are left out, and their number is told; so is that of the responses
    that did not end within them. Each block costs gathers of its tokens and its time, and a broadcast.

    say: tells the user; called on every rank. stopped: asked after each block; what is true on one rank ends all.

    Raises:
        UserError: the output exists, a file is not what it should be, or what has been begun is of other options.
    """
    check_is_whole(work.model)
    tokenizer = load_tokenizer(work.model)
    loader = ModelLoader([work.model], tokenizer, ranks)
    prompts = _read(work, tokenizer, loader.positions, say)
    cost = from_main(lambda: _begin(work))
    if cost.responses:
        say(f"{work.output}: {cost.responses} of {len(prompts)} responses are there; going on behind them")
    decoder = loader.load(work.model)
    block = BLOCK * len(ranks.gather(0))
    for start in range(cost.responses, len(prompts), block):
        chosen = prompts[start : start + block]
        started, cpu_started = time.perf_counter(), time.process_time()
        records, tokens = _respond(decoder, tokenizer, chosen, work, ranks)
        cost = Cost(
            responses=start + len(chosen),
            cut=cost.cut + _num_cut(records),
            tokens=cost.tokens + tokens,
            seconds=cost.seconds + time.perf_counter() - started,
            cpu_seconds=cost.cpu_seconds + ranks.total(time.process_time() - cpu_started),
        )
        from_main(lambda records=records, cost=cost: _append(work, records, cost))  # type: ignore[misc]  # bound now
        say(f"{work.output}: {cost.responses} of {len(prompts)} responses")
        if cost.responses < len(prompts) and ranks.total(float(stopped())):
            say("interrupted; the same command goes on here")
            return False
    say(f"{work.output}: {cost.tokens:,} tokens in {cost.seconds:.1f} s, {cost.cpu_seconds:.1f} CPU seconds")
    from_main(lambda: _finish(work))
    if cost.cut:
        limit = work.options.max_new_tokens
        say(f"{work.output}: {cost.cut} of {len(prompts)} responses did not end within {limit} tokens")
    return True


def _read(
    work: Responding, tokenizer: PreTrainedTokenizerBase, positions: int, say: Callable[[str], None]
) -> list[Prompt]:
    texts = [(number, record["prompt"]) for number, record in prompt_records(work.prompts)]
    if not texts:
        raise UserError(f"{work.prompts}: holds no prompts")
    room = positions - work.options.max_new_tokens
    encoded = encode_prompts(tokenizer, [text for _, text in texts])
    prompts = [Prompt(text, ids, number - 1) for (number, text), ids in zip(texts, encoded, strict=True)]
    fitting = [prompt for prompt in prompts if 0 < len(prompt.ids) <= room]
    if not fitting:
        raise UserError(
            f"{work.prompts}: no prompt leaves room for {work.options.max_new_tokens} new tokens in the model's "
            f"{positions} positions; lower --max-new-tokens, or give shorter prompts"
        )
    if len(fitting) < len(prompts):
        say(f"{work.prompts}: {len(prompts) - len(fitting)} prompts of {len(prompts)} are empty or too long: left out")
    return fitting


def _respond(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], work: Responding, ranks: Ranks
) -> tuple[list[dict[str, str]], int]:
    """The records of the output, and how many tokens they are."""
    eos_id = int(tokenizer.eos_token_id)
    rows = continue_prompts(
        decoder,
        [prompt.ids for prompt in prompts],
        work.options,
        ranks,
        eos_id=eos_id,
        batch_size=work.batch,
        streams=[prompt.line for prompt in prompts],
    )
    texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
    records = [
        {"prompt": prompt.text, "output": text, FINISH_REASON: "stop" if row[-1:] == [eos_id] else CUT}
        for prompt, text, row in zip(prompts, texts, rows, strict=True)
    ]
    return records, sum(map(len, rows))


def _num_cut(records: Iterable[Mapping[str, str]]) -> int:
    return sum(record[FINISH_REASON] == CUT for record in records)


def _partial(work: Responding) -> Path:
    return work.output.with_name(f"{work.output.name}.partial")


def _identity(work: Responding) -> Path:
    return work.output.with_name(f"{work.output.name}.partial.json")


def _begin(work: Responding) -> Cost:
    """Of the responses that are there from before; what a kill left of one more is cut off."""
    if work.output.exists():
        raise UserError(f"{work.output} exists already; name a file that does not")
    weights = {file.name: file_sha256(file) for file in sorted(work.model.glob("*.safetensors"))}
    wanted = {"weights": weights, "prompts": file_sha256(work.prompts), "options": asdict(work.options)}
    partial, identity = _partial(work), _identity(work)
    if identity.exists():
        begun = json.loads(identity.read_text(encoding="utf-8"))
        if begun.get("made_from") != wanted:
            raise UserError(
                f"{partial} was begun with another model, other prompts or other options; delete it and "
                f"{identity.name}, or repeat that command"
            )
        lines = drop_torn_line(partial).splitlines()
        # Counted, not read: a kill may have come between the last lines and their account.
        return replace(Cost(**begun["cost"]), responses=len(lines), cut=_num_cut(map(json.loads, lines)))
    work.output.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    write_json(identity, {"made_from": wanted, "cost": asdict(Cost())})
    return Cost()


def _append(work: Responding, records: Sequence[Mapping[str, str]], cost: Cost) -> None:
    with _partial(work).open("a", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    identity = _identity(work)
    write_json(identity, {**json.loads(identity.read_text(encoding="utf-8")), "cost": asdict(cost)})


def _finish(work: Responding) -> None:
    """Give the file its name."""
    write_json(cost_file(work.output), json.loads(_identity(work).read_text(encoding="utf-8")))
    _partial(work).replace(work.output)
    _identity(work).unlink()
    sync_folder(work.output.parent)
