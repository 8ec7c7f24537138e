"""`megaokd.kernels` and `megaokd.tools` from a wheel; the checkout and the editable install are what all tests use."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


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
    program = (
        "import megaokd.kernels, megaokd.tools.corpus, megaokd.run, sys; "
        "print(megaokd.kernels.__file__, megaokd.tools.corpus.__file__)"
    )
    result = subprocess.run(
        [environment / "bin" / "python", "-c", f"import sys; sys.path += {site!r}; {program}"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(path.startswith(str(target)) for path in result.stdout.split())
