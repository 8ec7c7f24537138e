"""What a reported number must carry: hardware, versions, commit, date."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

_PACKAGES = ("megaokd", "torch", "transformers", "deepspeed", "numpy")


def describe_environment() -> dict[str, str]:
    """Where and with what this process runs, in words."""
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": f"{_cpu_model()}, {_usable_cores()} cores",
    }
    if torch.cuda.is_available():
        result["gpu"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    result["system"] = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    result["packages"] = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    result["commit"] = _commit()
    return result


def environment_lines(environment: dict[str, str]) -> list[str]:
    """The same as a Markdown list."""
    return [f"- {name}: {value}" for name, value in environment.items()]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of the checkout that this file lies in, or why there is none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return f"{commit} with uncommitted changes" if changed.strip() else commit
