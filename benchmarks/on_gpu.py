"""Everything that is to be checked and measured on a machine with a CUDA GPU, in one command.

    python benchmarks/on_gpu.py --out results/                 # all phases, half an hour at most
    python benchmarks/on_gpu.py --out results/ --budget_s 540 --only environment correctness kernels
    python benchmarks/on_gpu.py --out results/ --quick --device cpu      # that it runs, where there is no GPU

Phases come in the order of their worth: first whether the numbers are right, then how fast they come, last real
trainings, ours and the paper's. Each runs in a process of its own with a time limit, so one that fails, hangs or
crashes the driver loses nothing of the others. `on_gpu.json` is written anew after every phase and holds everything:
what became of each, its figures and the end of its log. The exit status is 1 if any phase failed; one that there was no
time for, or not enough of it, has not failed.

docs/howto/gpu-session.md has the whole procedure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import CODE_VERSION, ROOT, commit, default_device, write_whole

HERE = Path(__file__).resolve().parent
LEAST_SECONDS = 10.0
"""A phase is not begun with less time left."""
LOG_LINES = 60
"""Of each phase's log, kept in the summary."""
CUDA_TESTS = ("kernels_triton", "kernels_triton_gemm", "layers_cuda", "scores_device")

Arguments = tuple[str, ...]


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        what: in a few words.
        limit: seconds that it may take.
        command: what follows ``python``; of the options and the JSON file that it is to write.
        needs_gpu: nothing of it means anything on a CPU, but that it runs (``--quick``).
    """

    what: str
    limit: float
    command: Callable[[argparse.Namespace, Path], Sequence[str]]
    needs_gpu: bool = False


def script(
    name: str, full: Arguments = (), quick: Arguments = (), *, device: bool = True
) -> Callable[[argparse.Namespace, Path], Sequence[str]]:
    """The command of a script of this folder, with its options for a whole and for a quick run."""

    def command(options: argparse.Namespace, output: Path) -> Sequence[str]:
        own = [str(HERE / f"{name}.py"), *(quick if options.quick else full), "--output", str(output)]
        return [*own, "--device", options.device] if device else own

    return command


def checks(part: str) -> Callable[[argparse.Namespace, Path], Sequence[str]]:
    """The command of a part of `gpu_checks`."""
    return script("gpu_checks", (part,), (part, "--quick"))


def tests(options: argparse.Namespace, output: Path) -> Sequence[str]:
    """The repository's tests of what runs on a GPU."""
    names = CUDA_TESTS[-1:] if options.quick else CUDA_TESTS
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in names]
    return [*script("gpu_checks", ("tests",), ("tests",))(options, output), "--files", *files]


def data_of(options: argparse.Namespace) -> Arguments:
    """The data at hand."""
    folder = options.dataset_dir or ROOT / "data" / "phantom"
    return ("--manifest", str(options.manifest), "--dataset_dir", str(folder))


def trainings(options: argparse.Namespace, output: Path) -> Sequence[str]:
    """Cells of the study, on the data that are at hand."""
    cells = ("--cells", *options.cells) if options.cells else ()
    quick = ("--image_size", "32", "32", "--epochs", "1", "--cells", "unet_500k_bf16")
    return script("gpu_trainings", (*data_of(options), *cells), (*data_of(options), *quick))(options, output)


def paper(options: argparse.Namespace, output: Path) -> Sequence[str]:
    """The paper's protocol, on a manifest that has its splits; the study folders are kept beside the figures."""
    excerpt = [f"--{name}={value}" for name, value in (("epochs", options.paper_epochs),) if value]
    own = ("--studies", str(options.out / "studies"), *data_of(options))
    return script("gpu_paper", (*own, *excerpt), (*own, "--quick"))(options, output)


def waiting(options: argparse.Namespace, output: Path) -> Sequence[str]:
    """The waiting for data, on the data that are at hand."""
    full = ("--image_size", "256", "256", "--epochs", "3", "--steps", "30", "--repeats", "2")
    quick = ("--arch", "unet", "--patients", "2", "--image_size", "32", "32", "--steps", "1", "--repeats", "1")
    return script("input", (*full, *data_of(options)), (*quick, *data_of(options)))(options, output)


_TINY = ("--image_size", "32", "32", "--batch_size", "1")
_LARGE = ("--image_size", "256", "256", "--batch_size", "16")
_QUICK_NETWORK = ("--arch", "unet", "--steps", "1", *_TINY)
_QUICK = {
    "compile": ("--arch", "unet", "--scale", "500k", "--recipes", "sr", *_TINY),
    "steps": (*_QUICK_NETWORK, "--scale", "500k", "--recipes", "sr"),
    "networks": (*_QUICK_NETWORK, "--scales", "500k"),
    "auprc": ("--pixels", "10000", "--repeats", "1", "--stream", "40000", "--piece", "10000"),
    "seeds": ("--counts", "2", "--recipes", "bf16", "--steps", "1", *_TINY),
}
_FULL = {
    "compile": _LARGE,
    "steps": (*_LARGE, "--steps", "10"),
    "networks": (*_LARGE, "--steps", "15"),
    "auprc": ("--piece", "20000000", "--repeats", "3"),
    "seeds": (),
}


def measured(phase: str, name: str) -> Callable[[argparse.Namespace, Path], Sequence[str]]:
    """The command of a benchmark."""
    return script(name, _FULL[phase], _QUICK[phase])


