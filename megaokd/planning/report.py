"""A plan as text and as JSON. Sizes in GB (10^9 bytes), times in milliseconds."""

from typing import Any

from megaokd.config import Config
from megaokd.cost.communication import step_traffic
from megaokd.cost.hardware import Cluster
from megaokd.cost.memory import loss_memory, rank_memory, trunk_bytes
from megaokd.planning.plan import Models, Plan, with_recompute
from megaokd.planning.search import Found

GIGA = 1e9


def plan_data(plan: Plan, cluster: Cluster) -> dict[str, Any]:
    """Everything that is known of a layout."""
    setting, memory, time = plan.setting, plan.memory, plan.time
    other = {flag: rank_memory(with_recompute(setting, flag), plan.rank).activations for flag in (False, True)}
    last = plan.config.parallel.pipeline - 1
    return {
        "layout": layout_data(plan),
        "fits": plan.fits(cluster),
        "student_tensor": [vars(candidate) for candidate in plan.choice.candidates] if plan.choice else None,
        "memory_bytes": {
            "pipeline_rank": plan.rank,
            **vars(memory),
            "peak": memory.peak,
            "usable": cluster.usable_bytes,
            "activations_without_recompute": other[False],
            "activations_with_recompute": other[True],
            "loss_fused": loss_memory(setting, fused=True),
            "loss_not_fused": loss_memory(setting, fused=False),
        },
        "trunk_cache": None if setting.teacher is None else cache_data(plan),
        "traffic": [
            {"pipeline_rank": rank, "kind": kind, "group": group, "calls": volume.calls, "bytes": volume.bytes}
            for rank in sorted({0, last})
            for kind, group, volume in step_traffic(setting, rank)
        ],
        "time_s": {
            **{key: value for key, value in vars(time).items() if key not in ("positions", "model_flops")},
            "total": time.total,
            "bubble_share": time.bubble_share,
            "tokens_per_second": time.tokens_per_second,
            "model_flop_utilisation": utilisation(plan, cluster),
        },
    }


def cache_data(plan: Plan) -> dict[str, int]:
    """What a trunk cache takes on disk, whether the run has one or not."""
    positions = plan.time.positions * plan.config.train.steps
    return {"bytes_per_token": trunk_bytes(plan.setting, 1), "bytes_of_run": trunk_bytes(plan.setting, positions)}


def utilisation(plan: Plan, cluster: Cluster) -> float:
    """Model FLOPs a second, by the data sheet's rate."""
    peak = cluster.gpu.bf16 if plan.config.train.precision == "bf16" else cluster.gpu.fp32
    return plan.time.model_flops / plan.time.total / peak


def layout_data(plan: Plan) -> dict[str, Any]:
    """The keys of the configuration that make the layout, and what follows from them."""
    parallel, train = plan.config.parallel, plan.config.train
    return {
        "tensor": parallel.tensor,
        "student_tensor": parallel.student_ranks,
        "pipeline": parallel.pipeline,
        "data": plan.setting.data_parallel,
        "virtual_stages": parallel.virtual_stages,
        "schedule": parallel.schedule,
        "sequence_parallel": parallel.sequence_parallel,
        "recompute": parallel.recompute,
        "zero_stage": train.zero_stage,
        "micro_batch": train.micro_batch,
        "micro_batches": plan.setting.micro_batches,
    }


def head_lines(models: Models, config: Config, cluster: Cluster) -> list[str]:
    """What is planned, on what, under which assumptions."""
    lines = []
    for name, arch in (("teacher", models.teacher), ("student", models.student)):
        if arch is not None:
            lines.append(
                f"{name:<9}{arch.family}, {arch.num_layers} layers, hidden {arch.hidden_size}, heads {arch.num_heads}"
                f"/{arch.num_kv_heads}, MLP {arch.intermediate_size}, vocabulary {arch.vocab_size}"
            )
    gpu, assumed = cluster.gpu, cluster.assumptions
    lines.append(
        f"batch    {config.train.global_batch} rows of {config.data.widest_batch} positions, {config.train.precision}"
    )
    lines.append(
        f"cluster  {cluster.nodes} nodes x {cluster.gpus_per_node} {gpu.name}: {gpu.bf16 / 1e12:.0f} TFLOP/s bf16, "
        f"link {gpu.link / 1e9:.0f} GB/s, network {gpu.network / 1e9:g} GB/s a GPU"
    )
    lines.append(
        f"assumed  {assumed.efficiency:.0%} of the matrix rate, {assumed.link_efficiency:.0%} of bandwidths, "
        f"{assumed.latency_s * 1e6:.0f} us a call, {assumed.usable_memory:.0%} of memory usable"
    )
    return lines


def plan_lines(plan: Plan, cluster: Cluster) -> list[str]:
    """One layout."""
    data = plan_data(plan, cluster)
    time = data["time_s"]
    lines = ["", f"layout   {layout_text(plan)}", "", *_memory_lines(plan, data)]
    lines += [
        *(plan.choice.lines() if plan.choice is not None else ()),
        "",
        "sent in a step by a GPU of a pipeline rank",
        f"  {'rank':<6}{'group':<10}{'kind':<16}{'calls':>8}{'GB':>11}",
    ]
    for row in data["traffic"]:
        lines.append(
            f"  {row['pipeline_rank']:<6}{row['group']:<10}{row['kind']:<16}{row['calls']:>8}{_gb(row['bytes']):>11}"
        )
    lines += ["", "time of a step, ms"]
    for key in ("compute", "tensor", "pipeline", "bubble", "data", "update", "writing", "total"):
        if key != "writing" or time[key]:
            lines.append(f"  {key:<10}{time[key] * 1e3:>10.0f}")
    lines.append(
        f"  {time['tokens_per_second']:.0f} tokens/s, model FLOP utilisation {time['model_flop_utilisation']:.1%}, "
        f"bubble {time['bubble_share']:.1%}"
    )
    return lines


