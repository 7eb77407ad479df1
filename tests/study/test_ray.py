"""Sweeps on a real Ray, and real bundles in their cells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from study_cells import CELL, eventually, gone, study
from tiny_runs import REPOSITORY, TINY, Dataset, item, metrics, train

from monai_fp4.errors import ConfigError
from monai_fp4.optimizers import MuonAdamW
from monai_fp4.study import worker
from monai_fp4.study.commands import arguments_of, write_study
from monai_fp4.study.executor import CONNECT_SECONDS, RayExecutor, Resources
from monai_fp4.study.interrupt import interruptible
from monai_fp4.study.layout import Cell, CellStatus, StudyFolder
from monai_fp4.study.worker import Outcome, Task

ray = pytest.importorskip("ray")
assert CONNECT_SECONDS > 0

Batches = list[torch.Tensor]
SAY = """
import json, os, pathlib, sys, time
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
print(json.dumps({name: os.environ.get(name) for name in names}))
"""


def task(folder: StudyFolder, code: str, cell: str = CELL) -> Task:
    arguments = ["-c", code]
    stop = str(folder.path / ".stop")
    return Task(study=str(folder.path), cell=cell, arguments=arguments, threads=1, version="", stop_file=stop)


HEAD = """
import ray
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=80 * 1024 * 1024)
print("at", ray.get_runtime_context().gcs_address, flush=True)
import sys; sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray that another process has started, with a GPU that is only said to be there."""
    env = environment() | {"RAY_AUTH_MODE": "disabled"}  # a token is what a user brings along
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert head.stdout is not None and head.stdin is not None
    address = next(line.split()[1] for line in head.stdout if line.startswith("at "))
    yield address
    head.stdin.close()
    head.wait(60)


@pytest.fixture
def executor(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayExecutor]:
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    made = RayExecutor()
    yield made
    made.close()


def outcomes(executor: RayExecutor, handles: list[Any], seconds: float = 120.0) -> list[Outcome]:
    """The outcomes in the order of the handles."""
    found: dict[Any, Outcome] = {}
    until = time.monotonic() + seconds
    while len(found) < len(handles) and time.monotonic() < until:
        found |= executor.wait([handle for handle in handles if handle not in found], 1.0)
    return [found[handle] for handle in handles]


def test_an_existing_cluster_is_used_as_it_is(executor: RayExecutor, cluster: str, tmp_path: Path) -> None:
    assert executor.description == f"the Ray cluster at {cluster}, 2 cores, 1 GPUs"
    assert executor.largest_machine() == Resources(2, 1)
    assert (
        executor.slots(Resources(1)) == 2
        and executor.slots(Resources(2)) == 1
        and executor.slots(Resources(1, 0.25)) == 2
    )
    folder, _ = study(tmp_path)
    outcome = outcomes(executor, [executor.submit(task(folder, SAY), Resources(1, 0.25))])[0]
    said = json.loads((folder.cells_path / CELL / "run.log").read_text())
    assert said == {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1"}
    assert outcome["status"] == "failed" and "metrics.json" in outcome["error"]  # SAY is no run
    assert json.loads((folder.cells_path / CELL / "cell.json").read_text())["device"] == "cuda:0"


def test_several_cells_share_a_gpu(executor: RayExecutor, tmp_path: Path) -> None:
    folder, defined = study(tmp_path)
    first, second = (cell.id for cell in defined.cells()[:2])
    # Each waits for the other to have begun: neither ends unless both run at once.
    code = "import pathlib, time\npathlib.Path('{}').touch()\nwhile not pathlib.Path('{}').exists(): time.sleep(0.01)\n"
    handles = [
        executor.submit(task(folder, code.format("a", "b"), first), Resources(0.5, 0.5)),
        executor.submit(task(folder, code.format("b", "a"), second), Resources(0.5, 0.5)),
    ]
    assert [outcome["status"] for outcome in outcomes(executor, handles)] == ["failed", "failed"]


def test_a_killed_worker_is_a_lost_cell(executor: RayExecutor, tmp_path: Path) -> None:
    folder, defined = study(tmp_path)
    cell = next(cell for cell in defined.cells() if cell.id == CELL)
    code = "import os, pathlib, time; pathlib.Path('parent').write_text(str(os.getppid())); time.sleep(300)"
    handle = executor.submit(task(folder, code), Resources(1))
    assert eventually(lambda: (folder.path / "parent").exists() and (folder.path / "parent").read_text() != "")
    os.kill(int((folder.path / "parent").read_text()), signal.SIGKILL)
    outcome = outcomes(executor, [handle])[0]
    assert outcome["status"] == "lost" and "worker was lost" in outcome["error"] and "\n" not in outcome["error"]
    assert eventually(lambda: gone(folder.record(cell).pid))


def test_a_cancelled_cell_waits_for_the_next_sweep(executor: RayExecutor, tmp_path: Path) -> None:
    folder, defined = study(tmp_path)
    cell = next(cell for cell in defined.cells() if cell.id == CELL)
    handle = executor.submit(task(folder, "import time; time.sleep(300)"), Resources(1))
    assert eventually(lambda: folder.record(cell).status is CellStatus.RUNNING)
    executor.cancel(handle)
    assert outcomes(executor, [handle])[0]["status"] == "waiting"
    assert eventually(lambda: gone(folder.record(cell).pid))
    assert folder.record(cell).status is CellStatus.WAITING


def test_a_worker_without_the_package_can_say_so(tmp_path: Path) -> None:
    folder, _ = study(tmp_path)
    ray.cloudpickle.register_pickle_by_value(worker)
    (tmp_path / "function").write_bytes(ray.cloudpickle.dumps((worker.run_task, task(folder, "pass"))))
    code = (
        "import sys; sys.modules['monai_fp4'] = None\n"
        "import ray.cloudpickle\n"
        f"run, task = ray.cloudpickle.loads(open({str(tmp_path / 'function')!r}, 'rb').read())\n"
        "print(run(task)['error'], 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "must have monai-fp4 installed" in said.stdout and said.stdout.strip().endswith("False")


def test_a_cluster_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9", "ray://:x"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match="does not answer") as error:
            RayExecutor()
        assert address in str(error.value)


@pytest.mark.parametrize("ended", [False, True])
def test_ray_keeps_no_signal_of_a_process_to_itself(monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ray does
        if ended:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(RayExecutor, "largest_machine", lambda _: Resources(2))
    with interruptible() as come, pytest.raises(KeyboardInterrupt) if ended else nullcontext():
        ours = signal.getsignal(signal.SIGTERM)
        RayExecutor()
        assert signal.getsignal(signal.SIGTERM) is ours
    assert come == [signal.SIGTERM] * ended and signal.getsignal(signal.SIGTERM) is before


def options(dataset: Dataset, folder: Path, **changes: Any) -> list[str]:
    given = {**TINY, **dataset.options, "output_dir": str(folder), "cpus_per_cell": 1, **changes}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "monai_fp4", "sweep", "--archs", "unet", "--scales", "500k", *words]


def environment() -> dict[str, str]:
    without = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MONAI_FP4_DEBUG")}
    return without | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def plain(folder: Path) -> list[dict[str, Any]]:
    """A run's history without its times."""
    timed = ("seconds", "input_wait")
    return [{n: value for n, value in entry.items() if n not in timed} for entry in metrics(folder)["history"]]


