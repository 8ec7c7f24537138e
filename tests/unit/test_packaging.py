"""One import name in the checkout, from an editable install and from a wheel."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


IMPORT = "import megaokd.kernels as k, megaokd.tools.corpus as t; print(k.__file__, t.__file__)"


@pytest.mark.parametrize("way", ["checkout", "editable install"])
def test_imports_lead_to_the_checkout(way: str, tmp_path: Path) -> None:
    """From the checkout's own folder without an installation, and from elsewhere through the editable one."""
    if way == "checkout":
        command, folder = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {IMPORT}"], ROOT
    else:
        command, folder = [sys.executable, "-P", "-c", IMPORT], tmp_path
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert [Path(path).resolve().parent for path in result.stdout.split()] == [ROOT / "kernels", ROOT / "tools"]


def test_the_top_level_name_stays_free() -> None:
    """In the checkout `kernels` is the unrelated PyPI package, or nothing: transformers probes for it."""
    program = "import kernels; assert not hasattr(kernels, 'distillation_loss'); import transformers.integrations"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.slow
def test_wheel_holds_every_package(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = tmp_path / "wheels"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT], check=True, cwd=tmp_path)
    environment = tmp_path / "environment"
    venv.create(environment, system_site_packages=False, with_pip=False)
    target = next(environment.glob("lib/python*/site-packages"))
    (wheel,) = wheels.glob("megaokd-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    # The packages that the wheel needs come from the running interpreter; ours must come from the wheel.
    site = [path for path in sys.path if path.endswith("site-packages")]
    result = subprocess.run(
        [environment / "bin" / "python", "-c", f"import sys; sys.path += {site!r}; {IMPORT}"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(path.startswith(str(target)) for path in result.stdout.split())
