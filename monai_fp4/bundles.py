"""Write the bundles: one complete config per architecture, scale and recipe, all from the template in this module.

Each file stands alone: copied out of ``bundles/`` it runs anywhere the package is installed. Nothing is stitched
together with ``%`` references, which MONAI resolves against the working directory and which hide the standard ids from
its tools.
A test, and ``monai-fp4 bundles check``, fail when a file on disk differs from what this module would write.

>>> config = training_config("unet", "500k", "sr")
>>> config["recipe"], config["network_def"]["_target_"], config["run"]
('sr', 'monai_fp4.engines.build_and_seed', ['$@train#trainer.run()'])
>>> len(bundle_files())
114
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from monai_fp4.errors import ConfigError
from monai_fp4.networks import network_table
from monai_fp4.options import defaults
from monai_fp4.recipes import RECIPES

__all__ = ["bundle_files", "bundle_name", "check_bundles", "evaluation_config", "training_config", "write_bundles"]

LEARNING_RATES: Mapping[str, float] = MappingProxyType({"unet": 0.003, "swin": 0.001, "vit": 0.001, "swinunetr": 0.001})
"""Peak learning rate of each architecture at 500k; larger networks take a smaller one, see `_learning_rate`."""

_LARGER: Mapping[str, float] = MappingProxyType({"500k": 1.0, "4m": 0.5, "15m": 0.5})
_EPOCHS: Mapping[str, int] = MappingProxyType({"500k": 12, "4m": 6, "15m": 3})


def bundle_name(arch: str, scale: str, recipe: str) -> str:
    """File name of a bundle without its ending.

    >>> bundle_name("swin", "15m", "sr")
    'swin_15m_sr'
    """
    return f"{arch}_{scale}_{recipe}"


def training_config(arch: str, scale: str, recipe: str) -> dict[str, Any]:
    """The whole training bundle of one cell of the study."""
    options = defaults() | {
        "recipe": recipe,
        "arch": arch,
        "scale": scale,
        "output_dir": f"runs/{bundle_name(arch, scale, recipe)}",
        "epochs": _EPOCHS[scale],
        "learning_rate": round(LEARNING_RATES[arch] * _LARGER[scale], 6),
    }
    return {
        **options,
        "bundle_root": ".",
        "session": {"_target_": "monai_fp4.session.Session", **{name: f"@{name}" for name in options}},
        "network_def": {
            "_target_": "monai_fp4.engines.build_and_seed",
            "arch": "@arch",
            "scale": "@scale",
            "seed": "@seed",
            "in_channels": "$@session.in_channels",
            "out_channels": 1,
            "image_size": "@image_size",
        },
        "network": {
            "_target_": "monai_fp4.engines.prepare_network",
            "network": "@network_def",
            "session": "@session",
        },
        "loss": {
            "_target_": "monai_fp4.losses.TverskyBCELoss",
            "bce_weight": 1.0,
            "tversky_weight": 1.0,
            "alpha": 0.3,
            "beta": 0.7,
        },
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "params": "$@network.parameters()",
            "lr": "@learning_rate",
            "weight_decay": 0.01,
        },
        "lr_scheduler": {
            "_target_": "torch.optim.lr_scheduler.OneCycleLR",
            "optimizer": "@optimizer",
            "max_lr": "@learning_rate",
            "total_steps": "$@epochs * len(@train#dataloader)",
            "pct_start": 0.2,
        },
        "summary_writer": {"_target_": "monai_fp4.session.summary_writer", "session": "@session"},
        "train": _train_section(),
        "validate": _validate_section(),
        "initialize": ["$@session"],
        "run": ["$@train#trainer.run()"],
        "finalize": ["$@session.close()"],
    }


def _train_section() -> dict[str, Any]:
    return {
        "dataset": {
            "_target_": "monai_fp4.data.SliceDataset",
            "data": _datalist("train"),
            "image_size": "@image_size",
            "transform": "@train#random_transforms",
            "seed": "@seed",
        },
        "random_transforms": {"_target_": "Compose", "transforms": _augmentation()},
        "sampler": {
            "_target_": "torch.utils.data.distributed.DistributedSampler",
            "dataset": "@train#dataset",
            "num_replicas": "$@session.world_size",
            "rank": "$@session.rank",
            "seed": "@seed",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@train#dataset",
            "batch_size": "$@session.batch_size",
            "sampler": "@train#sampler",
            "num_workers": "@num_workers",
            "generator": "$@session.generator",
        },
        "inferer": {"_target_": "SimpleInferer"},
        "step": {"_target_": "monai_fp4.engines.TrainingStep", "amp": "@amp", "max_grad_norm": 12.0},
        "handlers": [
            {
                "_target_": "monai_fp4.loop.EpochSeeder",
                "session": "@session",
                "dataset": "@train#dataset",
            },
            {"_target_": "monai_fp4.loop.PrecisionSchedule", "session": "@session", "network": "@network"},
            {
                "_target_": "LrScheduleHandler",
                "lr_scheduler": "@lr_scheduler",
                "print_lr": False,
                "epoch_level": False,
            },
            {
                "_target_": "monai_fp4.loop.Validation",
                "session": "@session",
                "validator": "@validate#evaluator",
                "interval": "@val_interval",
            },
            {
                "_target_": "monai_fp4.handlers.TensorBoard",
                "summary_writer": "@summary_writer",
                "optimizer": "@optimizer",
                "network": "@network",
            },
            {
                "_target_": "monai_fp4.loop.Recorder",
                "session": "@session",
                "network": "@network",
                "optimizer": "@optimizer",
                "lr_scheduler": "@lr_scheduler",
                "evaluator": "@validate#evaluator",
            },
            {
                "_target_": "monai_fp4.handlers.Progress",
                "evaluator": "@validate#evaluator",
                "active": "$@session.rank == 0",
            },
        ],
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": "@epochs",
            "device": "$@session.device",
            "train_data_loader": "@train#dataloader",
            "network": "@network",
            "loss_function": "@loss",
            "optimizer": "@optimizer",
            "inferer": "@train#inferer",
            "iteration_update": "@train#step",
            "train_handlers": "@train#handlers",
            "decollate": False,
        },
    }


def _augmentation() -> list[dict[str, Any]]:
    both = ["image", "label"]
    return [
        {"_target_": "RandFlipd", "keys": both, "prob": 0.5, "spatial_axis": 0},
        {"_target_": "RandFlipd", "keys": both, "prob": 0.5, "spatial_axis": 1},
        {
            "_target_": "RandAffined",
            "keys": both,
            "prob": 0.5,
            "rotate_range": [0.26],
            "scale_range": [0.1, 0.1],
            "mode": ["bilinear", "nearest"],
            "padding_mode": ["border", "zeros"],
        },
        {"_target_": "RandScaleIntensityd", "keys": "image", "factors": 0.15, "prob": 0.5},
        {"_target_": "RandShiftIntensityd", "keys": "image", "offsets": 0.15, "prob": 0.5},
    ]


def _datalist(part: str) -> dict[str, Any]:
    return {
        "_target_": "monai_fp4.data.load_datalist",
        "manifest": "@manifest",
        "dataset_dir": "@dataset_dir",
        "fold": "@fold",
        "part": part,
    }


def _validate_section() -> dict[str, Any]:
    return {
        "dataset": {
            "_target_": "monai_fp4.data.PatientDataset",
            "data": "$@session.share(@validate#datalist)",
            "image_size": "@image_size",
        },
        "datalist": _datalist("$@session.validation_part"),
        "dataloader": {"_target_": "torch.utils.data.DataLoader", "dataset": "@validate#dataset", "batch_size": None},
        "inferer": {"_target_": "SimpleInferer"},
        "step": {
            "_target_": "monai_fp4.engines.EvaluationStep",
            "image_size": "@image_size",
            "amp": "@amp",
            "chunk": 64,
            "loss": "@loss",
        },
        "key_metric": {"auprc": {"_target_": "monai_fp4.handlers.AUPRC", "beta": 2.0}},
        "handlers": [
            {
                "_target_": "monai_fp4.handlers.TensorBoardValidation",
                "summary_writer": "@summary_writer",
            },
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "$@session.device",
            "val_data_loader": "@validate#dataloader",
            "network": "@network",
            "inferer": "@validate#inferer",
            "iteration_update": "@validate#step",
            "key_val_metric": "@validate#key_metric",
            "val_handlers": "@validate#handlers",
            "decollate": False,
        },
    }


def evaluation_config() -> dict[str, Any]:
    """``evaluate.json``: a finished run on the patients of a manifest."""
    return {
        "run_dir": "runs/swin_15m_sr",
        "manifest": "phantom",
        "dataset_dir": "data/phantom",
        "output_dir": "runs/evaluation",
        "split": "auto",
        "amp": True,
        "device": "auto",
        "bundle_root": ".",
        "trained": {
            "_target_": "monai_fp4.trained.TrainedRun",
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
            "amp": "@amp",
            "chunk": 64,
        },
        "key_metric": {"auprc": {"_target_": "monai_fp4.handlers.AUPRC", "beta": 2.0}},
        "handlers": [
            {
                "_target_": "monai_fp4.evaluation.EvaluationReport",
                "output_dir": "@output_dir",
                "threshold": "$@trained.threshold",
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
keys=root

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=WARNING
handlers=console

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
