"""A network from its config to the device: built, seeded, converted, wrapped.

The order matters: the weights are drawn before the layers are swapped, and the generators are seeded again afterwards,
so that two recipes with one seed start from the same weights and see the same slices in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from monai_fp4.bundle.options import flag
from monai_fp4.bundle.session import Session
from monai_fp4.data import select_patients, unseen_patients
from monai_fp4.engines.warm_start import seen_before, take_weights, what_was_taken
from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.networks import build_network
from monai_fp4.networks.memory_format import to_channels_last
from monai_fp4.quantization.conversion import convert
from monai_fp4.quantization.layers.conv3d_guard import guard_conv3d

__all__ = [
    "autocast", "autocast_dtype", "build_and_seed", "prepare_network", "seed_everything", "synchronize_batch_norm",
    "unwrap_ddp",
]  # fmt: skip


def seed_everything(seed: int, *numbers: int) -> None:
    """Seed torch's generators from a seed and any counters (epoch, rank), without leaving correlated streams."""
    mixed = seed
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63 - 1)
    torch.manual_seed(mixed)


def build_and_seed(
    arch: str, scale: str, *, seed: int, in_channels: int, out_channels: int, image_size: Any
) -> nn.Module:
    """Build one of the study's networks with weights that depend on the seed alone.

    Args:
        arch: architecture, see `monai_fp4.networks.ARCHITECTURES`.
        scale: scale, see `monai_fp4.networks.SCALES`.
        seed: seed of the initial weights.
        in_channels: image channels.
        out_channels: channels of the logits.
        image_size: two or three sizes; their number is the number of spatial dimensions.
    """
    seed_everything(seed)
    size = tuple(image_size)
    return build_network(arch, scale, in_channels, out_channels, image_size=size, spatial_dims=len(size))


def prepare_network(network: nn.Module, session: Session, *, sync_batch_norm: bool = False) -> nn.Module:
    """Convert a network to the session's recipe and put it on its device, in DDP if there are several processes.

    Args:
        network: any float network; a bundle passes its ``network_def``.
        session: the run that it is for. The report of the conversion is written to its folder, once it has begun.
        sync_batch_norm: let batch norm see the slices of all processes, see `synchronize_batch_norm`; with one process
            nothing changes.

    Returns:
        The network to train.

    Raises:
        ConfigError: when batch norm cannot be synchronized on the session's device.
    """
    options, taken = session.options, None
    if options.init_from is not None and session.begun and not session.run_folder.checkpoint_path.exists():
        taken = take_weights(network, options.init_from)
    network = network.to(session.device)
    network, report = convert(
        network,
        options.recipe,
        backend=session.backend.name,
        dtype=options.compute_dtype,
        stream=0,  # the bits of a run follow from its seed, whatever else lives in the process
    )
    network = to_channels_last(guard_conv3d(network), options.image_size)
    if session.begun and session.rank == 0:  # MONAI's verify_net_in_out builds networks of runs that never begin
        session.run_folder.write_json("conversion.json", report.to_dict())
        if taken is not None:
            session.run_folder.write_json("init_from.json", taken)
            print(what_was_taken(taken))
            held_out = [*unseen_patients(session.manifest, options.fold)]
            held_out += select_patients(session.manifest, options.fold, "val") if options.fold != "all" else []
            if known := seen_before(taken, held_out):
                print(
                    f"warning: init_from was trained on {len(known)} of the {len(held_out)} patients that are held out"
                    " here, so their scores say nothing; begin from a run of the same fold"
                )
        print(report.summary(), *(f"note: {note}" for note in report.notes), sep="\n")
    seed_everything(options.seed)
    if session.world_size > 1:
        if flag("sync_batch_norm", sync_batch_norm):
            network = synchronize_batch_norm(network, session.device)
        devices = [session.device.index] if session.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices)
    return network


def synchronize_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace batch norms by torch's that take mean and variance over the slices of all processes.

    Args:
        network: weights and their names stay.
        device: where the network computes; torch synchronizes on CUDA alone.

    Raises:
        ConfigError: for another device.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"sync_batch_norm must have CUDA, where alone torch synchronizes batch norm, but device is {device}; leave"
            " it out, or start one process"
        )
    synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return synchronized


def unwrap_ddp(network: nn.Module) -> nn.Module:
    """The network inside a DDP wrapper, or the network itself."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def autocast(device: torch.device, amp: bool, dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    """Autocast on the device, to BF16 if nothing else is said, or none."""
    return torch.autocast(device.type, dtype=dtype, enabled=amp)


def autocast_dtype(name: str) -> torch.dtype:
    """The dtype that a config names for autocast.

    Raises:
        ConfigError: neither ``bfloat16`` nor ``float16``.
    """
    if name not in (known := {"bfloat16": torch.bfloat16, "float16": torch.float16}):
        raise unknown_name("autocast dtype", name, known)
    return known[name]
