"""What the steps of a comparison are made of: token data and two models, random, in the folders that training reads."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megaokd.data.preprocess import PreprocessOptions, preprocess


@dataclass(frozen=True)
class ModelSize:
    """A Llama: heads of 64 channels, an MLP of 8/3 of the width."""

    num_layers: int
    hidden_size: int

    @property
    def intermediate_size(self) -> int:
        """Rounded up to a multiple of 32."""
        return -(-self.hidden_size * 8 // (3 * 32)) * 32

    def parameters(self, vocab: int) -> int:
        """Numbers in its weights."""
        width = self.hidden_size
        layer = 4 * width**2 + 3 * width * self.intermediate_size + 2 * width
        return self.num_layers * layer + width + 2 * vocab * width


@dataclass(frozen=True)
class Pair:
    """Two models, and the batches that both see; by default the reference pair."""

    teacher: ModelSize = ModelSize(16, 512)
    student: ModelSize = ModelSize(4, 192)
    vocab: int = 4096
    sequence: int = 256
    global_batch: int = 8
    micro_batch: int = 4
    prompt_tokens: int | None = None
    """None: half of the labels of an example carry loss."""

    @property
    def prompt(self) -> int:
        """Tokens of a prompt."""
        return self.prompt_tokens or self.sequence // 2 + 1

    @property
    def loss_tokens(self) -> int:
        """Of a step."""
        return self.global_batch * (self.sequence + 1 - self.prompt)

    @property
    def is_reference(self) -> bool:
        """Whether its sizes are those that absolute targets were set for."""
        ours, reference = ((pair.teacher, pair.student, pair.vocab, pair.sequence) for pair in (self, Pair()))
        return ours == reference

    @property
    def title(self) -> str:
        """In words."""
        teacher, student = self.teacher, self.student
        return (
            f"teacher {teacher.num_layers} x {teacher.hidden_size}, student {student.num_layers} x "
            f"{student.hidden_size}, vocabulary {self.vocab}, {self.global_batch} sequences of {self.sequence} in "
            f"micro-batches of {self.micro_batch}"
        )


@dataclass(frozen=True)
class World:
    """A pair and where its folders are."""

    pair: Pair
    root: Path

    @property
    def data(self) -> str:
        """The token data set."""
        return str(self.root / "data")

    @property
    def teacher(self) -> str:
        """The teacher's model folder."""
        return str(self.root / "teacher")

    @property
    def student(self) -> str:
        """The student's model folder."""
        return str(self.root / "student")


def build_world(pair: Pair, root: Path, num_batches: int) -> World:
    """Write both models and `num_batches` global batches of examples, each a prompt and a response."""
    world = World(pair, root)
    _write_tokenizer(root / "tokenizer", pair.vocab)
    draw = random.Random(0)
    lines = []
    for _ in range(num_batches * pair.global_batch):
        words = [f"w{draw.randrange(1, pair.vocab - 1)}" for _ in range(pair.sequence)]
        lines.append(json.dumps({"prompt": " ".join(words[: pair.prompt]), "response": " ".join(words[pair.prompt :])}))
    source = root / "data.jsonl"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    preprocess([str(source)], str(root / "tokenizer"), world.data, PreprocessOptions(workers=1))
    for seed, (folder, size) in enumerate(((world.teacher, pair.teacher), (world.student, pair.student))):
        _write_model(Path(folder), size, pair, root / "tokenizer", seed)
    return world


def _write_tokenizer(folder: Path, vocab: int) -> None:
    """Words w0, w1, ...; the last id ends a text. An example is its words and that end."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    ids = {**{f"w{number}": number for number in range(vocab - 1)}, "<end>": vocab - 1}
    words = Tokenizer(WordLevel(ids, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="<end>", pad_token="w0")
    tokenizer.save_pretrained(folder)


def llama_config(size: ModelSize, vocab: int, positions: int) -> Any:
    """Of `transformers`; the last token ends a text."""
    from transformers import LlamaConfig

    heads = size.hidden_size // 64
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=size.intermediate_size,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=vocab - 1,
    )


def _write_model(folder: Path, size: ModelSize, pair: Pair, tokenizer: Path, seed: int) -> None:
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(llama_config(size, pair.vocab, max(2048, pair.sequence))).save_pretrained(folder)
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
