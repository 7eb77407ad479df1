"""Write the bundles: one complete config per architecture, scale and recipe, all from one template.

Each file stands alone: copied out of ``bundles/`` it runs anywhere the package is installed. Nothing is stitched
together with ``%`` references, which MONAI resolves against the working directory and which hide the standard ids from
its tools. A test, and ``monai-fp4 bundles check``, fail when a file on disk differs from what this module would write.

>>> len(bundle_files())
114
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_fp4.bundle.template import bundle_name, training_config
from monai_fp4.errors import ConfigError
from monai_fp4.networks import network_table
from monai_fp4.quantization.recipes import RECIPES

__all__ = ["bundle_files", "bundle_name", "check_bundles", "evaluation_config", "training_config", "write_bundles"]


def evaluation_config() -> dict[str, Any]:
    """``evaluate.json``: a finished run on the patients of a manifest."""
    return {
        "run_dir": "runs/swin_15m_sr",
        "manifest": "phantom",
        "dataset_dir": "data/phantom",
        "output_dir": "runs/evaluation",
        "split": "auto",
        "flips": True,
        "device": "auto",
        "bundle_root": ".",
        "trained": {
            "_target_": "monai_fp4.bundle.TrainedRun",
            "run_dir": "@run_dir",
            "manifest": "@manifest",
            "dataset_dir": "@dataset_dir",
            "output_dir": "@output_dir",
            "split": "@split",
            "device": "@device",
        },
        "network_def": "$@trained.network",
        "dataset": {
            "_target_": "monai_fp4.data.PatientDataset",
            "data": "$@trained.datalist",
            "image_size": "$@trained.image_size",
        },
        "dataloader": {"_target_": "torch.utils.data.DataLoader", "dataset": "@dataset", "batch_size": None},
        "inferer": {"_target_": "SimpleInferer"},
        "step": {
            "_target_": "monai_fp4.engines.EvaluationStep",
            "image_size": "$@trained.image_size",
            "amp": "$@trained.options.amp",
            "chunk": 64,
            "flips": "@flips",
        },
        "key_metric": {"auprc": {"_target_": "monai_fp4.handlers.AUPRC", "threshold": "$@trained.threshold"}},
        "handlers": [
            {
                "_target_": "monai_fp4.handlers.EvaluationReport",
                "output_dir": "@output_dir",
                "source": "$@trained.source",
            },
            {"_target_": "monai_fp4.handlers.Progress"},
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "$@trained.device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "iteration_update": "@step",
            "key_val_metric": "@key_metric",
            "val_handlers": "@handlers",
            "decollate": False,
        },
        "initialize": ["$@trained"],
        "run": ["$@evaluator.run()"],
    }


def lgg_protocol() -> dict[str, Any]:
    """``protocols/lgg.json``: the study's protocol, an overlay over any training bundle."""
    return {
        "manifest": "lgg",
        "dataset_dir": "/data/kaggle_3m",
        "image_size": [256, 256],
        "epochs": 50,
        "batch_size": 32,
    }


def metadata() -> dict[str, Any]:
    """``metadata.json``, which MONAI looks for beside a config."""
    image = {"type": "image", "format": "magnitude", "num_channels": 3, "spatial_shape": [256, 256], "dtype": "float32"}
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": "first bundles"},
        "monai_version": "1.6.1",
        "pytorch_version": "2.13.0",
        "numpy_version": "2.4.6",
        "task": "Segmentation of brain tumours in MRI slices with networks trained in NVFP4",
        "description": "Training and evaluation bundles of monai_fp4, one per architecture, scale and recipe",
        "authors": "monai_fp4 contributors",
        "copyright": "monai_fp4 contributors",
        "network_data_format": {
            "inputs": {
                "image": image
                | {"modality": "MR", "value_range": [], "is_patch_data": False, "channel_def": {"0": "image"}}
            },
            "outputs": {
                "pred": image
                | {
                    "format": "segmentation",
                    "num_channels": 1,
                    "is_patch_data": False,
                    "channel_def": {"0": "tumour logit"},
                }
            },
        },
    }


LOGGING = """[loggers]
keys=root,monai_scripts,monai_workflows,ignite

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=WARNING
handlers=console

[logger_monai_scripts]
qualname=monai.bundle.scripts
level=WARNING
handlers=

[logger_monai_workflows]
qualname=monai.bundle.workflows
level=WARNING
handlers=

[logger_ignite]
qualname=ignite
level=CRITICAL
handlers=

[handler_console]
class=StreamHandler
level=WARNING
formatter=plain
args=(sys.stderr,)

[formatter_plain]
format=%(levelname)s %(name)s: %(message)s
"""


def bundle_files() -> dict[str, str]:
    """Every file of the bundle folder: path below it -> content."""
    files = {
        f"{bundle_name(cell.arch, cell.scale, recipe)}.json": _json(training_config(cell.arch, cell.scale, recipe))
        for cell in network_table()
        for recipe in RECIPES
    }
    files["evaluate.json"] = _json(evaluation_config())
    files["protocols/lgg.json"] = _json(lgg_protocol())
    files["metadata.json"] = _json(metadata())
    files["logging.conf"] = LOGGING
    return files


def write_bundles(folder: str | Path) -> int:
    """Write every bundle into ``folder``, over what it holds; returns how many files changed."""
    changed = 0
    for name, content in bundle_files().items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
            changed += 1
    return changed


def check_bundles(folder: str | Path) -> None:
    """Compare the bundles on disk with what would be written.

    Raises:
        ConfigError: naming the files that are missing, differ, or belong to no bundle.
    """
    folder, files = Path(folder), bundle_files()
    wrong = [
        name
        for name, content in files.items()
        if not (folder / name).is_file() or (folder / name).read_text() != content
    ]
    strangers = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*.json"))
        if path.relative_to(folder).as_posix() not in files
    ]
    if wrong or strangers:
        named = ", ".join([*wrong, *strangers][:5])
        raise ConfigError(
            f"{folder} must hold what the template writes, but {len(wrong)} files differ or are missing and"
            f" {len(strangers)} are unknown ({named}); run 'monai-fp4 bundles write --output_dir {folder}'"
        )


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=4) + "\n"
