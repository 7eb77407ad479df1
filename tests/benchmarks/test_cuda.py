"""Figures of a GPU are those of what they are named after, here with a simulated GPU."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from script_modules import imported

from monai_fp4.quantization.formats.blocks import ScaledValues
from monai_fp4.quantization.kernels import triton_quantize, triton_support

NAMES = (
    "common",
    "cuda_kernels",
    "gpu_checks",
    "gpu_trainings",
    "input",
    "auprc",
    "training_step",
    "warm_kernels",
    "networks",
    "seeds_together",
)
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    with imported(NAMES) as modules:
        yield modules


class MadeUpGPU:
    """A host that takes ``launch`` seconds for a call and a GPU that takes ``work``, on one clock."""

    def __init__(self, launch: float, work: float) -> None:
        self.launch, self.work, self.now, self.idle_at = launch, work, 0.0, 0.0

    def enqueue(self, seconds: float) -> None:
        self.idle_at = max(self.idle_at, self.now) + seconds

    def call(self) -> None:
        self.now += self.launch
        self.enqueue(self.work)

    def wait(self) -> None:
        self.now = max(self.now, self.idle_at)

    def event(self, **_: bool) -> Any:
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", max(self.idle_at, self.now))
        event.query = lambda: self.now >= event.at
        event.synchronize = lambda: setattr(self, "now", max(self.now, event.at))
        event.elapsed_time = lambda other: 1e3 * (other.at - event.at)
        return event

    def install(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType, sleeps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)
        sleep = (lambda cycles: self.enqueue(cycles / module.CYCLES)) if sleeps else lambda _: None
        monkeypatch.setattr(torch.cuda, "_sleep", sleep)
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.mark.parametrize("launch", [1e-6, 5e-5])
def test_the_time_of_a_kernel_is_not_that_of_its_launch(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, launch: float
) -> None:
    gpu = MadeUpGPU(launch, 1e-5)
    gpu.install(monkeypatch, scripts["cuda_kernels"], sleeps=True)
    found = scripts["cuda_kernels"].timed(gpu.call, CUDA)
    assert found.seconds == pytest.approx(1e-5) and found.host_ahead
    assert found.host_seconds == pytest.approx(launch)


def test_a_time_with_launches_in_it_says_so(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = MadeUpGPU(5e-5, 1e-5)
    gpu.install(monkeypatch, scripts["cuda_kernels"], sleeps=False)
    found = scripts["cuda_kernels"].timed(gpu.call, CUDA)
    assert found.seconds == pytest.approx(5e-5, rel=0.1) and found.host_ahead is False


def test_bits_are_compared_and_zeros_have_signs(scripts: dict[str, ModuleType]) -> None:
    def result(*numbers: float) -> ScaledValues:
        return ScaledValues(torch.tensor(numbers), torch.ones(()), torch.ones(1))

    different = scripts["cuda_kernels"].different
    assert different(result(0.0, float("nan")), result(0.0, float("nan"))) == 0
    assert different(result(-0.0, 1.0), result(0.0, 1.0)) == 1


def test_a_rehearsal_sees_every_layout_and_dtype(scripts: dict[str, ModuleType]) -> None:
    small, full = (dict(scripts["cuda_kernels"].inputs(small, CPU)) for small in (True, False))
    assert {name for name in full if name.startswith("bfloat16")} <= set(small)
    assert {name.split()[0] for name in full} == {name.split()[0] for name in small}
    # A maximum that is infinite would make every scale the same.
    assert all(x.float()[~x.isnan()].isfinite().all() for x in full.values())


def test_parts_of_the_check_are_the_whole(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    module = scripts["cuda_kernels"]
    monkeypatch.setattr(module, "quantize", lambda *_, **__: None)
    monkeypatch.setattr(module, "quantize_both", lambda *_, **__: (None, None))
    monkeypatch.setattr(module.torch_quantize, "quantize", lambda *_, **__: None)
    monkeypatch.setattr(module, "different", lambda *_: 0)
    parts = [cell for part in range(4) for cell in module.check(True, CPU, (part, 4))]
    whole = module.check(True, CPU)
    assert sorted(map(str, parts)) == sorted(map(str, whole)) and len(whole) == 9 * 8


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> str:
    """Triton has failed in this process."""
    reason = "a Triton kernel failed, RuntimeError: PTX was not accepted"
    monkeypatch.setattr(triton_support, "_failure", reason)
    return reason


def test_plain_torch_is_not_measured_for_kernels(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_up: str
) -> None:
    module, output = scripts["training_step"], tmp_path / "steps.json"
    cell = {"recipe": "sr", "median": 1.0, "ratio": 9.0}
    monkeypatch.setattr(module, "measure", lambda *_: [cell])
    monkeypatch.setattr(sys, "argv", ["training_step.py", "--device", "cpu", "--output", str(output)])
    with pytest.raises(SystemExit, match=r"plain torch took over: .* PTX was not accepted"):
        module.main()
    content = json.loads(output.read_text())
    assert content["cells"] == [cell] and content["machine"]["triton_kernels"] == [False, given_up]


@pytest.mark.usefixtures("given_up")
def test_the_first_phase_says_that_kernels_cannot_be_used(scripts: dict[str, ModuleType]) -> None:
    took, wrong = scripts["gpu_checks"].first_kernel("cuda")
    assert took is None and "PTX was not accepted" in wrong[0]


def test_the_first_phase_launches_a_kernel(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Python.h: No such file")

    monkeypatch.setattr(triton_support, "available", lambda _: (True, "Triton on a GPU"))
    monkeypatch.setattr(triton_quantize, "quantize", fail)
    took, wrong = scripts["gpu_checks"].first_kernel("cpu")
    assert took is None and "Python.h" in wrong[0]


def test_a_training_in_plain_torch_says_so(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    module, options = scripts["gpu_trainings"], argparse.Namespace(runs=tmp_path)
    for name in ("good", "slow", "empty", "broken"):
        (tmp_path / f"{name}.log").write_text("epoch 1\n")
        (tmp_path / name).mkdir()
        if name in ("good", "slow"):
            (tmp_path / name / "metrics.json").write_text('{"auprc": 0.5}')
    (tmp_path / "slow.log").write_text(f"x.py:1: RuntimeWarning: {module.GIVEN_UP}, plain torch: PTX\nepoch 1\n")
    found = {name: module.outcome(name, int(name == "broken"), 1.0, options) for name in ("good", "slow", "empty")}
    assert found["good"] == {"bundle": "good", "status": "done", "seconds": 1.0, "metrics": {"auprc": 0.5}}
    assert "PTX" in found["slow"]["plain_torch"] and found["slow"]["metrics"] == {"auprc": 0.5}
    assert (found["empty"]["status"], found["empty"]["error"]) == ("failed", "it wrote no metrics")
    broken = module.outcome("broken", 2, 1.0, options)
    assert broken["error"] == "status 2: epoch 1" and broken["log"] == ["epoch 1"]


def test_a_cache_on_a_gpu_may_round_and_no_more(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    from monai_fp4 import data

    def found(image: float = 0.0, label: float = 0.0, share: float = 0.5) -> list[str]:
        class Fake:
            def __init__(self, *_: object, device: Any, **__: object) -> None:
                self.off = isinstance(device, torch.device)

            def __len__(self) -> int:
                return 2

            def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
                images, labels = torch.ones(3, 4, 4) + self.off * image, torch.full((1, 4, 4), share) + self.off * label
                return [{"image": images, "label": labels} for _ in indices]

        wrong: list[str] = []
        monkeypatch.setattr(data, "SliceDataset", Fake)
        scripts["gpu_checks"].cache(CPU, True, wrong)
        return wrong

    monkeypatch.setattr(data, "prepare_data", lambda *_: None)
    monkeypatch.setattr(data, "load_datalist", lambda *_: [])
    assert found(image=1e-6, label=1e-6) == []
    assert found(image=0.1) and found(label=0.1) and found(image=float("nan")) and found(label=float("nan"))
    assert found(share=0.0), "slices without a lesion show nothing"


def test_skipped_tests_are_no_success(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = scripts["gpu_checks"]
    options = argparse.Namespace(output=tmp_path / "tests.json", files=[], device="cpu")

    def ran(cases: str) -> dict[str, Any]:
        def run(*_: object, **__: object) -> Any:
            (tmp_path / "tests.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
            return SimpleNamespace(returncode=0)

        monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))
        monkeypatch.setattr(module, "machine", lambda _: {})
        return dict(module.tests(options))

    skipped, passed = '<testcase classname="a" name="b"><skipped/></testcase>', '<testcase classname="a" name="c"/>'
    assert ran(skipped)["wrong"] and ran(skipped)["passed"] == 0
    assert not ran(skipped + passed)["wrong"] and ran(skipped + passed)["passed"] == 1
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert module.tests(options)["wrong"] == ["pytest and hypothesis: not installed here"]


def test_what_was_compiled_is_kept_each_time(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, written = scripts["warm_kernels"], []
    monkeypatch.setattr(module, "warm", lambda arch, recipe, *_: {"arch": arch, "recipe": recipe})
    fake = SimpleNamespace(write=lambda figures: written.append(len(figures["cells"])))
    monkeypatch.setattr(module, "Results", lambda *_: fake)
    arguments = ["--arch", "unet", "vit", "--recipes", "sr", "--device", "cpu", "--output", str(tmp_path / "x.json")]
    monkeypatch.setattr(sys, "argv", ["warm_kernels.py", *arguments])
    assert module.main() == 0
    assert written == [1, 2]


def test_processes_find_room_on_the_gpu(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 * 2**30), raising=False
    )
    assert scripts["warm_kernels"].processes("cuda") == 4
    assert scripts["warm_kernels"].processes("cpu") == 12


def test_the_stream_is_kept_if_the_peers_take_too_long(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: object) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "auprc.json"
    monkeypatch.setattr(scripts["auprc"], "compare", never)
    arguments = ["--stream", "4000", "--piece", "1000", "--device", "cpu", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["auprc.py", *arguments])
    with pytest.raises(KeyboardInterrupt):
        scripts["auprc"].main()
    assert json.loads(output.read_text())["stream"]["pixels"] == 4000


def test_batches_are_made_by_the_clock_that_is_given(scripts: dict[str, ModuleType]) -> None:
    ticks = iter(range(100))
    dataset = SimpleNamespace(__getitems__=lambda batch: None)
    assert scripts["input"].best_rate(dataset, [[0, 1], [2, 3]], 2, lambda: float(next(ticks))) == 4.0
