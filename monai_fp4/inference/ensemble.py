"""One trained network or several, applied to a scan piece by piece.

The networks' probabilities are averaged; the disagreement of a voxel is the highest of them minus the lowest. All
networks see a piece before the next one is begun, so that no more than a piece of probabilities is in memory unless the
whole is asked for. Scans of few slices may share a forward pass, which is what makes single pictures quick; as in an
evaluation, each scan has its own scale in FP4 (`monai_fp4.quantization.layers.separate`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from monai_fp4.bundle import TrainedNetwork, check_command_line, install_error_hook
from monai_fp4.bundle.options import flag, path_text
from monai_fp4.data.preprocessing import network_image
from monai_fp4.data.readers.files import sha256_of
from monai_fp4.data.scans import Image
from monai_fp4.data.transforms import Scale
from monai_fp4.engines import autocast, autocast_dtype, mirrored, segment_pieces
from monai_fp4.errors import ConfigError, DataError, NumericsError
from monai_fp4.inference.acquired import TrainingScans
from monai_fp4.inference.segmented import Segmented

__all__ = ["Ensemble"]


class Ensemble:
    """The networks of one run or several.

    Args:
        run_dir: the folder of a run, or several: a list, or a text such as ``"[runs/a,runs/b]"``.
        threshold: the probability from which on a voxel is called lesion; None takes the run's own, of several runs
            their mean.
        flips: average over the four flips of the slice plane, as `bundles/evaluate.json` does.
        chunk: slices a forward pass.
        device: as the option of the training bundles.
        trust_run_dir: build networks by evaluating the folders' configs, as MONAI does, whatever that runs.

    Attributes:
        members: the runs.
        channels: the image channels that they were trained on.
        threshold: the threshold that is used.

    Raises:
        ConfigError: no run, a run twice, runs of other channels or of another number of dimensions, or a threshold that
            is no probability.
    """

    def __init__(
        self,
        run_dir: str | Sequence[str],
        *,
        threshold: float | None = None,
        flips: Any = True,
        chunk: int = 64,
        device: str = "auto",
        trust_run_dir: bool | str = False,
    ) -> None:
        install_error_hook()
        check_command_line(sys.argv)
        folders = _folders(run_dir)
        self.members = [TrainedNetwork(folder, device, trust_run_dir) for folder in folders]
        first = self.members[0]
        for member in self.members[1:]:
            if member.channels != first.channels:
                raise ConfigError(
                    f"the runs of an ensemble must be of the same image channels, but {first.folder.path} was trained "
                    f"on {', '.join(first.channels)} and {member.folder.path} on {', '.join(member.channels)}; "
                    "choose others"
                )
            if len(member.image_size) != len(first.image_size):
                raise ConfigError(
                    f"the runs of an ensemble must all segment slices or all volumes, but {first.folder.path} and "
                    f"{member.folder.path} differ; choose others"
                )
        if threshold is not None and (
            isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1
        ):
            raise ConfigError(f"threshold must be a number from 0 to 1, but {threshold!r} was given")
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise ConfigError(f"chunk must be a whole number from 1 on, but {chunk!r} was given")
        self.flips = flag("flips", flips)
        self.chunk = chunk
        self.channels, self.device = first.channels, first.device
        self.given_threshold = threshold is not None
        self.threshold = float(np.mean([m.threshold for m in self.members]) if threshold is None else threshold)

    @property
    def network(self) -> nn.Module:
        """The network of the first run, which MONAI's tools look at."""
        return self.members[0].network

    @cached_property
    def _trained_on(self) -> list[TrainingScans]:
        return [TrainingScans(member) for member in self.members]

    @property
    def modalities(self) -> list[frozenset[str]]:
        """What each channel of the training scans was acquired with; an empty set where no run says."""
        return [frozenset().union(*each) for each in zip(*(run.modalities for run in self._trained_on), strict=True)]

    @property
    def single_pictures(self) -> bool:
        """Whether all training scans were pictures of one slice."""
        known = [run.single_pictures for run in self._trained_on if run.single_pictures is not None]
        return bool(known) and all(known)

    @cached_property
    def description(self) -> dict[str, Any]:
        """The models and how they are used, as plain JSON: what a report and a resumed prediction know them by."""
        where = "given" if self.given_threshold else "chosen by the run on its validation patients"
        if len(self.members) > 1 and not self.given_threshold:
            where = "mean of those that the runs chose on their validation patients"
        return {
            "models": [
                {
                    "run": member.folder.path.name,
                    "sha256": sha256_of(member.folder.model_path),
                    "arch": member.options.arch,
                    "scale": member.options.scale,
                    "recipe": member.options.recipe.to_config(),
                    "image_size": list(member.image_size),
                    "threshold": member.threshold,
                }
                for member in self.members
            ],
            "channels": list(self.channels),
            "threshold": self.threshold,
            "threshold_from": where,
            "flips": self.flips,
        }

    def __call__(
        self, scans: Sequence[Image], *, maps: bool = False, inferer: Inferer | None = None
    ) -> list[Segmented | NumericsError]:
        """Segment scans, whose voxels are overwritten.

        Args:
            scans: one, or several of slices that fit into one chunk.
            maps: keep probabilities, and the disagreement of several networks.
            inferer: MONAI's way to call a network; None calls it plainly, as an evaluation does.

        Returns:
            What became of each scan, or the error where a network answers NaN or infinity.

        Raises:
            DataError: another number of channels than the networks were trained on.
        """
        for scan in scans:
            if len(scan.values) != len(self.channels):
                raise DataError(
                    f"expected a scan of {len(self.channels)} channels ({', '.join(self.channels)}), as the model was "
                    f"trained on, found {len(scan.values)}; give the files of all channels"
                )
        natives = [tuple(scan.values.shape[1:]) for scan in scans]
        seen = [self._images(scan) for scan in scans]
        found = [
            Segmented.empty(native, images[0], warnings, maps=maps, several=len(self.members) > 1)
            for native, (images, warnings) in zip(natives, seen, strict=True)
        ]
        broken: set[int] = set()
        thresholds = [member.threshold for member in self.members]
        for number, logits in self._pieces([images for images, _ in seen], natives, inferer or SimpleInferer()):
            if not torch.isfinite(logits).all():
                broken.add(number)
            found[number].add(torch.sigmoid(logits), self.threshold, thresholds)
        names = ", ".join(member.folder.path.name for member in self.members)
        error = NumericsError(
            f"the networks of {names} must answer finite numbers, but they did not; check the scan and the checkpoint"
        )
        return [error if number in broken else each for number, each in enumerate(found)]

    def _images(self, scan: Image) -> tuple[list[Tensor], tuple[str, ...]]:
        """What each network sees, and how the scan differs from what they know."""
        values = torch.from_numpy(scan.values)
        inputs: list[Tensor] = []
        prepared: dict[tuple[Any, ...], tuple[Tensor, list[Scale]]] = {}
        ways = [_way(member) for member in self.members]
        warnings: list[str] = []
        for run, member, way in zip(self._trained_on, self.members, ways, strict=True):
            if way not in prepared:  # a copy for all but the last, which may use the reader's own memory
                last = len(prepared) + 1 == len(set(ways))
                prepared[way] = network_image(values if last else values.clone(), way[0], member.normalization)
            image, scales = prepared[way]
            inputs.append(image)
            warnings += run.warnings(scan, image, scales)
        return inputs, tuple(dict.fromkeys(warnings))

    def _pieces(
        self, seen: Sequence[Sequence[Tensor]], natives: Sequence[tuple[int, ...]], inferer: Inferer
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield a scan's number, and each network's logits of its next slices, ``[members, H, W, slices]``.

        Args:
            seen: of each scan, what each network sees.
            natives: each scan's own size.
            inferer: MONAI's way to call a network.
        """
        members = zip(self.members, zip(*seen, strict=True), strict=True)
        for answers in zip(*(self._answers(m, images, natives, inferer) for m, images in members), strict=True):
            logits = torch.cat([piece for _, piece in answers], dim=1).movedim(1, 0)  # [members, slices or 1, ...]
            yield answers[0][0], logits[:, 0] if logits.ndim == 5 else logits.movedim(1, -1)

    def _answers(
        self, member: TrainedNetwork, images: Sequence[Tensor], natives: Sequence[tuple[int, ...]], inferer: Inferer
    ) -> Iterator[tuple[int, Tensor]]:
        flat = len(member.image_size) == 2
        pieces = segment_pieces(
            member.network,
            [image.movedim(-1, 0) if flat else image[None] for image in images],
            [native[:2] if flat else native for native in natives],
            device=member.device,
            inferer=inferer,
            chunk=self.chunk,
            views=mirrored(self.flips),
        )
        while True:
            # Left between pieces, which other networks compute.
            with torch.no_grad(), autocast(member.device, member.options.amp, autocast_dtype(member.autocast_dtype)):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece


def _way(member: TrainedNetwork) -> tuple[Any, ...]:
    """What a network's input depends on beside the scan."""
    normalization = member.normalization
    return member.image_size, type(normalization), "" if normalization is None else str(vars(normalization))


def _folders(run_dir: Any) -> list[str]:
    if isinstance(run_dir, str) and run_dir.strip().startswith("["):
        run_dir = [part.strip().strip("'\"") for part in run_dir.strip().strip("[]").split(",")]
    folders = [path_text("run_dir", each) for each in (run_dir if isinstance(run_dir, (list, tuple)) else [run_dir])]
    if not folders or not all(folders):
        raise ConfigError(f"run_dir must be the folder of a run, or a list of them, but {run_dir!r} was given")
    if len({Path(folder).expanduser().resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"run_dir must name every run once, but {run_dir!r} was given")
    return folders
