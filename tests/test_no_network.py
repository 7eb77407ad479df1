"""Nothing of this package opens a connection: a training and an evaluation, watched by Python's own audit events."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny_runs import BUNDLES, REPOSITORY, Dataset

WATCHED = """
import sys

def watch(event, arguments):
    if event == "socket.bind" and arguments[1] == ("::1", 0):  # urllib3 asks when it is imported whether there is IPv6
        return
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
                 "urllib.Request", "http.client.connect", "ftplib.connect"):
        print("NETWORK", event, arguments, file=sys.stderr, flush=True)
        import os
        os._exit(99)

sys.addaudithook(watch)
{what}
"""
MAIN = "from monai_fp4.cli import main; sys.exit(main(sys.argv[1:]))"


def watched(what: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED.replace("{what}", what), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_watch_sees_a_connection(tmp_path: Path) -> None:
    seen = watched("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')", cwd=tmp_path)
    assert seen.returncode == 99 and "NETWORK" in seen.stderr


def test_a_training_and_an_evaluation_open_no_connection(tiny: Dataset, tmp_path: Path) -> None:
    data = [word for name, value in tiny.options.items() for word in (f"--{name}", value)]
    small = ["--epochs", "1", "--image_size", "[32,32]", "--batch_size", "6", "--device", "cpu"]
    bundle = str(BUNDLES / "unet_500k_sr.json")
    done = watched(MAIN, "run", "--config_file", bundle, *data, *small, "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    evaluate = ["--config_file", str(BUNDLES / "evaluate.json"), "--split", "val", "--flips", "False"]
    where = ["--run_dir", "run", "--output_dir", "out", "--device", "cpu"]
    done = watched(MAIN, "run", *evaluate, *where, *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "metrics.json").exists()
