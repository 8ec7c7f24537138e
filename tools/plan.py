"""`megaokd plan CONFIG.yaml`: memory, communication and time of a run on a cluster, before there is one.

Reads the models' config.json and nothing else of them; needs neither weights nor a GPU. docs/planning.md explains it.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from megaokd.cli import run
from megaokd.config_file import load_config
from megaokd.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Print one layout, that of the configuration, or the fastest that fit."""
    options = _parser().parse_intermixed_args(argv)
    for name in ("nodes", "gpus_per_node", "top"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    for name in ("efficiency", "link_efficiency", "loss_share", "usable_memory"):
        if not 0.0 < getattr(options, name) <= 1.0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0 and at most 1, not {getattr(options, name):g}")
    config = load_config(options.config, options.overrides)

    # After parsing: --help and a mistake in the configuration must not wait for torch.
    from megaokd.cost.hardware import Assumptions, Cluster, find_gpu
    from megaokd.models.hub import CONFIG_FILES, fetch_models
    from megaokd.planning import report
    from megaokd.planning.candidates import given_keys
    from megaokd.planning.plan import Models, make_plan, make_setting
    from megaokd.planning.search import search

    assumptions = Assumptions(
        efficiency=options.efficiency,
        link_efficiency=options.link_efficiency,
        usable_memory=options.usable_memory,
    )
    cluster = Cluster(find_gpu(options.gpu), options.nodes, options.gpus_per_node, assumptions)
    models = Models.read(fetch_models(config, CONFIG_FILES))
    lines = report.head_lines(models, config, cluster)
    if options.search:
        found = search(config, models, cluster, options.loss_share, given_keys(options.overrides))
        data = [report.plan_data(plan, cluster) for plan in found.plans[: options.top]] if options.json else []
        lines += report.search_lines(found, options.top, cluster)
        lines += ["", "the first, on the command line of `megaokd train`:", f"  {report.layout_text(found.plans[0])}"]
        print(
            json.dumps({"tried": found.tried, "fit": len(found.plans), "plans": data})
            if options.json
            else "\n".join(lines)
        )
        return 0
    plan = make_plan(make_setting(config, models, cluster.processes, options.loss_share), cluster)
    lines += report.plan_lines(plan, cluster)
    print(json.dumps(report.plan_data(plan, cluster)) if options.json else "\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megaokd plan", description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--gpu", required=True, metavar="NAME", help="h100, h200, a100-40, a100-80, b200, mi300x, l40s")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument(
        "--search",
        action="store_true",
        help="find the layouts that fit, fastest first; keys that are given here stay as they are",
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many --search shows (default: 10)")
    parser.add_argument("--json", action="store_true", help="everything, in bytes and seconds")
    parser.add_argument(
        "--loss-share", type=float, default=1.0, metavar="X", help="of the positions that carry loss (default: 1, all)"
    )
    parser.add_argument("--efficiency", type=float, default=0.5, metavar="X", help="of the matrix rate (default: 0.5)")
    parser.add_argument(
        "--link-efficiency", type=float, default=0.7, metavar="X", help="of links, network, memory (default: 0.7)"
    )
    parser.add_argument(
        "--usable-memory", type=float, default=0.9, metavar="X", help="of a GPU's memory (default: 0.9)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
