"""Which backend "auto" picks, and that it says so once."""

import logging

import pytest
import torch

from megaokd.distill.objective import Terms, check_backend
from megaokd.errors import UserError
from megaokd.kernels import Term, backends, compiled, eager

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _unsaid() -> None:
    backends._say_once.cache_clear()


def test_large_calls_are_compiled(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(compiled, "is_available", lambda device: True)
    assert backends.select_backend("auto", CPU, 1024, 32000) is compiled
    assert backends.select_backend("auto", CPU, 1024, 32000) is compiled
    assert backends.select_backend("auto", CPU, 30, 32000) is eager
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "compiled" in caplog.text


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert backends.select_backend("auto", CPU, 1024, 32000) is eager
    assert backends.select_backend("auto", CPU, 1024, 32000) is eager
    assert caplog.text.count("no C++ compiler") == 1
    with pytest.raises(RuntimeError, match="not available"):
        backends.select_backend("compiled", CPU, 1024, 32000)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="the backends are auto, triton"):
        backends.select_backend("fast", CPU, 1, 1)


def test_a_run_names_the_key_of_a_backend_that_cannot_run() -> None:
    with pytest.raises(UserError, match=r"objective\.backend: backend 'triton' is not available on cpu"):
        check_backend("triton", CPU, Terms((Term("ce", 1.0),), (), temperature=1.0))


def test_a_gpu_without_a_c_compiler_is_told_before_models_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")

    def build(_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(type(triton.runtime.driver), "active", property(build))
    with pytest.raises(
        UserError, match=r"objective\.backend: .* \(Failed to find C compiler\): Triton needs a C compiler"
    ):
        check_backend("auto", torch.device("cuda"), Terms((Term("ce", 1.0),), (), temperature=1.0))


def test_the_likeliest_tokens_are_for_eager_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a GPU, and at a weight of 0; a backend that is named is refused, not replaced."""
    monkeypatch.setattr(compiled, "is_available", lambda device: True)
    terms = (Term("ce", 1.0), Term("forward_kl_top", 0.0))
    for device in (CPU, torch.device("cuda")):
        assert backends.select_backend("auto", device, 1024, 32000, terms) is eager
        for name in ("compiled", "triton"):
            with pytest.raises(RuntimeError, match=f"{name}' has no forward_kl_top; use 'eager' or 'auto'"):
                backends.select_backend(name, device, 1024, 32000, terms)
    with pytest.raises(UserError, match=r"objective\.backend: .*forward_kl_top"):
        check_backend("compiled", CPU, Terms(terms, (), temperature=1.0))
