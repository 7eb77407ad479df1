"""`make bench`: a smoke run of its cheap parts, failures that are reported, and figures that are read as they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import imported

NAMES = ("common", "ratios", "run", "picture", "result_tables", "speed_tables")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts, imported as they import each other."""
    with imported(NAMES) as modules:
        yield modules


MACHINE = {"name": "a CPU", "cores": 2, "threads": 1, "torch": "9.9", "commit": "abc1234"}


def run_facts(load: float | None) -> dict[str, Any]:
    return {"date": "2026-01-02T03:04:05+00:00", "seconds": 1.0, "load_average": {"before": load, "start": 1, "end": 1}}


def quantize_figures(load: float | None = 0.2) -> dict[str, Any]:
    def entry(ms: float, **more: str) -> dict[str, Any]:
        return {"ms": ms, "gb_per_s": 32 / ms, "times_clone": ms / 2, **more}

    return {
        "protocol": {"shape": [4096, 1024]},
        "machine": MACHINE,
        "run": run_facts(load),
        "results": {
            "x.clone()": entry(2.0),
            "ours, rows, nearest": entry(4.0),
            "plain torch, rows, nearest": entry(40.0),
            "torch.compile, magic numbers": entry(3.0),
            "torchao": entry(120.0, version="1.2"),
            "fouroversix": {"absent": "not installed"},
        },
    }


def step_figures() -> dict[str, Any]:
    cells = [
        {"arch": arch, "bundle": f"{arch}_15m_{recipe}", "recipe": recipe + how, "ratio": ratio, "median": ratio}
        for arch, scale in (("unet", 1.0), ("swin", 1.1))
        for recipe, how, ratio in (("bf16", "", 1.0), ("sr_2d", "", 1.5 * scale), ("sr_2d", ", plain torch", 4 * scale))
    ]
    protocol = {"scale": "15m", "image_size": [256, 256], "batch_size": 2, "steps": 3, "device": "cpu"}
    return {"protocol": protocol, "machine": MACHINE, "run": run_facts(3.5), "cells": cells}


def network_figures() -> dict[str, Any]:
    def cell(contestant: str, rate: float, ratio: float) -> dict[str, Any]:
        own = {"arch": "vit", "scale": "15m", "contestant": contestant}
        return own | {"images_per_second": rate, "speed_of_ours": ratio}

    cells = [cell("ours", 4.0, 1.0), cell("stock_bf16", 5.0, 0.8), cell("monai_bf16", 1.0, 4.0)]
    return {"protocol": {"image_size": [256, 256], "batch_size": 2}, "machine": MACHINE, "cells": cells}