PHASES: Mapping[str, Phase] = {
    "environment": Phase("the device, the versions, what doctor says", 90, checks("environment")),
    "correctness": Phase("kernels, layers and training steps beside plain torch", 400, checks("correctness")),
    "kernels": Phase(
        "bandwidth of the quantizers, speed of the products",
        240,
        script("cuda_kernels", (), ("--small",), device=False),
        needs_gpu=True,
    ),
    "compile": Phase("the kernels of all training steps, many at a time", 240, measured("compile", "warm_kernels")),
    "steps": Phase("a training step of every recipe over BF16", 300, measured("steps", "training_step")),
    "networks": Phase("images a second beside MONAI's networks", 200, measured("networks", "networks")),
    "auprc": Phase("AUPRC beside its peers, and of a billion pixels", 150, measured("auprc", "auprc")),
    "input": Phase("how long a training waits for data", 150, waiting),
    "seeds": Phase("several seeds at once on one GPU", 240, measured("seeds", "seeds_together")),
    "tests": Phase("the repository's own tests of GPU code", 300, tests),
    "trainings": Phase("cells of the study", 900, trainings),
    "paper": Phase("the paper's own protocol: its table, then its recipes", 900, paper),
}


def run_phase(name: str, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run one phase to its end or its limit; says what became of it, with its figures and the end of its log."""
    phase, output, log = PHASES[name], options.out / f"{name}.json", options.out / f"{name}.log"
    output.unlink(missing_ok=True)
    # The package may not be installed there: its checkout is enough.
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", CODE_VERSION: options.version}
    begin = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *phase.command(options, output)],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):  # with whatever it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result: dict[str, Any] = {"what": phase.what, "seconds": round(time.perf_counter() - begin, 1)}
    with suppress(OSError, ValueError):
        result["figures"] = json.loads(output.read_text(encoding="utf-8"))
    if code is None and limit < phase.limit:
        result |= {
            "status": "cut off",
            "error": f"the time was over after {limit:.0f} s; what there was by then is kept",
        }
    elif code is None:
        result |= {"status": "failed", "error": f"stopped after {limit:.0f} s; what it had measured by then is kept"}
    elif code:
        result |= {"status": "failed", "error": f"exit status {code}"}
    elif "figures" not in result:
        result |= {"status": "failed", "error": "it wrote no figures"}
    else:
        result["status"] = "done"
    result["log"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return result


def chosen(options: argparse.Namespace) -> list[str]:
    """The phases to run, in their order."""
    return [name for name in PHASES if not options.only or name in options.only]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for each phase's JSON and log")
    parser.add_argument("--summary", type=Path, help="the one file with everything (default: OUT/on_gpu.json)")
    parser.add_argument("--budget_s", type=float, default=1750.0, help="seconds for all phases together")
    parser.add_argument("--only", nargs="+", choices=list(PHASES), metavar="PHASE", help=f"of {', '.join(PHASES)}")
    parser.add_argument("--quick", action="store_true", help="small inputs: that it runs, no figures worth keeping")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--manifest", default="phantom", help="data of the phases input and trainings")
    parser.add_argument("--dataset_dir", type=Path, help="where they are; the phantom is written if it is not there")
    parser.add_argument(
        "--cells", nargs="+", metavar="BUNDLE", help="bundles of the phase trainings (default: its own)"
    )
    parser.add_argument("--paper_epochs", type=int, help="of the phase paper: an excerpt (default: its hundred)")
    parser.add_argument("--version", default=commit(), help="of the code, where this folder is no git checkout")
    options = parser.parse_args(arguments)
    if not options.version:
        parser.error(f"{ROOT} is no git checkout that git will read: say with --version which commit it is")
    if str(options.manifest).endswith(".json") and not Path(options.manifest).is_file():
        parser.error(f"--manifest: expected the name of a data set or a file, found no file {options.manifest}")
    options.out.mkdir(parents=True, exist_ok=True)
    options.out = options.out.resolve()
    options.summary = options.summary or options.out / "on_gpu.json"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the phases; returns the exit status."""
    options = parse(arguments)
    until = time.perf_counter() + options.budget_s
    summary: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": options.version,
        "device": options.device,
        "quick": options.quick,
        "phases": {},
    }
    for name in chosen(options):
        left = until - time.perf_counter()
        if PHASES[name].needs_gpu and not options.quick and not options.device.startswith("cuda"):
            summary["phases"][name] = {"what": PHASES[name].what, "status": "not run", "error": "it needs a CUDA GPU"}
        elif left < LEAST_SECONDS:
            summary["phases"][name] = {"what": PHASES[name].what, "status": "not run", "error": "no time was left"}
        else:
            print(f"== {name}: {PHASES[name].what}", flush=True)
            summary["phases"][name] = run_phase(name, options, min(left, PHASES[name].limit))
            for line in summary["phases"][name]["log"][-25:]:
                print(f"   {line[:160]}", flush=True)
        write_whole(options.summary, json.dumps(summary, indent=1) + "\n")
    print()
    for name, phase in summary["phases"].items():
        print(f"{phase['status']:8} {name:12} {phase.get('seconds', 0.0):6.0f} s  {phase.get('error', '')}")
    print(f"everything is in {options.summary}")
    return int(any(phase["status"] == "failed" for phase in summary["phases"].values()))


if __name__ == "__main__":
    # Whoever stops this (`timeout`, say) stops the phase that runs as well, which is in a session of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
