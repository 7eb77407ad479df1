"""The template of the training bundles: one function a section, and the defaults that differ between the cells.

What stands at the top of a bundle comes from `monai_fp4.bundle.options`; the ids below it are those of MONAI's model
zoo, so that MONAI's own tools find the trainer, the data sets and the network where they look for them.

>>> config = training_config("unet", "500k", "sr")
>>> config["recipe"], config["network_def"]["_target_"], config["run"]
('sr', 'monai_fp4.engines.build_and_seed', ['$@train#trainer.run()'])
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from monai_fp4.bundle.options import defaults

__all__ = ["bundle_name", "training_config"]

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
        "session": {"_target_": "monai_fp4.bundle.Session", **{name: f"@{name}" for name in options}},
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
            "pct_start": 0.21,  # OneCycleLR divides by zero where this share of all steps is exactly one step
        },
        "summary_writer": {"_target_": "monai_fp4.bundle.summary_writer", "session": "@session"},
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
            "transform": "@train#preprocessing",
            "seed": "@seed",
            "device": "$@session.device if @num_workers == 0 else 'cpu'",  # a worker process cannot use CUDA
        },
        "preprocessing": {"_target_": "Compose", "transforms": _augmentation()},
        "sampler": {
            "_target_": "torch.utils.data.distributed.DistributedSampler",
            "dataset": "@train#dataset",
            "num_replicas": "$@session.world_size",
            "rank": "$@session.rank",
            "seed": "@seed",
        },
        "dataloader": {
            "_target_": "monai_fp4.data.BackgroundLoader",
            "buffer_size": 2,
            "dataset": "@train#dataset",
            "batch_size": "$@session.batch_size",
            "sampler": "@train#sampler",
            "num_workers": "@num_workers",
            "generator": "$@session.generator",
        },
        "inferer": {"_target_": "SimpleInferer"},
        "step": {"_target_": "monai_fp4.engines.TrainingStep", "amp": "@amp", "max_grad_norm": 12.0},
        "handlers": [
            {"_target_": "monai_fp4.handlers.InputWait"},
            {
                "_target_": "monai_fp4.handlers.EpochSeeder",
                "session": "@session",
                "dataset": "@train#dataset",
            },
            {"_target_": "monai_fp4.handlers.PrecisionSchedule", "session": "@session", "network": "@network"},
            {
                "_target_": "LrScheduleHandler",
                "lr_scheduler": "@lr_scheduler",
                "print_lr": False,
                "epoch_level": False,
            },
            {
                "_target_": "monai_fp4.handlers.Validation",
                "session": "@session",
                "validator": "@validate#evaluator",
                "interval": "@val_interval",
            },
            {
                "_target_": "monai_fp4.handlers.TensorBoard",
                "summary_writer": "@summary_writer",
                "optimizer": "@optimizer",
            },
            {
                "_target_": "monai_fp4.handlers.HealthRecorder",
                "session": "@session",
                "network": "@network",
                "evaluator": "@validate#evaluator",
                "summary_writer": "@summary_writer",
            },
            {
                "_target_": "monai_fp4.handlers.Progress",
                "evaluator": "@validate#evaluator",
                "active": "$@session.rank == 0",
            },
            {
                "_target_": "monai_fp4.handlers.Recorder",
                "session": "@session",
                "network": "@network",
                "optimizer": "@optimizer",
                "lr_scheduler": "@lr_scheduler",
                "evaluator": "@validate#evaluator",
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
            "mode": "bilinear",
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
