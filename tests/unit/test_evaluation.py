"""Evaluation of a Hugging Face folder against `transformers`, on tiny random Llama models."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megaokd.errors import UserError
from megaokd.evaluation import responses
from megaokd.evaluation.calibration import Calibration
from megaokd.evaluation.evaluate import Folders, GenerationOptions, evaluate
from megaokd.evaluation.examples import Example, loss_batches, read_examples
from megaokd.evaluation.export_check import check_export
from megaokd.evaluation.generation import continue_prompts
from megaokd.evaluation.loading import ModelLoader
from megaokd.evaluation.prompts import read_prompts
from megaokd.evaluation.ranks import Ranks
from megaokd.evaluation.report import check_no_report, write_report
from megaokd.evaluation.responses import Responding, write_responses
from megaokd.evaluation.text_metrics import TextMetrics, distinct, mean_over_seeds, measure_texts, rouge_l
from megaokd.evaluation.token_metrics import TokenMetrics, measure_tokens
from megaokd.generation import options as generation
from megaokd.models.decoder import Decoder
from megaokd.tools.evaluate import main as evaluate_command
from megaokd.tools.evaluate import prompt_files

VOCAB, BOS, EOS = 53, 1, 2


class Data:
    """Random examples of uneven lengths: [bos] prompt response [eos]."""

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.prompt_lengths = generator.integers(1, 12, size=count)
        self.rows = [
            np.concatenate([[BOS], generator.integers(3, VOCAB, size=length + extra), [EOS]])
            for length, extra in zip(self.prompt_lengths, generator.integers(0, 17, size=count), strict=True)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index]


def make_model(seed: int, vocab_size: int = VOCAB) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


def make_tokenizer(size: int = VOCAB, prefix: str = "w") -> PreTrainedTokenizerFast:
    words = {"<unk>": 0, "<s>": BOS, "</s>": EOS, **{f"{prefix}{index}": index for index in range(3, size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast | None) -> Path:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


RANKS = Ranks(torch.device("cpu"))


def decoders_of(*models: LlamaForCausalLM) -> list[Decoder]:
    """Our own decoders with the weights of these models."""
    with tempfile.TemporaryDirectory() as root:
        folders = [save(Path(root) / str(index), model, make_tokenizer()) for index, model in enumerate(models)]
        loader = ModelLoader(folders, make_tokenizer(), RANKS)
        return [loader.load(folder) for folder in folders]


def measured(
    model: LlamaForCausalLM,
    examples: list[Example],
    teacher: LlamaForCausalLM | None = None,
    max_batch_tokens: int = 4096,
) -> TokenMetrics:
    decoder, *teachers = decoders_of(model, *([] if teacher is None else [teacher]))
    other = teachers[0] if teachers else None
    return measure_tokens(decoder, examples, RANKS, pad_id=EOS, teacher=other, max_batch_tokens=max_batch_tokens)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return read_examples(Data(23), max_length=64)


def direct_logits(model: LlamaForCausalLM, example: Example) -> torch.Tensor:
    """[N, V] at the example's loss positions, one example at a time, everything projected."""
    with torch.no_grad():
        logits = model(torch.tensor([example.ids])).logits[0]
    return logits[example.prompt_length - 1 : -1].double()


def test_cross_entropy_is_the_loss_of_transformers(examples: list[Example]) -> None:
    model = make_model(0)
    total, tokens = 0.0, 0
    for ids, prompt_length in examples:
        labels = torch.tensor([[-100] * prompt_length + ids[prompt_length:]])
        count = len(ids) - prompt_length
        with torch.no_grad():
            total += model(torch.tensor([ids]), labels=labels).loss.item() * count
        tokens += count
    result = measured(model, examples, max_batch_tokens=100)
    assert result.tokens == tokens
    assert result.cross_entropy == pytest.approx(total / tokens, rel=1e-5)
    assert result.forward_kl is None


