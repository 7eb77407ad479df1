"""The first thing that a bundle does: check every option; then join the other processes and claim the run folder.

Everything a user can get wrong is found here, before a minute of training is spent, and said in one sentence.
The bundle keeps the :class:`Session` and hands it to whatever needs the device, the options or the run folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from monai.utils import set_determinism
from torch.utils.tensorboard import SummaryWriter

from monai_fp4.atomic import not_writable
from monai_fp4.bundle.command_line import check_command_line, install_error_hook
from monai_fp4.bundle.options import RunOptions
from monai_fp4.bundle.run_folder import RunFolder
from monai_fp4.bundle.running_config import running_config
from monai_fp4.data import load_manifest, prepare_data, select_patients, unseen_patients
from monai_fp4.data.identity import content_of
from monai_fp4.data.pseudonyms import refuse_keys_within
from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.lock import FolderLock
from monai_fp4.machine import describe_environment
from monai_fp4.networks import check_image_size
from monai_fp4.quantization.backends import select_backend

__all__ = ["Session", "pick_device", "summary_writer"]

T = TypeVar("T")


class Session:
    """One process of one run.

    Made, a session has checked every option and written nothing, so MONAI's commands that take a bundle apart
    (``ckpt_export``, ``verify_net_in_out``) leave no trace. A bundle's ``initialize`` begins it.

    Args:
        options: every option of the bundle by name, see :data:`monai_fp4.bundle.options.OPTIONS`.

    Attributes:
        options: the validated options.
        device: where this process computes.
        backend: what computes FP4 there.
        rank: number of this process; 0 writes the run folder.
        world_size: number of processes.
        manifest: the patients; the data sets of a bundle take it from here.
        in_channels: image channels that the manifest declares.
        begun: whether the run folder is this run's.
        generator: what the data loader seeds its workers from; seeded anew every epoch.

    Raises:
        ConfigError: for a wrong option.
        DataError: for a manifest that cannot be used, or without the fold.
    """

    def __init__(self, **options: Any) -> None:
        install_error_hook()
        check_command_line(sys.argv)
        self.options = RunOptions.from_config(**options)
        self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = pick_device(self.options.device, int(os.environ.get("LOCAL_RANK", 0)))
        check_image_size(
            self.options.arch, self.options.scale, self.options.image_size, spatial_dims=len(self.options.image_size)
        )
        self.backend = select_backend(self.options.backend, self.device, self.options.compute_dtype)
        self.manifest = load_manifest(self.options.manifest)
        self.in_channels = len(self.manifest.channels)
        parts = ["train"] if self.options.fold == "all" else ["train", "val"]
        members = {part: select_patients(self.manifest, self.options.fold, part) for part in parts}
        self._patients = {part: [patient.id for patient in patients] for part, patients in members.items()}
        self._patients["test"] = [p.id for p in unseen_patients(self.manifest, self.options.fold)]
        self._content = content_of(self.manifest, members)
        if self.batch_size * self.world_size != self.options.batch_size:
            raise ConfigError(
                f"batch_size counts the slices of all {self.world_size} processes, so it must be a multiple of "
                f"{self.world_size}, but {self.options.batch_size} was given; choose a multiple"
            )
        if self.options.fold != "all" and len(self._patients["val"]) < self.world_size:
            raise ConfigError(
                f"every process must have a patient to validate on, but fold {self.options.fold} holds"
                f" {len(self._patients['val'])} for {self.world_size} processes; start fewer"
            )
        self._run_folder = RunFolder(self.options.output_dir)
        self._lock = FolderLock(self._run_folder.path / ".lock", "run")
        self._run_folder.check_place = self._lock.check
        self._held = ExitStack()
        self.begun = False
        self.generator = torch.Generator()

    @property
    def run_folder(self) -> RunFolder:
        """The files of the run, once they are this run's.

        Raises:
            ConfigError: before `begin`, when the folder may be another run's.
        """
        if not self.begun:
            raise ConfigError(
                "a run must begin before its folder is written to, but the config's 'initialize' does not say so; put"
                ' "$@session.begin()" there'
            )
        return self._run_folder

    def begin(self) -> Session:
        """Join the other processes, claim the run folder, seed everything.

        Raises:
            ConfigError: when the run folder belongs to another run, or another process trains in it, or when the run is
                finished and its weights are gone or another run's.
            DataError: for a data folder that cannot be used.
            SystemExit: with 0, when the run is already finished.
        """
        # Before the data is looked for or anything is written: a finished run needs neither.
        config, folder = running_config() | self.options.to_config(), self._run_folder
        folder.check(config, self._patients | self._content)
        finished = folder.finished
        if finished:
            folder.check_model()
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(minutes=60))
        self.wait()
        if finished:
            if self.rank == 0:
                print(f"The run in {folder.path} is finished; its results are in {folder.metrics_path}.")
            self.close()
            raise SystemExit(0)
        if self.rank == 0:
            with ExitStack() as held:
                held.enter_context(self._lock)
                refuse_keys_within(folder.path, self.manifest)
                prepare_data(self.manifest, self.options.dataset_dir)
                folder.claim(config, self._patients | self._content)
                environment = describe_environment(self.device, self.backend.name)
                folder.write_json("environment.json", environment | {"processes": self.world_size})
                print(self._opening(self._patients))
                self._held = held.pop_all()
        self.wait()
        set_determinism(seed=self.options.seed)
        self.begun = True
        return self

    def _opening(self, patients: dict[str, list[str]]) -> str:
        options = self.options
        validated = f"{len(patients['val'])} to validate on" if "val" in patients else "none held out"
        return (
            f"Run {self._run_folder.path}: {options.arch} {options.scale} on manifest {self.manifest.name},"
            f" fold {options.fold}: {len(patients['train'])} patients to train on, {validated}; {self.device}"
        )

    @property
    def validation_part(self) -> str:
        """Whom the evaluator sees: the fold's patients or, where no fold is held out, those that are trained on."""
        return "train" if self.options.fold == "all" else "val"

    @property
    def validation_patients(self) -> list[str]:
        """Their ids, of all processes; a patient's number is its place here, from 1, as in ``patients.json``."""
        return self._patients[self.validation_part]

    @property
    def batch_size(self) -> int:
        """Slices a step in this process; the option counts those of all processes."""
        return self.options.batch_size // self.world_size

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of ``items``, every item in exactly one process."""
        return list(items[self.rank :: self.world_size])

    def wait(self) -> None:
        """Wait for the other processes of the run, and for the files that this one is writing."""
        self._run_folder.settle()
        if self.world_size > 1:
            dist.barrier()

    def hold(self) -> None:
        """Take the run folder once more, if a training that is run again had given it up.

        Raises:
            ConfigError: when another process trains in it.
        """
        if self.rank == 0 and not self._lock.is_held:
            self._held.enter_context(self._lock)

    def release(self) -> None:
        """Give up the run folder, so that another process may train in it."""
        self._held.close()

    def close(self) -> None:
        """Leave the process group, and give up the run folder."""
        self.release()
        if dist.is_initialized():
            dist.destroy_process_group()


def summary_writer(session: Session) -> SummaryWriter | None:
    """The one TensorBoard file of a run: rank 0 writes it into the run folder, the other processes write none.

    Raises:
        ConfigError: when the folder cannot be written to.
    """
    if session.rank:
        return None
    folder = session.run_folder
    try:
        writer = SummaryWriter(log_dir=str(folder.path))
    except OSError as error:
        raise not_writable(folder.path, error) from error
    folder.events.hide_new()
    return writer


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn the option ``device`` into a device that exists.

    Raises:
        ConfigError: for a name torch does not know, or a device this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise unknown_name("device", str(name)[:80], ["auto", "cpu", "cuda", "cuda:0", "mps"]) from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index is None or device.index >= count:
            raise ConfigError(f"device {name!r} must exist, but this machine has {count} CUDA devices; use cpu or auto")
    return device
