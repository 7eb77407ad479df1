"""What becomes of a kernel where there is no compiler, no cache to write to, or a faulty library."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from compiled_kernels import needs_compiler

from monai_fp4 import compiler
from monai_fp4.metrics import native
from monai_fp4.quantization.kernels import cpu_gemm, cpu_quantize
from monai_fp4.quantization.numerics import plain_torch, scaled_values


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has loaded nothing yet, with a cache of its own."""
    for name, empty in (("_libraries", {}), ("_warned", set())):
        monkeypatch.setattr(compiler, name, empty)
    compiler._compiler.cache_clear()
    monkeypatch.setenv("MONAI_FP4_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MONAI_FP4_NATIVE", raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def _forget() -> object:
    yield
    compiler._compiler.cache_clear()


def libraries(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "kernels").glob("*"))


def assert_plain_numbers(reason: str) -> None:
    """One warning with the reason, the same numbers, and a status that says it."""
    x = torch.randn(8, 32)
    with plain_torch():
        expected = scaled_values(x).values
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        assert torch.equal(scaled_values(x).values, expected)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(scaled_values(x).values, expected)
    (status,) = compiler.status()
    assert not status.available
    assert reason in status.reason


@needs_compiler
def test_a_library_is_built_once(fresh: Path) -> None:
    assert cpu_quantize.available()
    (built,) = libraries(fresh)
    before = built.stat()
    compiler._libraries.clear()
    assert cpu_quantize.available()
    assert built.stat().st_mtime_ns == before.st_mtime_ns
    assert [(status.name, status.available) for status in compiler.status()] == [("quantize", True)]


@needs_compiler
def test_a_changed_header_is_compiled_again(tmp_path: Path) -> None:
    (tmp_path / "small.cpp").write_text('#include "outer.h"\nextern "C" int number() { return NUMBER; }\n')
    (tmp_path / "outer.h").write_text('#pragma once\n#include "inner.h"\n#include "outer.h"\n')
    for number in (1, 2):
        (tmp_path / "inner.h").write_text(f"#define NUMBER {number}\n")
        compiler._libraries.clear()
        library = compiler.load(tmp_path / "small.cpp")
        assert library is not None and library.number() == number
    (tmp_path / "inner.h").unlink()
    compiler._libraries.clear()
    with pytest.warns(RuntimeWarning, match=r"inner\.h cannot be read"):
        assert compiler.load(tmp_path / "small.cpp") is None


@pytest.mark.parametrize("damage", [b"", b"no library", None])
@needs_compiler
def test_a_damaged_library_is_built_again(fresh: Path, damage: bytes | None) -> None:
    assert cpu_quantize.available()
    (built,) = libraries(fresh)
    content = built.read_bytes()[:-1000] if damage is None else damage
    built.unlink()  # this process has the file mapped, so another one takes its place
    built.write_bytes(content)
    compiler._libraries.clear()
    assert cpu_quantize.available()
    assert libraries(fresh) == [built]


@needs_compiler
def test_processes_build_at_the_same_time(fresh: Path) -> None:
    code = "from monai_fp4.quantization.kernels import cpu_quantize; raise SystemExit(not cpu_quantize.available())"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert len(libraries(fresh)) == 1


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler is installed"):
        assert not cpu_quantize.available()
    assert "install one or set CXX" in compiler.status()[0].reason


def test_cxx_names_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert_plain_numbers("is not found")


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, fresh: Path) -> None:
    fake = fresh / "cxx"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho out of order >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    assert_plain_numbers("out of order")
    assert libraries(fresh) == []


@needs_compiler
def test_a_library_that_miscalculates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_quantize, "_same", lambda a, b: False)
    assert_plain_numbers("differs from plain torch")


def test_turned_off_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_FP4_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cpu_quantize.available()
    assert "MONAI_FP4_NATIVE=0" in compiler.status()[0].reason