@pytest.mark.slow
def test_a_sweep_that_is_killed_loses_nothing_but_the_steps_since_a_checkpoint(tiny: Dataset, tmp_path: Path) -> None:
    """kill -9 of the driver in the middle; the same command goes on, to the numbers of runs that nobody killed."""
    words = options(tiny, tmp_path / "study", recipes="bf16,sr", epochs=8)
    folder = StudyFolder(tmp_path / "study")
    cells = [Cell("unet", "500k", recipe) for recipe in ("bf16", "sr")]
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = lambda: len((folder.metrics(cells[0]) or {}).get("history", ())) >= 1  # noqa: E731
    assert eventually(lambda: begun() or process.poll() is not None, 240)
    process.kill()
    process.wait()
    pids = [folder.record(cell).pid for cell in cells]
    assert eventually(lambda: all(gone(pid) for pid in pids if pid), 60)
    left = [len((folder.metrics(cell) or {}).get("history", ())) for cell in cells]
    assert 1 <= left[0] <= 8
    again = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "2 cells are done" in again.stdout
    log = (folder.run_dir(cells[0]) / "run.log").read_text()
    assert left[0] == 8 or f"Resuming cells/{cells[0].id} after epoch" in log
    assert {folder.record(cell).status for cell in cells} == {CellStatus.DONE}
    for cell in cells:
        bare = train(tiny, tmp_path / cell.recipe, f"unet_500k_{cell.recipe}", epochs=8)
        assert plain(folder.run_dir(cell)) == plain(bare)


