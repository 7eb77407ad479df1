"""How a training ends before its time, with real processes and real signals."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from study_cells import eventually
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import BUNDLES, REPOSITORY, TINY, Dataset, contents, item, metrics, refusal, train, workflow

from monai_fp4.bundle import RunFolder
from monai_fp4.cli import main
from monai_fp4.errors import ConfigError
from monai_fp4.handlers.early_end import EarlyEnd


def start(dataset: Dataset, folder: Path, launcher: Sequence[str] = (), **changes: Any) -> subprocess.Popen[str]:
    """The command line of a run that would take long, as the leader of a group of processes."""
    options = TINY | dataset.options | {"epochs": 500, "val_interval": 500, "output_dir": str(folder)} | changes
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen(
        [
            sys.executable,
            *launcher,
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            str(BUNDLES / "unet_500k_bf16.json"),
            *words,
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("number", "workers", "whole_group"),
    [(signal.SIGINT, 2, True), (signal.SIGTERM, 2, True), (signal.SIGTERM, 0, False)],
)
def test_a_signal_ends_a_run_after_its_step(
    tiny: Dataset, tmp_path: Path, number: signal.Signals, workers: int, whole_group: bool
) -> None:
    process = start(tiny, tmp_path / "run", num_workers=workers)
    try:
        assert eventually((tmp_path / "run" / "checkpoint.previous.pt").exists, 120)  # it has trained two epochs
        (os.killpg if whole_group else os.kill)(process.pid, number)
        out, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, said
    assert f"ended by {number.name} after step " in said and "the same command goes on" in said
    assert "Traceback" not in said and "Finished" not in out
    epoch = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epoch"]
    assert f"checkpoint.pt keeps epoch {epoch};" in said
    assert not metrics(tmp_path / "run")["finished"] and not (tmp_path / "run" / ".lock").exists()
    assert not [path for path in (tmp_path / "run").iterdir() if path.suffix == ".tmp"]


def test_sigterm_before_the_first_step_ends_it_at_once_with_a_sentence(tiny: Dataset, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; import time\n"
        "from tiny_runs import Dataset, workflow; from monai_fp4.bundle import session\n"
        "def stay(*_):\n    print('staying', flush=True)\n    time.sleep(300)\n"
        "session.prepare_data = stay\n"
        "import monai.bundle; sys.argv[0] = monai.bundle.__path__[0] + '/__main__.py'; del sys.argv[5:]\n"
        "workflow(Dataset(Path(sys.argv[2]), Path(sys.argv[3])), Path(sys.argv[4])).initialize()\n"
    )
    folder = tmp_path / "run"
    words = [str(REPOSITORY / "tests"), str(tiny.dataset_dir), str(tiny.manifest), str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None and any(line == "staying\n" for line in process.stdout)
        assert (folder / ".lock").exists()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "ended by SIGTERM; the same command starts again" in said and "Traceback" not in said
    assert not folder.exists()


def test_a_second_signal_ends_it_at_once(tiny: Dataset, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; import time\n"
        "from ignite.engine import Events; from tiny_runs import Dataset, item, workflow\n"
        "flow = workflow(Dataset(Path(sys.argv[2]), Path(sys.argv[3])), Path(sys.argv[4]))\n"
        "flow.initialize()\n"
        "def stay(_):\n    print('staying', flush=True)\n    time.sleep(300)\n"
        "item(flow, 'train#trainer').add_event_handler(Events.ITERATION_STARTED(once=2), stay)\n"
        "flow.run()\n"
    )
    words = [str(REPOSITORY / "tests"), str(tiny.dataset_dir), str(tiny.manifest), str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        assert any("staying" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        assert any("SIGTERM: ending after this step; a second one ends at once" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
    finally:
        process.kill()
    train(tiny, tmp_path / "run")  # nobody holds the folder


def _stumble(engine: Engine) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "how", ["left before its first step", "finished", "refused", "failed", "cut short", "in a thread"]
)
def test_a_process_has_its_own_handlers_back_after_a_run(tiny: Dataset, tmp_path: Path, how: str, own: bool) -> None:
    """As in a notebook, in a worker of Ray and here."""
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if own:
            for number in found:
                signal.signal(number, lambda *_: None)
        before = [signal.getsignal(number) for number in found]
        flow = workflow(tiny, tmp_path / "run", epochs=2, **({"fold": 99} if how == "refused" else {}))

        def go() -> None:
            flow.initialize()
            if how != "left before its first step":
                reaction = {"failed": _stumble, "cut short": Engine.terminate}.get(how, lambda _: None)
                item(flow, "train#trainer").add_event_handler(Events.ITERATION_STARTED(once=3), reaction)
                flow.run()
                flow.finalize()

        if how == "in a thread":
            with ThreadPoolExecutor(1) as pool:
                pool.submit(go).result()
        else:
            with pytest.raises(RuntimeError) if how in ("refused", "failed") else nullcontext():
                go()
        assert [signal.getsignal(number) for number in found] == before
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)


def test_a_command_has_its_handlers_back_after_a_run(tiny: Dataset, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    options = TINY | tiny.options | {"epochs": 1, "output_dir": str(tmp_path / "run"), "fold": 99}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["run", "--config_file", str(BUNDLES / "unet_500k_bf16.json"), *words]) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_during_validation_ends_the_run_after_the_patient(
    tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = workflow(tiny, tmp_path / "run")
    flow.initialize()
    evaluator = item(flow, "validate#evaluator")
    evaluator.add_event_handler(Events.ITERATION_STARTED(once=1), lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        flow.run()
    assert ended.value.code == 128 + signal.SIGTERM and evaluator.state.iteration == 1
    assert "ended by SIGTERM after step 2 (epoch 1); no epoch was finished before" in capsys.readouterr().err
    assert metrics(train(tiny, tmp_path / "run"))["finished"] is True


def test_a_run_that_ignores_ctrl_c_in_the_background_goes_on_to(tiny: Dataset, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        flow = workflow(tiny, tmp_path / "run")
        flow.initialize()
        trainer = item(flow, "train#trainer")
        trainer.add_event_handler(Events.ITERATION_STARTED(once=2), lambda _: os.kill(os.getpid(), signal.SIGINT))
        flow.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert metrics(tmp_path / "run")["finished"] is True


def _raise(error: Callable[[], Exception]) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error()

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_tensorboard_finds_full_is_one_sentence(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int
) -> None:
    flow = workflow(tiny, tmp_path / "run", epochs=3)
    flow.initialize()
    writer, trainer = item(flow, "summary_writer"), item(flow, "train#trainer")
    file = writer._get_file_writer().event_writer._general_file_writer
    fail = _raise(lambda: OSError(code, os.strerror(code)))
    trainer.add_event_handler(Events.ITERATION_STARTED(once=4), lambda _: monkeypatch.setattr(file, "write", fail))
    error = refusal(flow.run)
    assert isinstance(error, ConfigError)
    assert f"{tmp_path / 'run'} must be writable, but the system says '{os.strerror(code)}'" in str(error)
    assert "Traceback" not in capfd.readouterr().err, "its thread does not print another one"
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epoch"] == 1
    monkeypatch.undo()
    assert metrics(train(tiny, tmp_path / "run", epochs=3))["finished"] is True


@pytest.mark.parametrize("removed", [False, True], ids=["moved", "removed"])
def test_a_run_folder_that_goes_away_is_one_sentence(tiny: Dataset, tmp_path: Path, removed: bool) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    flow = workflow(tiny, run, epochs=3)
    flow.initialize()

    def go_away(_engine: Any) -> None:
        run.rename(elsewhere)

    item(flow, "train#trainer").add_event_handler(Events.ITERATION_STARTED(once=4), go_away)
    error = refusal(flow.run)
    assert isinstance(error, ConfigError)
    assert re.match(rf"{run}(/\S+)? must be writable, but the system says 'No such file or directory'", str(error))
    again = run if removed else elsewhere
    assert metrics(train(tiny, again, epochs=3))["finished"] is True
    whole = torch.load(train(tiny, tmp_path / "whole", epochs=3) / "model.pt", weights_only=True)
    weights = torch.load(again / "model.pt", weights_only=True)
    assert all(torch.equal(weights[name], value) for name, value in whole.items())


def test_a_run_whose_folder_was_exchanged_leaves_the_other_alone(tiny: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flow, other = workflow(tiny, run, epochs=3), workflow(tiny, run, seed=1)
    flow.initialize()

    def exchange(_engine: Any) -> None:
        item(flow, "session").run_folder.settle()  # or the thread that flushes finds it gone
        run.rename(tmp_path / "elsewhere")
        other.initialize()

    item(flow, "train#trainer").add_event_handler(Events.ITERATION_STARTED(once=4), exchange)
    # TensorBoard's thread may have found it gone before the other run stood there.
    assert re.match(rf"{run} must (stay in its place while a run works in it|be writable)", str(refusal(flow.run)))
    assert not {"checkpoint.pt", "health.json", "metrics.json"} & set(contents(run)), "nothing was written into it"
    assert "one run at a time" in str(refusal(workflow(tiny, run, seed=1).initialize)), "it is still locked"
    other.run()
    assert metrics(run)["finished"] and RunFolder(run).read_config()["seed"] == 1
    assert metrics(train(tiny, tmp_path / "elsewhere", epochs=3))["finished"]


def test_a_training_that_is_run_again_takes_its_folder_again(tiny: Dataset, tmp_path: Path) -> None:
    flow = workflow(tiny, tmp_path / "run", epochs=3)
    flow.initialize()
    trainer, seen = item(flow, "train#trainer"), []

    def fail(_engine: Any) -> None:
        raise ZeroDivisionError

    def start_another(_engine: Any) -> None:
        seen.append(str(refusal(workflow(tiny, tmp_path / "run", epochs=3).initialize)))

    with trainer.add_event_handler(Events.ITERATION_STARTED(once=4), fail), pytest.raises(ZeroDivisionError):
        trainer.run()
    trainer.add_event_handler(Events.EPOCH_STARTED(once=3), start_another)
    trainer.run()  # which Ignite passes over after a failure
    trainer.run()
    assert len(seen) == 1 and "one run at a time may work in" in seen[0]
    assert metrics(tmp_path / "run")["finished"] and not (tmp_path / "run" / ".lock").exists()


def test_a_folder_that_tensorboard_cannot_write_is_one_sentence(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_fp4.bundle.session.SummaryWriter", _raise(lambda: OSError(errno.EROFS, "Read-only")))
    flow = workflow(tiny, tmp_path / "run")
    flow.initialize()
    assert "must be writable, but the system says 'Read-only'" in str(refusal(flow.run))


@pytest.mark.parametrize("clock", [None, (4e9, 1.7e9, 0.0, 60.0)], ids=["goes on", "jumps back"])
def test_steps_are_not_doubled_in_tensorboard_by_a_resume(
    tiny: Dataset, tmp_path: Path, clock: Sequence[float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pull_the_plug(_engine: Any) -> None:
        raise KeyboardInterrupt

    # Of two steps an epoch: before the first checkpoint, after it, and after the second validation.
    ends = [
        ("train#trainer", Events.ITERATION_COMPLETED(once=1)),
        ("train#trainer", Events.ITERATION_COMPLETED(once=3)),
        ("validate#evaluator", Events.COMPLETED),
    ]
    times = iter(clock or ())
    for engine, event in ends:
        if clock:
            monkeypatch.setattr("time.time", partial(float, next(times)))
        flow = workflow(tiny, tmp_path / "run")
        flow.initialize()
        item(flow, engine).add_event_handler(event, pull_the_plug)
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            flow.run()
        item(flow, "summary_writer").close()  # which writes all that it was given
    if clock:
        monkeypatch.setattr("time.time", partial(float, next(times)))
    train(tiny, tmp_path / "run")
    seen = EventAccumulator(str(tmp_path / "run"), purge_orphaned_data=False)
    seen.Reload()
    assert {"loss/train", "loss/train_step", "metrics/auprc", "training/learning_rate"} <= set(seen.Tags()["scalars"])
    for tag in seen.Tags()["scalars"]:
        steps = sorted(event.step for event in seen.Scalars(tag))
        assert steps == ([1, 2, 3, 4] if tag in ("loss/train_step", "training/learning_rate") else [1, 2]), tag


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of torchrun in /proc")
def test_a_signal_to_one_of_two_processes_ends_both_after_the_same_step(tiny: Dataset, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29519"]
    process = start(tiny, tmp_path / "run", launcher=launcher)
    try:
        assert eventually((tmp_path / "run" / "checkpoint.previous.pt").exists, 200)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        rank = {int(_variable(child, "RANK") or -1): int(child) for child in children}
        os.kill(rank[1], signal.SIGTERM)
        out, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0 and "Finished" not in out
    assert said.count("ended by SIGTERM after step ") == 1 and "exitcode: 143)" in said, said  # of whichever ends first
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("error", [SystemExit(143), RuntimeError("connection reset by peer")])
def test_whoever_ends_by_a_signal_leaves_the_process_group(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A partner that was quicker has broken the exchange, and gloo aborts a process that ends without leaving."""
    left: list[bool] = []
    folder = SimpleNamespace(settle=lambda: None)
    session: Any = SimpleNamespace(rank=1, run_folder=folder, release=lambda: None, close=lambda: left.append(True))
    handler = EarlyEnd(session)
    handler.number = signal.SIGTERM
    engine: Any = SimpleNamespace(state=SimpleNamespace(iteration=1, epoch=1))
    ended = handler._failed(engine, error) or error
    assert isinstance(ended, SystemExit) and ended.code == 143
    assert left == [True]


def _variable(process: str, name: str) -> str:
    pairs = (pair.split("=", 1) for pair in Path(f"/proc/{process}/environ").read_text().split("\0") if pair)
    return dict(pairs).get(name, "")
