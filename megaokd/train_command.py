"""`megaokd train CONFIG.yaml [section.key=value ...]`, under a launcher or without one."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from megaokd.config_file import load_config
from megaokd.errors import RunError, UserError

EXIT_USER_ERROR, EXIT_FAILURE = 2, 1


def main(argv: Sequence[str]) -> int:
    """Train or distil; the exit status is 0 when finished, 75 when interrupted by SIGTERM, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="megaokd train", description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are YAML")
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.overrides)

    # torch and deepspeed take seconds to import: a mistake in the configuration is told before that.
    import torch.distributed as dist

    from megaokd.mesh import build_mesh, start_distributed
    from megaokd.models.hub import fetch_models
    from megaokd.signals import StopRequest
    from megaokd.trainer import Trainer

    status = EXIT_FAILURE
    try:
        with StopRequest() as stop:  # from here on, so that a signal while models load is not lost
            device = start_distributed(config.train.timeout_s)
            mesh = build_mesh(config.parallel, device, config.train.timeout_s)
            status = int(Trainer(fetch_models(config), mesh).fit(stop))
        dist.barrier()
        dist.destroy_process_group()
    except UserError as error:
        print(f"{_prefix()}error: {error}", file=sys.stderr)
        status = EXIT_USER_ERROR
    except RunError as error:
        print(f"{_prefix()}failed: {error}", file=sys.stderr)
    except Exception:
        print(f"{_prefix()}failed:\n{traceback.format_exc()}", file=sys.stderr)
    if status in (EXIT_USER_ERROR, EXIT_FAILURE):
        # Other ranks may wait in a collective that this one will never join; leaving at once, without the cleanup that
        # waits for them, lets the launcher end them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _prefix() -> str:
    rank = os.environ.get("RANK", "0")
    return f"megaokd: rank {rank}: " if os.environ.get("WORLD_SIZE", "1") != "1" else "megaokd: "
