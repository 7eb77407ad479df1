from __future__ import annotations

import json
import os
import platform

import torch

from monai_fp4.machine import describe_environment, describe_machine

KEYS_OF_EARLIER_VERSIONS = {"versions", "platform", "processor", "cores", "threads", "device", "device_name", "backend"}
PACKAGES = {"monai-fp4", "monai", "torch", "pytorch-ignite", "transformer-engine", "numpy", "nibabel", "SimpleITK"}


def test_the_environment_of_a_run_is_the_machine_with_its_device_and_backend() -> None:
    environment, machine = describe_environment(torch.device("cpu"), "emulated"), describe_machine()
    assert json.loads(json.dumps(environment)) == environment
    assert set(environment) >= KEYS_OF_EARLIER_VERSIONS
    assert {*PACKAGES, "python"} <= set(environment["versions"])
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["versions"]["python"] == platform.python_version()
    assert (environment["device"], environment["device_name"], environment["backend"]) == ("cpu", "cpu", "emulated")
    assert (environment["processor"], environment["cores"]) == (machine.cpu, machine.cores)
    assert environment["threads"] == torch.get_num_threads() and environment["cores"] <= (os.cpu_count() or 1)
