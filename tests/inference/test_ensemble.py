"""Networks that see a scan each in its own way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from monai_fp4.data import NormalizeForegroundd
from monai_fp4.data.scans import Image
from monai_fp4.inference import Ensemble


def test_networks_of_one_kind_of_normalization_with_other_settings_see_other_images(
    volume_run: Path, tmp_path: Path
) -> None:
    """A network of the user's own may have any; the second was given what the first one sees."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in volume_run.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    both = Ensemble([str(volume_run), str(copy)], device="cpu")
    values = np.random.default_rng(0).gamma(2, 50, (1, 20, 26, 3)).astype(np.float32)
    alone = []
    for upper in (99.5, 60.0):
        for member in both.members:
            member.__dict__["normalization"] = NormalizeForegroundd("image", upper=upper)
        alone.append(both._images(scan_of(values))[0][0])
    for member, upper in zip(both.members, (99.5, 60.0), strict=True):
        member.__dict__["normalization"] = NormalizeForegroundd("image", upper=upper)
    seen, _ = both._images(scan_of(values))
    assert all(torch.equal(one, other) for one, other in zip(seen, alone, strict=True))
    assert not torch.equal(*seen)


def scan_of(values: np.ndarray) -> Image:
    return Image(values.copy(), values.shape[1:], None, None, None)
