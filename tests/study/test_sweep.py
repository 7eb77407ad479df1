"""What a sweep does about what its cells do; `test_study_ray.py` does it for real."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from study_cells import Scripted, definition, done, finish, study, write_metrics

from monai_fp4.bundle.template import training_config
from monai_fp4.errors import ConfigError
from monai_fp4.study.commands import arguments_of, epochs_of, write_study
from monai_fp4.study.estimate import timings
from monai_fp4.study.executor import Resources
from monai_fp4.study.layout import CellRecord, CellStatus, StudyFolder
from monai_fp4.study.progress import SweepProgress
from monai_fp4.study.sweep import Sweep
from monai_fp4.study.worker import Outcome, Task


def failed(error: str, **more: Any) -> Outcome:
    return {"status": "failed", "error": error, "seconds": 1.0, **more}  # type: ignore[typeddict-item]


def sweep(
    tmp_path: Path, executor: Scripted, *, retries: int = 2, stream: io.StringIO | None = None, **changes: Any
) -> Sweep:
    folder, defined = study(tmp_path, **changes)
    write_study(folder, defined, "phantom")
    progress = SweepProgress(stream or io.StringIO())
    return Sweep(folder, defined, defined.cells(), executor, progress, retries=retries, version="v")


def test_every_cell_is_run_once(tmp_path: Path) -> None:
    executor, said = Scripted(done), io.StringIO()
    running = sweep(tmp_path, executor, stream=said)
    result = running.run()
    ids = [cell.id for cell in running.definition.cells()]
    assert sorted(executor.started) == sorted(ids) and result.exit_code == 0
    assert [cell.id for cell in result.done] == executor.started and not result.waiting and executor.closed
    lines = said.getvalue().splitlines()
    assert len(lines) == 4 and lines[-1].startswith(f"done {executor.started[-1]} AUPRC 0.5000 in 4 s; 4 of 4 cells")
    assert not list(running.folder.path.glob(".stop*"))


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    folder, defined = study(tmp_path)
    first, second, *others = defined.cells()
    finish(folder, first)
    write_metrics(folder.run_dir(second), 2, finished=True)  # by hand, or its record was lost
    executor = Scripted(done)
    result = sweep(tmp_path, executor).run()
    assert sorted(executor.started) == sorted(cell.id for cell in others)
    assert result.exit_code == 0 and len(result.done) == 4
    assert folder.record(second).status is CellStatus.DONE


def test_what_was_cut_off_is_run_again_and_not_called_running(tmp_path: Path) -> None:
    folder, defined = study(tmp_path)
    cell = defined.cells()[0]
    write_metrics(folder.run_dir(cell), 1)
    folder.write_record(cell, CellRecord(status=CellStatus.RUNNING, attempts=1))
    seen: list[CellStatus] = []

    def look(task: Task, attempt: int) -> Outcome:
        if task["cell"] == cell.id:
            seen.append(folder.record(cell).status)
        return done(task)

    assert sweep(tmp_path, Scripted(look)).run().exit_code == 0
    assert seen == [CellStatus.WAITING]


@pytest.mark.parametrize("retries", [0, 2])
def test_a_failed_cell_is_retried_and_then_listed(tmp_path: Path, retries: int) -> None:
    broken = definition().cells()[1].id
    executor = Scripted(lambda task, n: failed(f"attempt {n}") if task["cell"] == broken else done(task))
    running = sweep(tmp_path, executor, retries=retries)
    result = running.run()
    assert executor.started.count(broken) == retries + 1 and result.exit_code == 1
    assert {cell.id: error for cell, error in result.failed.items()} == {broken: f"attempt {retries}"}
    assert len(result.done) == 3 and not result.waiting
    # The next sweep tries it anew.
    executor = Scripted(done)
    assert sweep(tmp_path, executor).run().exit_code == 0 and executor.started == [broken]


def test_a_cell_that_fails_once_is_done_in_the_end(tmp_path: Path) -> None:
    executor = Scripted(lambda task, n: done(task) if n else failed("once"))
    result = sweep(tmp_path, executor).run()
    assert result.exit_code == 0 and len(executor.started) == 8 and not result.failed


def test_a_lost_worker_uses_no_retry_up_while_the_cell_gets_on(tmp_path: Path) -> None:
    cell = definition().cells()[0]
    lost: Outcome = {"status": "lost", "error": "gone", "seconds": 1.0}

    def script(task: Task, attempt: int) -> Outcome:
        if task["cell"] != cell.id or attempt == 5:
            return done(task)
        write_metrics(Path(task["study"]) / "cells" / task["cell"], attempt + 1)
        return lost

    executor = Scripted(script)
    assert sweep(tmp_path / "on", executor, retries=0).run().exit_code == 0 and executor.started.count(cell.id) == 6
    executor = Scripted(lambda task, n: lost if task["cell"] == cell.id else done(task))
    result = sweep(tmp_path / "still", executor, retries=1).run()
    assert result.failed == {cell: "gone"} and executor.started.count(cell.id) == 2


def test_a_worker_that_was_lost_leaves_a_record_that_is_put_right(tmp_path: Path) -> None:
    cell = definition().cells()[0]

    def script(task: Task, attempt: int) -> Outcome:
        if task["cell"] != cell.id:
            return done(task)
        StudyFolder(task["study"]).write_record(cell, CellRecord(status=CellStatus.RUNNING, attempts=attempt + 1))
        return {"status": "lost", "error": "the worker was lost", "seconds": 0.0}

    running = sweep(tmp_path, Scripted(script), retries=0)
    running.run()
    record = running.folder.record(cell)
    assert (record.status, record.error) == (CellStatus.FAILED, "the worker was lost")


def test_a_full_disk_stops_the_sweep(tmp_path: Path) -> None:
    executor = Scripted(lambda task, n: failed("no space", disk_full=True), at_once=1)
    running = sweep(tmp_path, executor, seeds=tuple(range(10)))
    result = running.run()
    assert result.disk_full and result.exit_code == 1
    assert len(executor.started) == 2  # what ran and what was queued behind it
    assert len(result.failed) == 2 and len(result.waiting) == 18


def test_the_queued_cell_sees_the_stop_file(tmp_path: Path) -> None:
    seen: list[bool] = []

    def script(task: Task, attempt: int) -> Outcome:
        seen.append(Path(task["stop_file"]).exists())
        return failed("no space", disk_full=True)

    sweep(tmp_path, Scripted(script, at_once=1)).run()
    assert seen == [False, True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_cells_and_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    first, second, *_ = definition().cells()

    def script(task: Task, attempt: int) -> Outcome | None:
        if task["cell"] == first.id:
            return done(task)
        cell = next(cell for cell in definition().cells() if cell.id == task["cell"])
        StudyFolder(task["study"]).write_record(cell, CellRecord(status=CellStatus.RUNNING, attempts=1))
        os.kill(os.getpid(), number)
        return None

    executor, handler = Scripted(script, at_once=2), signal.getsignal(number)
    running = sweep(tmp_path, executor)
    result = running.run()
    assert result.exit_code == 128 + number and [cell.id for cell in result.done] == [first.id]
    assert second.id in executor.cancelled and executor.closed and len(result.waiting) == 3
    assert {running.folder.record(cell).status for cell in result.waiting} == {CellStatus.WAITING}
    assert signal.getsignal(number) is handler and not list(running.folder.path.glob(".stop*"))
    executor = Scripted(done)
    assert sweep(tmp_path, executor).run().exit_code == 0 and len(executor.started) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("way", ["swallowed", "raised anew"])  # as a destructor does, and as Ray does
def test_a_signal_is_heard_whatever_becomes_of_its_exception(tmp_path: Path, number: int, way: str) -> None:
    def script(task: Task, attempt: int) -> Outcome | None:
        try:
            if task["cell"] == definition().cells()[0].id:
                os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            if way == "raised anew":
                raise KeyboardInterrupt from None
        return None

    result = sweep(tmp_path, Scripted(script)).run()
    assert result.exit_code == 128 + number and len(result.waiting) == 4


def test_a_second_signal_ends_the_sweep_at_once(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
import test_sweep
test_sweep.Scripted.cancel = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
test_sweep.sweep(Path(sys.argv[1]), test_sweep.Scripted(lambda *_: os.kill(os.getpid(), signal.SIGINT))).run()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert ended.returncode == -signal.SIGTERM


def test_a_cell_takes_a_share_of_a_gpu_where_there_is_one(tmp_path: Path) -> None:
    executor = Scripted(done, most=Resources(8, 1))
    sweep(tmp_path, executor, scales=("500k", "15m"), seeds=(0,)).run()
    assert {needs.gpus for needs in executor.needs} == {0.25, 1.0}
    assert not any("--device" in task["arguments"] for task in executor.tasks.values())
    executor = Scripted(done)
    sweep(tmp_path / "cpu", executor, scales=("500k", "15m"), seeds=(0,)).run()
    assert {(needs.cpus, needs.gpus) for needs in executor.needs} == {(1, 0), (2, 0)}
    for task in executor.tasks.values():
        assert task["arguments"][task["arguments"].index("--device") + 1] == "cpu"


def test_more_than_a_machine_has_is_refused(tmp_path: Path) -> None:
    folder, defined = study(tmp_path)
    for asked in ({"gpus": 0.5}, {"cpus": 3}):
        with pytest.raises(ConfigError, match=f"{next(iter(asked))}_per_cell"):
            Sweep(folder, defined, defined.cells(), Scripted(done), SweepProgress(io.StringIO()), **asked)


def test_the_command_is_what_a_user_would_type() -> None:
    defined = definition(
        recipes={"2d": "2d", "sr+ends": {"base": "sr", "name": "sr+ends", "overrides": "first_and_last"}},
        further={"learning_rate": (0.01,)},
        manifest="manifest.json",
    )
    plain, variant, *_ = defined.cells()
    words = arguments_of(defined, plain, "cpu")
    assert words[:6] == ["-P", "-m", "monai_fp4", "run", "--config_file", "bundles/unet_500k_2d.json"]
    assert arguments_of(defined, plain, trusted=True)[:3] == ["-m", "monai.bundle", "run"]
    given = dict(zip(words[6::2], words[7::2], strict=True))
    assert given == {
        "--manifest": "manifest.json",
        "--dataset_dir": "data/phantom",
        "--output_dir": "cells/unet_500k/2d/learning_rate-0.01/fold0_seed0",
        "--fold": "0",
        "--seed": "0",
        "--device": "cpu",
        "--epochs": "2",
        "--image_size": "[32, 32]",
        "--learning_rate": "0.01",
    }
    words = arguments_of(defined, variant)
    recipe = words[words.index("--recipe") + 1]
    assert "model.0.*" in recipe and "'base': 'sr'" in recipe and "bundles/unet_500k_sr.json" in words
    assert "--device" not in words


def test_time_is_counted_from_cells_that_are_done(tmp_path: Path) -> None:
    folder, defined = study(tmp_path)
    first, second, third, fourth = defined.cells()
    finish(folder, first, 10.0)
    finish(folder, third, 30.0)
    finish(folder, second, 0.0)  # run by hand: no time is known
    write_metrics(folder.run_dir(fourth), 1)
    folder.write_record(fourth, replace(folder.record(first), status=CellStatus.RUNNING))
    assert timings(folder, defined) == {("unet_500k", "bf16"): [10.0, 30.0]}


def test_a_bundle_that_cells_began_with_is_kept(tmp_path: Path) -> None:
    folder, defined = study(tmp_path)
    assert write_study(folder, defined, "phantom") == []
    path = folder.bundles_path / "unet_500k_sr.json"
    path.write_text(path.read_text() + "\n")
    (note,) = write_study(folder, defined, "phantom")
    assert "unet_500k_sr.json" in note and path.read_text().endswith("\n\n")
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(ConfigError, match=r"has no unet_500k_bf16\.json"):
        write_study(StudyFolder(tmp_path / "other"), defined, "phantom", mine)


def test_an_optimizer_changes_the_bundle_s_section_and_nothing_else() -> None:
    defined = definition(recipes={"sr": "sr"}, seeds=(0,), further={"optimizer": ("adamw", "muon", "sgd")})
    words = [arguments_of(defined, cell) for cell in defined.cells()]
    given = [dict(zip(line[6::2], line[7::2], strict=True)) for line in words]
    for options in given:
        options.pop("--output_dir")
    adamw, muon, sgd = given
    assert {name: value for name, value in muon.items() if name not in adamw} == {
        "--optimizer#_target_": "monai_fp4.optimizers.MuonAdamW",
        "--optimizer#params": "$@network.named_parameters()",
    }
    assert not any("optimizer" in name for name in adamw)
    assert sgd["--optimizer#_target_"] == "torch.optim.SGD" and float(sgd["--learning_rate"]) == 0.003 * 30
    assert [cell.id for cell in defined.cells()][1] == "unet_500k/sr/optimizer-muon/fold0_seed0"


def test_the_rate_of_sgd_follows_from_the_bundle_of_the_study(tmp_path: Path) -> None:
    folder, defined = study(tmp_path, further={"optimizer": ("sgd",)})
    write_study(folder, defined, "phantom")
    cell = defined.cells()[0]
    path = folder.bundles_path / f"{defined.bundle(cell)}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": 0.01}))
    executor = Scripted(done)
    seen: list[list[str]] = []
    submit = executor.submit
    executor.submit = lambda task, needs: (seen.append(task["arguments"]), submit(task, needs))[1]  # type: ignore[method-assign]
    Sweep(folder, defined, [cell], executor, SweepProgress(io.StringIO())).run()
    assert seen[0][seen[0].index("--learning_rate") + 1] == "0.3"


def test_networks_and_recipes_without_shipped_bundles_have_theirs_in_the_study(tmp_path: Path) -> None:
    recipes = {"forward_rht": "forward_rht", "bf16": "bf16"}
    folder, defined = study(tmp_path, archs=("paper_cnn",), scales=("500k",), recipes=recipes)
    write_study(folder, defined, "phantom")
    for cell in defined.cells():
        config = json.loads((folder.bundles_path / f"{defined.bundle(cell)}.json").read_text())
        assert (config["arch"], config["recipe"]) == ("paper_cnn", cell.recipe)


def test_a_protocol_lies_over_every_bundle(tmp_path: Path) -> None:
    folder, defined = study(tmp_path, archs=("paper_cnn",), folds=("holdout",), protocol="paper", options={})
    write_study(folder, defined, "lgg_paper")
    cell = defined.cells()[0]
    words = arguments_of(defined, cell, folder=folder)
    files = ["bundles/paper_cnn_500k_bf16.json", "bundles/protocols/paper.json"]
    assert words[words.index("--config_file") + 1] == repr(files)
    assert all((folder.path / name).is_file() for name in files)
    assert words[words.index("--fold") + 1] == "holdout" and "--learning_rate" not in words
    assert epochs_of(folder, defined, cell) == 100
    assert epochs_of(folder, replace(defined, options={"epochs": 15}), cell) == 15
    rate = replace(defined, protocol="lgg", further={"optimizer": ("sgd",)})
    words = arguments_of(rate, rate.cells()[0])
    assert (
        float(words[words.index("--learning_rate") + 1])
        == 30 * training_config("paper_cnn", "500k", "bf16")["learning_rate"]
    )
