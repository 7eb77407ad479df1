"""Write the bundles: one complete config per architecture, scale and recipe, and the files beside them.

Each file stands alone: copied out of ``bundles/`` it runs anywhere the package is installed. Nothing is stitched
together with ``%`` references, which MONAI resolves against the working directory and which hide the standard ids from
its tools. A test, and ``monai-fp4 bundles check``, fail when a file on disk differs from what this module would write;
other files in the folder are the user's own, and are left alone.

>>> len(bundle_files())
116
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai_fp4.atomic import write_atomically
from monai_fp4.bundle.template import TEMPLATES, bundle_name, training_config
from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.networks import network_table
from monai_fp4.quantization.recipes import FURTHER_RECIPES, RECIPES

__all__ = ["PROTOCOLS", "bundle_files", "check_bundles", "protocol_config", "write_bundles"]

PROTOCOLS = ("lgg", "paper")
"""The overlays in ``protocols/``: what a training on one data set, or the paper's, changes in any bundle."""

_COPIED = (
    "evaluate.json",
    "inference.json",
    *(f"protocols/{name}.json" for name in PROTOCOLS),
    "metadata.json",
    "logging.conf",
)


def bundle_files(every: bool = False) -> dict[str, str]:
    """Every file of the bundle folder: path below it -> content.

    Args:
        every: also the bundles that are not shipped, of the paper's own networks and of recipes beyond the eleven, as a
            study may run them.
    """
    files = {
        f"{bundle_name(cell.arch, cell.scale, recipe)}.json": json.dumps(
            training_config(cell.arch, cell.scale, recipe), indent=4
        )
        + "\n"
        for cell in network_table()
        if every or not cell.config.of_the_paper
        for recipe in (*RECIPES, *(FURTHER_RECIPES if every else ()))
    }
    return files | {name: (TEMPLATES / name).read_text(encoding="utf-8") for name in _COPIED}


def protocol_config(name: str) -> dict[str, Any]:
    """What an overlay of ``protocols/`` holds; an empty name changes nothing.

    Raises:
        ConfigError: there is no such protocol.

    >>> protocol_config("paper")["fold"], protocol_config("")
    ('holdout', {})
    """
    if not name:
        return {}
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    config: dict[str, Any] = json.loads((TEMPLATES / "protocols" / f"{name}.json").read_text(encoding="utf-8"))
    return config


def write_bundles(folder: str | Path) -> int:
    """Write every bundle into ``folder``, over what it holds under those names; returns how many files changed.

    Raises:
        ConfigError: when the folder cannot be written to.
    """
    changed = _changed(Path(folder))
    for name, content in changed.items():
        write_atomically(Path(folder) / name, content, shared=True)
    return len(changed)


def check_bundles(folder: str | Path) -> None:
    """Compare the bundles on disk with what would be written; files of other names are passed over.

    Raises:
        ConfigError: naming the files that are missing or differ.
    """
    if changed := _changed(Path(folder)):
        raise ConfigError(
            f"{folder} must hold what the template writes, but {len(changed)} files differ or are missing"
            f" ({', '.join(list(changed)[:5])}); run 'monai-fp4 bundles write --output_dir {folder}', and keep your own"
            " changes under another name"
        )


def _changed(folder: Path) -> dict[str, str]:
    """What has to be written so that the folder holds every bundle."""
    return {name: content for name, content in bundle_files().items() if _content(folder / name) != content.encode()}


def _content(path: Path) -> bytes | None:
    """What a file holds; None where there is none that can be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