def test_divergences_equal_a_direct_computation(examples: list[Example]) -> None:
    model, teacher = make_model(0), make_model(1)
    log_q = torch.cat([direct_logits(model, example) for example in examples]).log_softmax(-1)
    log_p = torch.cat([direct_logits(teacher, example) for example in examples]).log_softmax(-1)
    result = measured(model, examples, teacher=teacher, max_batch_tokens=100)
    assert result.forward_kl == pytest.approx((log_p.exp() * (log_p - log_q)).sum(-1).mean().item(), rel=1e-5)
    assert result.reverse_kl == pytest.approx((log_q.exp() * (log_q - log_p)).sum(-1).mean().item(), rel=1e-5)
    assert result.top1_agreement == pytest.approx((log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item())
    alone = measured(teacher, examples)
    assert result.teacher_cross_entropy == pytest.approx(alone.cross_entropy, rel=1e-6)


def test_a_model_does_not_diverge_from_itself(examples: list[Example]) -> None:
    model = make_model(0)
    result = measured(model, examples, teacher=model)
    assert result.forward_kl == pytest.approx(0.0, abs=1e-7)
    assert result.reverse_kl == pytest.approx(0.0, abs=1e-7)
    assert result.top1_agreement == 1.0


def test_padding_columns_belong_to_no_distribution(examples: list[Example]) -> None:
    model, teacher = make_model(0), make_model(1)
    expected = measured(model, examples, teacher=teacher)
    for padded, columns in ((model, 3), (teacher, 11)):
        padded.resize_token_embeddings(VOCAB + columns, mean_resizing=False)
        padded.get_output_embeddings().weight.data[VOCAB:] = 7.0
    found = measured(model, examples, teacher=teacher)
    assert found.forward_kl == pytest.approx(expected.forward_kl, rel=1e-6)
    assert found.cross_entropy == pytest.approx(expected.cross_entropy, rel=1e-6)


def test_weights_that_are_not_finite_are_refused(examples: list[Example]) -> None:
    model = make_model(0)
    model.get_output_embeddings().weight.data[5] = float("nan")
    with pytest.raises(UserError, match="cross_entropy is nan"):
        measured(model, examples)


def test_batches_hold_every_example_once_within_the_bound(examples: list[Example]) -> None:
    batches = list(loss_batches(examples, max_tokens=60, pad_id=EOS))
    assert len(batches) > 3
    assert all(batch.input_ids.numel() <= 60 for batch in batches)
    assert sum(len(batch.input_ids) for batch in batches) == len(examples)
    loss_tokens = sum(int((batch.labels != -100).sum()) for batch in batches)
    assert loss_tokens == sum(len(example.ids) - example.prompt_length for example in examples)


def test_examples_are_cut_and_those_without_a_response_left_out() -> None:
    data = Data(23)
    cut = read_examples(data, max_length=9)
    assert max(len(example.ids) for example in cut) == 9
    assert len(cut) == sum(length < 9 for length in data.prompt_lengths)


def test_generation_does_not_depend_on_batching(examples: list[Example]) -> None:
    model = make_model(3)
    (decoder,) = decoders_of(model)
    prompts = [example.ids[: example.prompt_length] for example in examples]
    for temperature in (0.0, 1.0):
        options = generation.GenerationOptions(max_new_tokens=12, temperature=temperature)
        together, alone = (
            continue_prompts(decoder, prompts, options, RANKS, eos_id=EOS, batch_size=size) for size in (8, 1)
        )
        assert together == alone
        assert len({len(tokens) for tokens in alone}) > 1, "no generation met EOS: the test would not see it ignored"
        if options.greedy:
            expected = [greedy_without_cache(model, prompt, 12) for prompt in prompts]
            assert [[token for token in row if token != EOS] for row in alone] == expected


def greedy_without_cache(model: LlamaForCausalLM, prompt: list[int], max_new_tokens: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == EOS:
                break
            ids.append(token)
    return ids[len(prompt) :]


def test_calibration_of_a_known_case() -> None:
    calibration = Calibration()
    confidence, hits = torch.tensor([0.9, 0.9, 0.7, 1.0]).double(), torch.tensor([1, 0, 1, 1]).double()
    calibration.add(confidence[:1], hits[:1])
    other = Calibration()
    other.add(confidence[1:], hits[1:])
    calibration.join(other)
    # Bins hold {0.9 hit, 0.9 miss}, {0.7 hit} and {1.0 hit}: gaps |1 - 1.8|, 0.3 and 0.
    assert calibration.error() == pytest.approx((0.8 + 0.3) / 4)


def test_rouge_l_of_known_sentences() -> None:
    assert rouge_l([["the cat sat"]], ["the cat sat"]) == 1.0
    assert rouge_l([["the cat sat"], ["a b"]], ["the dog sat", "c d"]) == pytest.approx((2 / 3 + 0) / 2)
    assert rouge_l([["a b", "the cat sat"]], ["the cat sat"]) == 1.0, "the reference that fits best"


def test_other_measures_of_texts() -> None:
    assert distinct([["a", "b", "a"], ["a"]], 1) == 2 / 4
    assert distinct([["a", "b", "a"], ["a"]], 2) == 1.0
    assert distinct([["a"]], 2) == 0.0
    assert measure_texts([["a b", "a b c d"]], ["x y z"]).length_ratio == 1.0


def test_interval_over_seeds() -> None:
    parts = [TextMetrics(rouge_l=x, distinct_1=0, distinct_2=0, length_ratio=1) for x in (0.1, 0.2, 0.3)]
    result = mean_over_seeds(parts)
    assert result.rouge_l == pytest.approx(0.2)
    # Student's t with 2 degrees of freedom: 4.3027; standard deviation 0.1.
    assert result.rouge_l_interval == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert mean_over_seeds(parts[:1]).rouge_l_interval is None


def test_report_holds_the_measures_and_the_generations(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    student = save(tmp_path / "student", make_model(0), tokenizer)
    teacher = save(tmp_path / "teacher", make_model(1), tokenizer)
    folders = Folders(model=student, data="data", tokenizer=student, teacher=teacher)
    result = evaluate(folders, Data(23), GenerationOptions(count=5, max_new_tokens=8, seeds=2))
    write_report(result, tmp_path / "report")
    values = json.loads((tmp_path / "report/evaluation.json").read_text())
    assert values["forward_kl"] == result.metrics.forward_kl
    assert values["generations"] == 10
    assert values["rouge_l_interval"] is not None
    assert values["environment"]["commit"]
    with pytest.raises(UserError, match="holds an evaluation already"):
        check_no_report(tmp_path / "report")
    check_no_report(tmp_path / "other")
    lines = [json.loads(line) for line in (tmp_path / "report/generations.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"prompt", "references", "generation", "seed"}] * 10
    assert [line["seed"] for line in lines] == [0] * 5 + [1] * 5
    assert "forward KL" in (tmp_path / "report/evaluation.md").read_text()
    (tmp_path / "report/generations.dolly.jsonl").write_text("of sets")
    write_report(replace(result, generations=(), texts=None), tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"evaluation.json", "evaluation.md"}, "what is not of this evaluation is gone"

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_report(result, tmp_path / "full")
    names = {path.name for path in (tmp_path / "full").iterdir()}
    assert names == {"generations.jsonl.new"}, "evaluation.json is the last, and none has its name before it is whole"


def test_the_adapted_teacher_is_measured_from_its_adapter(tmp_path: Path) -> None:
    tokenizer, base = make_tokenizer(), make_model(1)
    student = save(tmp_path / "student", make_model(0), tokenizer)
    teacher = save(tmp_path / "teacher", base, tokenizer)
    adapter = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "adapter")
    folders = Folders(
        model=student, data="data", tokenizer=student, teacher=teacher, adapted_teacher=tmp_path / "adapter"
    )
    result = evaluate(folders, Data(23))
    examples = read_examples(Data(23), max_length=64)
    merged = adapter.merge_and_unload()
    expected = measured(make_model(0), examples, teacher=merged)
    assert result.adapted is not None
    assert result.adapted.reverse_kl == pytest.approx(expected.reverse_kl, rel=1e-5)
    assert result.adapted.reverse_kl != pytest.approx(result.metrics.reverse_kl, rel=1e-2)
    with pytest.raises(UserError, match="adapter: give the original teacher"):
        evaluate(replace(folders, teacher=None), Data(23))
    for misplaced in ({"model": tmp_path / "adapter"}, {"teacher": tmp_path / "adapter"}):
        with pytest.raises(UserError, match=r"adapter is an adapter and no whole model; .*--adapted-teacher"):
            evaluate(replace(folders, **misplaced), Data(23))
    work = Responding(
        model=tmp_path / "adapter",
        prompts=tmp_path / "prompts.jsonl",
        output=tmp_path / "responses.jsonl",
        options=generation.GenerationOptions(),
    )
    with pytest.raises(UserError, match="is an adapter and no whole model"):
        write_responses(work, RANKS, print)


def test_prompts_from_a_file(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "w5 w6", "references": ["w7", "w8 w9"]}\n\n{"prompt": "w3", "output": "w4"}\n')
    prompts = read_prompts(file, tokenizer)
    assert [prompt.ids for prompt in prompts] == [[BOS, 5, 6], [BOS, 3]]
    assert [prompt.references for prompt in prompts] == [("w7", "w8 w9"), ("w4",)]
    for line, problem in (
        ("{", "line 1: not JSON"),
        (f'{{"prompt": "a", "score": {"9" * 5000}}}', "line 1: not JSON"),
        (r'{"prompt": "\ud83d"}', "line 1: 'prompt' holds half a character"),
        ('{"references": ["a"]}', "line 1: an object with the text 'prompt'"),
        ('{"prompt": "a", "references": []}', "line 1: 'references'"),
        ('{"prompt": "a"}', "line 1: 'references'"),
        ("", "no prompt in the whole file"),
    ):
        file.write_text(line)
        with pytest.raises(UserError, match=problem):
            read_prompts(file, tokenizer)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "absent", tokenizer)


@pytest.mark.parametrize("seeds", [0, 2])
def test_each_of_several_sets_is_as_it_would_be_alone(tmp_path: Path, seeds: int) -> None:
    model = save(tmp_path / "model", make_model(0), make_tokenizer())
    folders = Folders(model=model, data="data", tokenizer=model)
    lines = {"few": ["w5 w6", "w9"], "many": [f"w{index} w4" for index in range(7, 14)]}
    files = {name: str(tmp_path / f"{name}.jsonl") for name in lines}
    for name, prompts in lines.items():
        records = [json.dumps({"prompt": prompt, "output": "w5 w20 w31"}) for prompt in prompts]
        Path(files[name]).write_text("\n".join(records))
    options = GenerationOptions(count=5, max_new_tokens=8, seeds=seeds, prompts=files)
    result = evaluate(folders, Data(5), options)
    assert result.texts is None
    for name, file in files.items():
        alone = evaluate(folders, Data(5), replace(options, prompts=file))
        assert result.sets[name].metrics == alone.texts
        assert result.sets[name].generations == alone.generations
    write_report(result, tmp_path / "report")
    values = json.loads((tmp_path / "report/evaluation.json").read_text())
    repeated = max(1, seeds)
    assert {name: texts["generations"] for name, texts in values["sets"].items()} == {
        "few": 2 * repeated,
        "many": 5 * repeated,
    }
    assert values["sets"]["few"]["length_ratio"] == result.sets["few"].metrics.length_ratio
    assert "rouge_l" not in values
    page = (tmp_path / "report/evaluation.md").read_text()
    for name in files:
        texts = [json.loads(line) for line in (tmp_path / f"report/generations.{name}.jsonl").read_text().splitlines()]
        assert [text["generation"] for text in texts] == [item.generation for item in result.sets[name].generations]
        assert f"{name}: ROUGE-L of {len(texts)}" in page
        assert f"## Generations for {name}" in page
    assert not (tmp_path / "report/generations.jsonl").exists()
    with pytest.raises(UserError, match=r"few\.jsonl: no prompt leaves room for 63 new tokens"):
        evaluate(folders, Data(5), replace(options, max_new_tokens=63))


def test_sets_of_prompts_on_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=1.jsonl").touch()
    for words, expected in (
        (None, None),
        (["some/file.jsonl"], "some/file.jsonl"),
        (["lr=1.jsonl"], "lr=1.jsonl"),
        (["a=lr=1.jsonl"], {"a": "lr=1.jsonl"}),
        (["a=x.jsonl", "b.2=y.jsonl"], {"a": "x.jsonl", "b.2": "y.jsonl"}),
    ):
        assert prompt_files(words) == expected
    for words, problem in (
        (["x.jsonl", "y.jsonl"], r"--prompts x\.jsonl: of several files each is NAME=FILE"),
        (["a=x.jsonl", "b="], "--prompts b=: of several files"),
        (["runs/lr=2.jsonl"], "--prompts runs/lr=2"),
        (["a=x.jsonl", "a=y.jsonl"], r"--prompts a=y\.jsonl: there are two sets 'a'"),
    ):
        with pytest.raises(UserError, match=problem):
            prompt_files(words)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = save(tmp_path / "model", make_model(0), tokenizer)

    def attempt(folder: Path, teacher: Path | None = None, max_new_tokens: int = 8) -> None:
        folders = Folders(model=folder, data="data", tokenizer=model, teacher=teacher)
        evaluate(folders, Data(5), GenerationOptions(count=1, max_new_tokens=max_new_tokens))

    with pytest.raises(UserError, match=r"absent: neither a Hugging Face model folder .* nor a checkpoint"):
        attempt(tmp_path / "absent")
    with pytest.raises(UserError, match=r"id 40 is absent in the first"):
        attempt(model, teacher=save(tmp_path / "small", make_model(0, 40), make_tokenizer(40)))
    with pytest.raises(UserError, match="not that of the data set"):
        attempt(model, teacher=save(tmp_path / "other", make_model(0), make_tokenizer(prefix="v")))
    with pytest.raises(UserError, match=r"60 tokens.*no tokenizer"):
        attempt(model, teacher=save(tmp_path / "bare", make_model(0, 60), None))
    with pytest.raises(UserError, match="leaves room"):
        attempt(model, max_new_tokens=64)
    (tmp_path / "model/model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        attempt(model)


def test_export_check_tells_the_trained_model_from_another(tmp_path: Path) -> None:
    model = make_model(0)
    save(tmp_path / "student", model, None)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        logits = model(tokens).logits
    save_file({"tokens": tokens, "logits": logits}, tmp_path / "export_check.safetensors")
    assert check_export(tmp_path) < 1e-6

    save_file({"tokens": tokens, "logits": logits + 0.01}, tmp_path / "export_check.safetensors")
    with pytest.raises(UserError, match="not the trained one"):
        check_export(tmp_path)
    save_file({"tokens": tokens, "logits": logits[..., :-1].contiguous()}, tmp_path / "export_check.safetensors")
    with pytest.raises(UserError, match=r"logits \[2, 12, 53\].*\[2, 12, 52\]"):
        check_export(tmp_path)
    (tmp_path / "export_check.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        check_export(tmp_path)


def test_prompts_that_nothing_can_answer_are_told(tmp_path: Path) -> None:
    model = save(tmp_path / "model", make_model(3), make_tokenizer())
    options = generation.GenerationOptions(max_new_tokens=40)
    work = Responding(model=model, prompts=tmp_path / "prompts.jsonl", output=tmp_path / "out.jsonl", options=options)
    for text, words in (
        ("\n", r"prompts\.jsonl: holds no prompts$"),
        (json.dumps({"prompt": "w5 " * 30}), r"no prompt leaves room for 40 .* 64 positions; lower --max-new-tokens"),
    ):
        work.prompts.write_text(text)
        with pytest.raises(UserError, match=words):
            write_responses(work, RANKS, print)


def test_responses_go_on_after_a_kill(tmp_path: Path) -> None:
    """What was written stays, a torn line is made again, and the file is that of a run that was not interrupted."""
    model = save(tmp_path / "model", make_model(3), make_tokenizer())
    prompts = tmp_path / "prompts.jsonl"
    texts = [f"w{3 + n} w{5 + n}" for n in range(9)]
    texts.insert(4, " ".join(["w5"] * 60))  # no room: left out, and the others draw what they would have drawn
    prompts.write_text("".join(json.dumps({"prompt": text, "output": "old"}) + "\n" for text in texts))
    said: list[str] = []

    def responding(name: str, **changes: Any) -> Responding:
        options = generation.GenerationOptions(max_new_tokens=10, seed=5)
        work = Responding(model=model, prompts=prompts, output=tmp_path / name, options=options, batch=4)
        return replace(work, **changes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responses, "BLOCK", 3)
        patch.setattr(responses, "from_main", lambda work: work())
        write_responses(responding("whole.jsonl"), RANKS, said.append)
        expected = (tmp_path / "whole.jsonl").read_bytes()
        records = [json.loads(line) for line in expected.splitlines()]
        assert [record["prompt"] for record in records] == texts[:4] + texts[5:]
        assert len({record["output"] for record in records}) > 4
        cut = sum(record["finish_reason"] == "length" for record in records)
        assert 0 < cut < len(records)
        words = {
            kind: [len(record["output"].split()) for record in records if record["finish_reason"] == kind]
            for kind in ("stop", "length")
        }
        assert max(words["stop"]) < 10 == max(words["length"])
        assert said[-1].endswith(f"{cut} of 9 responses did not end within 10 tokens")
        assert any("1 prompts of 10 are empty or too long" in line for line in said)
        cost = json.loads((tmp_path / "whole.jsonl.json").read_text())["cost"]
        assert (cost["responses"], cost["cut"]) == (9, cut)
        assert 9 < cost["tokens"] <= 90
        assert cost["seconds"] > 0
        with pytest.raises(UserError, match="exists already"):
            write_responses(responding("whole.jsonl"), RANKS, said.append)

        patch.setattr(responses, "continue_prompts", stopping_after(1))
        with pytest.raises(InterruptedError):
            write_responses(responding("killed.jsonl"), RANKS, said.append)
        partial = tmp_path / "killed.jsonl.partial"
        assert partial.read_bytes() == b"".join(expected.splitlines(keepends=True)[:3])
        with partial.open("ab") as file:
            file.write(b'{"prompt": "to')
        # As if the kill had come before the account of these lines, which count all the same.
        account = tmp_path / "killed.jsonl.partial.json"
        begun = json.loads(account.read_text())
        assert begun["cost"]["cut"] > 0
        begun["cost"] |= {"responses": 0, "cut": 0}
        account.write_text(json.dumps(begun))
        patch.setattr(responses, "continue_prompts", continue_prompts)
        other = generation.GenerationOptions(max_new_tokens=10, seed=6)
        with pytest.raises(UserError, match="begun with another model, other prompts or other options"):
            write_responses(responding("killed.jsonl", options=other), RANKS, said.append)
        assert not write_responses(responding("killed.jsonl"), RANKS, said.append, lambda: True)
        assert write_responses(responding("killed.jsonl", batch=2), RANKS, said.append)
        assert any("6 of 9 responses are there" in line for line in said)
        assert said[-1].endswith(f"{cut} of 9 responses did not end within 10 tokens")
    assert (tmp_path / "killed.jsonl").read_bytes() == expected
    resumed = json.loads((tmp_path / "killed.jsonl.json").read_text())["cost"]
    assert all(resumed[name] == cost[name] for name in ("responses", "cut", "tokens"))
    assert resumed["cpu_seconds"] > 0
    assert not list(tmp_path.glob("*.partial*"))


def stopping_after(calls: int) -> Callable[..., list[list[int]]]:
    left = iter(range(calls))

    def run(*arguments: Any, **options: Any) -> list[list[int]]:
        if next(left, None) is None:
            raise InterruptedError
        return continue_prompts(*arguments, **options)

    return run


@pytest.mark.parametrize("option", ["--prompts", "--seeds"])
def test_options_of_generations_are_refused_without_any(option: str) -> None:
    with pytest.raises(UserError, match=f"{option} is of generations"):
        evaluate_command(["--model", "absent", "--data", "absent", "--output", "absent", option, "3"])