def test_cells_of_one_seed_are_paired(tiny: Dataset, tmp_path: Path) -> None:
    """Initial weights, order of the slices and augmentations are those of the seed, whatever the recipe."""
    recipes = {"bf16": "bf16", "sr_rht_2d": "sr_rht_2d", "chain_rule": "chain_rule"}
    changed = {name: value for name, value in TINY.items() if name != "device"}
    folder, defined = study(
        tmp_path, recipes=recipes, options=changed, dataset_dir=str(tiny.dataset_dir), manifest=str(tiny.manifest)
    )
    write_study(folder, defined, str(tiny.manifest))
    seen = {cell: _beginning(folder, arguments_of(defined, cell, "cpu")) for cell in defined.cells()}
    for seed in (0, 1):
        (weights, images, labels), *others = (seen[cell] for cell in defined.cells() if cell.seed == seed)
        assert len(images) == len(labels) == 4
        for other_weights, other_images, other_labels in others:
            assert torch.equal(weights, other_weights)
            assert all(torch.equal(a, b) for a, b in zip(images, other_images, strict=True))
            assert all(torch.equal(a, b) for a, b in zip(labels, other_labels, strict=True))
    first, other = (seen[Cell("unet", "500k", "bf16", 0, seed)] for seed in (0, 1))
    assert not torch.equal(first[0], other[0])
    assert not any(torch.equal(a, b) for a, b in zip(first[1], other[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[1][:2], first[1][2:4], strict=True))  # nor epoch by epoch


@pytest.mark.parametrize(("optimizer", "kind"), [("muon", MuonAdamW), ("sgd", torch.optim.SGD)])
def test_a_cell_trains_with_another_optimizer(tiny: Dataset, tmp_path: Path, optimizer: str, kind: type) -> None:
    folder, defined = study(
        tmp_path,
        recipes={"sr": "sr"},
        seeds=(0,),
        further={"optimizer": (optimizer,)},
        options={**{name: value for name, value in TINY.items() if name != "device"}, "epochs": 1},
        dataset_dir=str(tiny.dataset_dir),
        manifest=str(tiny.manifest),
    )
    write_study(folder, defined, str(tiny.manifest))
    (cell,) = defined.cells()
    flow = _workflow(folder, arguments_of(defined, cell, "cpu"))
    flow.initialize()
    assert type(item(flow, "optimizer")) is kind
    weights = [parameter.detach().clone() for parameter in item(flow, "network").parameters()]
    flow.run()
    flow.finalize()
    assert folder.finished(cell)
    moved = [not torch.equal(a, b) for a, b in zip(weights, item(flow, "network").parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def _workflow(folder: StudyFolder, arguments: list[str]) -> ConfigWorkflow:
    """What MONAI makes of a cell's command, not yet initialised."""
    given = {name.removeprefix("--"): value for name, value in zip(arguments[4::2], arguments[5::2], strict=True)}
    bundle = folder.path / given.pop("config_file")
    values = {name: _literal(value) for name, value in given.items()}
    values["output_dir"] = str(folder.path / given["output_dir"])
    return ConfigWorkflow(config_file=str(bundle), workflow_type="train", logging_file=False, **values)


def _beginning(
    folder: StudyFolder, arguments: list[str]
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Initial weights, and the batches of two epochs as the network sees them, of a cell's own command."""
    flow = _workflow(folder, arguments)
    flow.initialize()
    network, trainer = item(flow, "network"), item(flow, "train#trainer")
    weights = torch.cat([parameter.detach().flatten().float() for parameter in network.parameters()])
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []

    def keep(engine: Engine) -> None:
        images.append(engine.state.output["image"].clone())
        labels.append(engine.state.output["label"].clone())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    flow.run()
    flow.finalize()
    return weights, images, labels


def _literal(text: str) -> Any:
    """As fire reads a word of a command line."""
    from ast import literal_eval

    try:
        return literal_eval(text)
    except (SyntaxError, ValueError):
        return text