def _memory_lines(plan: Plan, data: dict[str, Any]) -> list[str]:
    """The fullest rank's: what is whose, what else there is, the peak; and a trunk cache."""
    memory = data["memory_bytes"]
    lines = [
        f"memory of a GPU, GB (pipeline rank {plan.rank}, the fullest)",
        _memory_line("", "all", "student", "modules", "teacher"),
        *_model_lines(plan),
    ]
    lines[-1] += f"  {'with' if plan.config.parallel.recompute else 'without'} recomputation; {_both(memory)}"
    for name, key, note in (
        (
            "loss",
            "loss",
            f"fused {_gb(memory['loss_fused'])}, not fused {_gb(memory['loss_not_fused'])} on the last rank",
        ),
        ("pipeline buffers", "buffers", ""),
        *([("own responses", "writing", "keys and values; at another time too")] if memory["writing"] else []),
        ("reduction, update", "reduction", "not at the same time as activations and loss"),
        ("peak", "peak", f"{'fits' if data['fits'] else 'DOES NOT FIT'}: {_gb(memory['usable'])} usable"),
    ):
        lines.append(f"{_memory_line(name, _gb(memory[key]))}  {note}".rstrip())
    cache = data["trunk_cache"]
    if cache is not None:
        lines.append(
            f"  a trunk cache on disk: {cache['bytes_per_token'] / 1e3:.1f} kB a token; "
            f"{plan.config.train.steps} steps see at most {cache['bytes_of_run'] / 1e12:.2f} TB, "
            "an example that comes again once"
        )
    return lines


def _model_lines(plan: Plan) -> list[str]:
    """Of each model apart; the activations of modules are their teacher's, whose layers keep them for their sake."""
    memory = plan.memory
    parts = {
        "weights": (memory.weights - memory.modules, memory.modules, memory.teacher),
        "gradients": (memory.gradients - memory.modules, memory.modules, 0),
        "optimizer": (memory.optimizer - memory.modules_optimizer, memory.modules_optimizer, 0),
        "activations": (memory.activations - memory.teacher_activations, 0, memory.teacher_activations),
    }
    return [
        _memory_line(name, _gb(sum(sizes)), *(_gb(size) if size else "" for size in sizes))
        for name, sizes in parts.items()
    ]


def _memory_line(name: str, total: str, *of_models: str) -> str:
    return f"  {name:<20}{total:>9}{''.join(f'{size:>10}' for size in of_models)}".rstrip()


def search_lines(found: Found, count: int, cluster: Cluster) -> list[str]:
    """The fastest layouts as a table."""
    shown = found.plans[:count]
    lines = [
        "",
        f"{len(found.plans)} of {found.tried} layouts fit; the fastest {len(shown)}:",
        "  tensor student pipeline data stages seq.par. recompute micro x num    GB  step ms  tokens/s    MFU bubble",
    ]
    for plan in shown:
        parallel, time = plan.config.parallel, plan.time
        micro = f"{plan.config.train.micro_batch} x {plan.setting.micro_batches}"
        split, recompute = _yes(parallel.sequence_parallel), _yes(parallel.recompute)
        lines.append(
            f"  {parallel.tensor:>6} {parallel.student_ranks:>7} {parallel.pipeline:>8} "
            f"{plan.setting.data_parallel:>4} {parallel.virtual_stages:>6} {split:>8} {recompute:>9} {micro:>11} "
            f"{plan.memory.peak / GIGA:>5.0f} {time.total * 1e3:>8.0f} {time.tokens_per_second:>9.0f} "
            f"{utilisation(plan, cluster):>6.1%} {time.bubble_share:>6.1%}"
        )
    return lines


def layout_text(plan: Plan) -> str:
    """The layout as overrides of a command."""
    parallel, train = plan.config.parallel, plan.config.train
    keys = {
        "tensor": parallel.tensor,
        "student_tensor": parallel.student_ranks,
        "pipeline": parallel.pipeline,
        "virtual_stages": parallel.virtual_stages,
        "schedule": parallel.schedule,
        "sequence_parallel": _lower(parallel.sequence_parallel),
        "recompute": _lower(parallel.recompute),
    }
    inner = ", ".join(f"{key}: {value}" for key, value in keys.items())
    return f'"parallel={{{inner}}}" train.micro_batch={train.micro_batch} train.zero_stage={train.zero_stage}'


def _both(memory: dict[str, Any]) -> str:
    with_it, without = memory["activations_with_recompute"], memory["activations_without_recompute"]
    return f"with {_gb(with_it)}, without {_gb(without)}"


def _gb(size: float) -> str:
    return f"{size / GIGA:.3f}"


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _lower(flag: bool) -> str:
    return str(flag).lower()