@needs_compiler
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, fresh: Path) -> None:
    (fresh / "file").write_text("")
    monkeypatch.setenv("MONAI_FP4_CACHE", str(fresh / "file" / "cache"))
    (fresh / "temporary").mkdir()
    monkeypatch.setattr(compiler.tempfile, "gettempdir", lambda: str(fresh / "temporary"))
    assert cpu_quantize.available()
    assert str(fresh / "temporary") in compiler.status()[0].reason


@needs_compiler
def test_another_processor_has_another_library(monkeypatch: pytest.MonkeyPatch, fresh: Path) -> None:
    assert cpu_quantize.available()
    compiler._libraries.clear()
    monkeypatch.setattr(compiler, "_processor", lambda: "another")
    assert cpu_quantize.available()
    assert len(libraries(fresh)) == 2


def test_cxx_is_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ 'unbalanced")
    assert_plain_numbers("CXX is no command")


@pytest.mark.parametrize("outcome", ["exit 1", "exit 0"])
def test_a_bad_compiler_is_one_warning(monkeypatch: pytest.MonkeyPatch, fresh: Path, outcome: str) -> None:
    """However many libraries would have needed it."""
    fake = fresh / "cxx"
    fake.write_text(f"#!/bin/sh\n{outcome}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.warns(RuntimeWarning) as caught:
        assert compiler.load(cpu_quantize.SOURCE) is compiler.load(native.SOURCE) is None
    assert len(caught) == 1


@needs_compiler
def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(compiler.tempfile, "mkstemp", full)
    with pytest.warns(RuntimeWarning, match=r"plain torch .* cannot be written .*No space left"):
        assert compiler.load(cpu_gemm.SOURCE) is None


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container that is run under a number of no user."""
    for name in ("HOME", "XDG_CACHE_HOME", "MONAI_FP4_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(compiler.tempfile, "gettempdir", lambda: str(tmp_path))
    assert compiler._cache_folder().parent == tmp_path


def test_a_compiler_that_says_its_version_in_another_encoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "c++"
    script.write_bytes(b"#!/bin/sh\necho 'compilateur num\xe9ro 12'\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert "12" in compiler._compiler()[1]


DEFAULTS = """
torch.set_default_device("meta")
torch.set_default_dtype(torch.float64)
torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
"""
COMPARED = """
import torch, warnings
from monai_fp4 import fake_quantize, quantize
from monai_fp4.quantization.layers import NVFP4Conv2d, NVFP4Linear
x = torch.linspace(-3, 5, 640).view(20, 32)
options = {{"bias": False, "recipe": "sr_rht_2d"}}
layers = NVFP4Linear(32, 24, **options), NVFP4Conv2d(16, 24, 3, padding=1, stride=2, **options)
for layer in layers:
    layer.weight.data.copy_(torch.linspace(-1, 1, layer.weight.numel()).view_as(layer.weight))
inputs = x.clone(), x.view(1, 16, 5, 8).clone()
{defaults}
warnings.simplefilter("error")
found = [fake_quantize(x, rht=True), quantize(x).dequantize(torch.bfloat16)]
for layer, images in zip(layers, inputs):
    with torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        y = layer(images.requires_grad_())
        y.backward(torch.linspace(0, 1, y.numel(), device="cpu", dtype=y.dtype).view_as(y))
    found += [y, images.grad, layer.weight.grad]
from monai_fp4.quantization.kernels import cpu_gemm
found.append(torch.tensor([cpu_gemm.available()], dtype=torch.uint8, device="cpu"))
for numbers in found:
    print(numbers.device, numbers.dtype, numbers.detach().double().tolist())
"""


def test_torch_s_process_wide_defaults_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first use, which compares each library with plain torch, nor any later one."""
    monkeypatch.delenv("MONAI_FP4_CACHE")

    def numbers(defaults: str) -> str:
        command = [sys.executable, "-c", COMPARED.format(defaults=defaults)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{defaults}: {done.returncode} {done.stderr[-800:]}"
        return done.stdout

    assert numbers(DEFAULTS) == numbers("")