def auprc_figures() -> dict[str, Any]:
    def row(seconds: float) -> dict[str, Any]:
        return {"seconds": seconds, "ratio_to_compute_auprc": seconds / 0.1, "error": 1e-9, "auprc": 0.5}

    peers = {
        "monai_fp4.metrics.compute_auprc": row(0.1),
        "sklearn.metrics.average_precision_score": row(0.9),
        "monai.metrics.compute_average_precision": row(7.0),
        "torchmetrics": {"absent": "not installed"},
    }
    return {"machine": MACHINE, "run": run_facts(0.0), "comparison": {"pixels": 10**7, "peers": peers}}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    figures = {
        "quantize": quantize_figures(),
        "training_step": step_figures(),
        "networks": network_figures(),
        "auprc": auprc_figures(),
    }
    for name, content in figures.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_a_smoke_run_writes_whole_files_with_the_machine_and_its_load(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    status = scripts["run"].main(["--quick", "--parts", "auprc", "--output", str(tmp_path)])
    assert status == 0
    names = {"auprc.json", "speed-light.svg", "speed-dark.svg"}
    assert {path.name for path in tmp_path.iterdir()} == names
    content = json.loads((tmp_path / "auprc.json").read_text())
    assert {"name", "cores", "threads", "torch", "commit", "gpus", "compiled_kernels"} <= set(content["machine"])
    assert {"date", "seconds", "load_average", "cores_busy_with_other_processes"} == set(content["run"])
    assert set(content["run"]["load_average"]) == {"before", "start", "end"}
    assert content["peers"]["scikit-learn"][0].isdigit()
    peers = content["comparison"]["peers"]
    assert peers["monai.metrics.compute_average_precision"]["error"] < 1e-4
    assert peers["monai_fp4.metrics.compute_auprc"]["error"] < 1e-12


def test_a_part_that_fails_is_reported_and_leaves_its_old_figures(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = scripts["run"]
    (tmp_path / "auprc.json").write_text(json.dumps(auprc_figures()))
    half = "import sys; open(sys.argv[-1], 'w').write('{}'); sys.exit(3)"
    scripted = {
        "auprc": [sys.executable, "-c", half],
        "quantize": [sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"],
    }
    monkeypatch.setattr(run, "command", lambda name, options, output: [*scripted[name], str(output)])
    assert run.main(["--quick", "--parts", "auprc", "quantize", "--output", str(tmp_path)]) == 1
    assert (tmp_path / "ran").exists()
    assert json.loads((tmp_path / "auprc.json").read_text()) == auprc_figures()
    error = capfd.readouterr().err
    assert "FAILED: auprc: exit status 3" in error
    assert "FAILED: quantize: wrote no figures" in error


def test_a_part_that_hangs_is_stopped(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(scripts["run"], "command", lambda *_: sleep)
    arguments = ["--quick", "--parts", "auprc", "--timeout", "0.5", "--output", str(tmp_path)]
    assert scripts["run"].main(arguments) == 1
    assert "FAILED: auprc: stopped after 0 s" in capfd.readouterr().err


def test_a_part_that_does_not_exist_is_refused(
    scripts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scripts["run"].main(["--parts", "quantise"])
    assert "unknown parts quantise: known are quantize, training_step" in capsys.readouterr().err


def test_without_a_gpu_the_cuda_kernels_are_said_not_to_be_measured(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--device", "cpu", "--parts", "cuda_kernels", "--output", str(tmp_path)]
    assert scripts["run"].main(arguments) == 0
    assert "cuda_kernels: not measured, there is no CUDA GPU here" in capsys.readouterr().out


def test_ratios_are_held_against_their_goals(scripts: dict[str, ModuleType], results: Path) -> None:
    ratios = {ratio.name: ratio for ratio in scripts["ratios"].collect(results)}
    found = {name: (round(ratio.value, 6), ratio.met) for name, ratio in ratios.items()}
    assert found == {
        "quantize: ours, rows, nearest / clone": (2.0, True),
        "quantize: plain torch, rows, nearest / ours": (10.0, True),
        "quantize: torch.compile, magic numbers / ours": (0.75, False),
        "quantize: torchao / ours": (30.0, True),
        "step: unet_15m, sr_2d / bf16": (1.5, True),
        "step: unet_15m, sr_2d, plain torch / bf16": (4.0, True),
        "step: swin_15m, sr_2d / bf16": (1.65, False),
        "step: swin_15m, sr_2d, plain torch / bf16": (4.4, True),
        "images/s: vit_15m, ours / stock_bf16": (0.8, False),
        "images/s: vit_15m, ours / monai_bf16": (4.0, True),
        "AUPRC: sklearn.metrics / ours": (9.0, False),
        "AUPRC: monai.metrics / ours": (70.0, True),
    }
    assert ratios["step: swin_15m, sr_2d / bf16"].goal_text() == "at most 1.6, MISSED"
    assert ratios["AUPRC: monai.metrics / ours"].goal_text() == "at least 20"


@pytest.mark.parametrize("missing", [None, "quantize", "networks"])
def test_pictures_are_the_same_each_time_and_do_without_a_file(
    scripts: dict[str, ModuleType], results: Path, missing: str | None
) -> None:
    if missing:
        (results / f"{missing}.json").unlink()
    drawn = [path.read_bytes() for path in scripts["picture"].draw(results, results / "one")]
    again = [path.read_bytes() for path in scripts["picture"].draw(results, results / "two")]
    assert drawn == again
    assert drawn[0] != drawn[1], "light and dark"


@pytest.fixture
def tables(scripts: dict[str, ModuleType], results: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(scripts["result_tables"], "RESULTS", results)
    return dict(scripts["speed_tables"].TABLES)


def test_tables_hold_the_figures_and_the_absent_peers(tables: dict[str, Any]) -> None:
    quantizers = tables["quantize"]().splitlines()
    assert "| torchao 1.2 | 120.0 | 0.27 | 60.0 | 30.0 |" in quantizers
    assert "| fouroversix | not installed |  |  |  |" in quantizers
    steps = tables["training_step"]().splitlines()
    assert steps[0] == "| Recipe | `unet_15m` | `swin_15m` |"
    assert "| `sr_2d` | 1.50 | 1.65 |" in steps
    assert "| `sr_2d`, plain torch | 4.00 | 4.40 |" in steps
    assert "| `vit_15m_bf16` | 4.00 | 5.00 (x 0.80) |  | 1.00 (x 4.00) |" in tables["speed_of_networks"]().splitlines()
    scores = tables["auprc"]().splitlines()
    assert "| monai.metrics.compute_average_precision | 7.000 | 70.0 | 1e-09 |" in scores
    assert "| torchmetrics | not installed |  |  |" in scores


def test_the_table_of_reading_holds_both_and_their_spread(tables: dict[str, Any], results: Path) -> None:
    def row(*rounds: float) -> dict[str, Any]:
        return {"seconds_a_patient": sorted(rounds)[1], "rounds": rounds}

    figures = {"patients": 4, "machine": MACHINE, "run": run_facts(5.0)}
    figures["protocol"] = {"manifest": "lgg", "image_size": [128, 128], "repeats": 3}
    figures["reading"] = {"ours": row(0.07, 0.06, 0.09), "MONAI": row(0.3, 0.2, 0.4)}
    (results / "reading.json").write_text(json.dumps(figures))
    table = tables["reading"]()
    assert "| Ours, hashes checked | 70 | 60 | 90 |" in table.splitlines()
    assert "| `CacheDataset` of MONAI's transforms | 300 | 200 | 400 |" in table.splitlines()
    assert "4 patients of `lgg`, to 128 x 128" in table and "other processes disturbed this run" in table


def test_a_table_says_that_its_run_was_disturbed(tables: dict[str, Any]) -> None:
    assert "load average before 3.5, so other processes disturbed this run" in tables["training_step"]()
    assert "load average before 0.2. From `benchmarks/results/quantize.json`" in tables["quantize"]()
    assert "the load of the machine was not recorded" in tables["speed_of_networks"]()


def test_a_file_that_is_missing_gives_no_figures(tables: dict[str, Any]) -> None:
    assert tables["input_wait"]() == "Not run."
    assert tables["cuda_kernels"]() == "Not run."


def test_a_results_file_is_replaced_in_one_step(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    scripts["common"].write_whole(path, "before")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        scripts["common"].write_whole(path, "after")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("x.json", "before")]


def test_a_loaded_machine_is_warned_of(scripts: dict[str, ModuleType]) -> None:
    with pytest.warns(UserWarning, match="load average is 3.2, above 1"):
        scripts["common"].warn_of(3.2)


def test_versions_of_what_is_absent(scripts: dict[str, ModuleType]) -> None:
    found = scripts["common"].versions(["torch", "no-such-package"])
    assert found["no-such-package"] == "not installed"
    assert found["torch"][0].isdigit()
