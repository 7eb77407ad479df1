"""The protocol of every training bundle, in numbers: here the template is compared with nothing but what is meant."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, RandAffined, RandFlipd, RandScaleIntensityd, RandShiftIntensityd
from tiny_runs import BUNDLES, Dataset, item, workflow
from torch.utils.data.distributed import DistributedSampler

from monai_fp4.bundle import augmentation

RECIPES = ("bf16", "full", "forward_only", "chain_rule", "sr", "rht", "2d", "sr_rht", "sr_2d", "rht_2d", "sr_rht_2d")
LEARNING_RATE_AND_EPOCHS = {
    "unet_500k": (0.003, 12),
    "unet_4m": (0.0015, 6),
    "unet_15m": (0.0015, 3),
    "swin_500k": (0.001, 12),
    "swin_4m": (0.0005, 6),
    "swin_15m": (0.0005, 3),
    "vit_500k": (0.001, 12),
    "vit_4m": (0.0005, 6),
    "vit_15m": (0.0005, 3),
    "swinunetr_15m": (0.0005, 3),
}
BOTH = ["image", "label"]


def bundle(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((BUNDLES / f"{name}.json").read_text(encoding="utf-8"))
    return config


@pytest.fixture(params=[f"{cell}_{recipe}" for cell, recipe in product(LEARNING_RATE_AND_EPOCHS, RECIPES)])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return bundle(request.param)


def test_the_options(config: dict[str, Any]) -> None:
    learning_rate, epochs = LEARNING_RATE_AND_EPOCHS[f"{config['arch']}_{config['scale']}"]
    assert config["recipe"] in RECIPES
    assert (config["learning_rate"], config["epochs"], config["batch_size"]) == (learning_rate, epochs, 16)
    assert (config["image_size"], config["fold"], config["seed"], config["val_interval"]) == ([64, 64], 0, 0, 1)
    assert (config["amp"], config["backend"], config["device"], config["num_workers"]) == (True, "auto", "auto", 0)
    assert (config["manifest"], config["dataset_dir"]) == ("phantom", "data/phantom")


def test_the_loss(config: dict[str, Any]) -> None:
    assert config["loss"] == {
        "_target_": "monai_fp4.losses.TverskyBCELoss",
        "bce_weight": 1.0,
        "tversky_weight": 1.0,
        "alpha": 0.3,  # of false positives; false negatives cost more
        "beta": 0.7,
    }


def test_the_optimizer_and_its_schedule(config: dict[str, Any]) -> None:
    assert config["optimizer"] == {
        "_target_": "torch.optim.AdamW",
        "params": "$@network.parameters()",
        "lr": "@learning_rate",
        "weight_decay": 0.01,
    }
    assert config["lr_scheduler"] == {
        "_target_": "torch.optim.lr_scheduler.OneCycleLR",
        "optimizer": "@optimizer",
        "max_lr": "@learning_rate",
        "total_steps": "$@epochs * len(@train#dataloader)",
        "pct_start": 0.21,
    }
    [stepped] = [each for each in config["train"]["handlers"] if each["_target_"] == "LrScheduleHandler"]
    assert (stepped["lr_scheduler"], stepped["epoch_level"]) == ("@lr_scheduler", False)


def test_the_step(config: dict[str, Any]) -> None:
    step = {"_target_": "monai_fp4.engines.TrainingStep", "amp": "@amp", "max_grad_norm": 12.0}
    assert config["train"]["step"] == step
    assert config["train"]["trainer"]["iteration_update"] == "@train#step"
    trained = {key: config["train"]["trainer"][key] for key in ("network", "loss_function", "optimizer", "max_epochs")}
    assert trained == {
        "network": "@network",
        "loss_function": "@loss",
        "optimizer": "@optimizer",
        "max_epochs": "@epochs",
    }


def test_the_augmentation(config: dict[str, Any]) -> None:
    assert config["train"]["dataset"]["transform"] == "@train#preprocessing"
    assert config["train"]["preprocessing"] == {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "RandFlipd", "keys": BOTH, "prob": 0.5, "spatial_axis": 0},
            {"_target_": "RandFlipd", "keys": BOTH, "prob": 0.5, "spatial_axis": 1},
            {
                "_target_": "RandAffined",
                "keys": BOTH,
                "prob": 0.5,
                "rotate_range": [0.26],  # radians: 15 degrees
                "scale_range": [0.1, 0.1],
                "mode": "bilinear",
                "padding_mode": ["border", "zeros"],
            },
            {"_target_": "RandScaleIntensityd", "keys": "image", "factors": 0.15, "prob": 0.5},
            {"_target_": "RandShiftIntensityd", "keys": "image", "offsets": 0.15, "prob": 0.5},
        ],
    }
    assert "transform" not in config["validate"]["dataset"]


def test_the_slices_are_shuffled_anew_every_epoch_and_seeded(config: dict[str, Any]) -> None:
    train = config["train"]
    assert train["sampler"]["_target_"] == "torch.utils.data.distributed.DistributedSampler"
    assert train["sampler"].get("shuffle", True) is True and train["sampler"]["seed"] == "@seed"
    assert (train["dataloader"]["sampler"], train["dataloader"].get("drop_last", False)) == ("@train#sampler", False)
    assert (train["dataset"]["seed"], config["network_def"]["seed"]) == ("@seed", "@seed")
    assert "monai_fp4.handlers.EpochSeeder" in [handler["_target_"] for handler in train["handlers"]]
    assert (train["dataset"]["data"]["part"], train["dataset"]["data"]["fold"]) == ("train", "@fold")


def test_the_validation(config: dict[str, Any]) -> None:
    validate = config["validate"]
    assert validate["key_metric"] == {"auprc": {"_target_": "monai_fp4.handlers.AUPRC", "beta": 2.0}}
    assert validate["evaluator"]["key_val_metric"] == "@validate#key_metric"
    assert validate["datalist"]["part"] == "$@session.validation_part" and validate["datalist"]["fold"] == "@fold"
    [handler] = [each for each in config["train"]["handlers"] if each["_target_"] == "monai_fp4.handlers.Validation"]
    assert (handler["validator"], handler["interval"]) == ("@validate#evaluator", "@val_interval")


def test_the_objects_that_a_bundle_builds_have_these_numbers(tiny: Dataset, tmp_path: Any) -> None:
    flow = workflow(tiny, tmp_path / "run")
    flow.initialize()
    loss, optimizer, sampler = (item(flow, name) for name in ("loss", "optimizer", "train#sampler"))
    assert (loss.tversky.alpha, loss.tversky.beta) == (0.3, 0.7)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01] * len(optimizer.param_groups)
    assert isinstance(sampler, DistributedSampler) and sampler.shuffle
    assert list(sampler) != sorted(sampler)
    assert item(flow, "train#step").max_grad_norm == 12.0
    assert isinstance(item(flow, "train#dataset").transform, Compose)


def test_python_users_get_the_augmentation_that_is_meant() -> None:
    """Against the same transforms built here, number by number, from many random states."""
    meant = Compose(
        [
            RandFlipd(BOTH, prob=0.5, spatial_axis=0),
            RandFlipd(BOTH, prob=0.5, spatial_axis=1),
            RandAffined(
                BOTH,
                prob=0.5,
                rotate_range=[0.26],
                scale_range=[0.1, 0.1],
                mode="bilinear",
                padding_mode=("border", "zeros"),
            ),
            RandScaleIntensityd("image", factors=0.15, prob=0.5),
            RandShiftIntensityd("image", offsets=0.15, prob=0.5),
        ]
    )
    written = ConfigParser({"section": bundle("unet_500k_bf16")["train"]["preprocessing"]})
    chains = (meant, augmentation(), written.get_parsed_content("section"))
    generator = torch.Generator().manual_seed(0)
    scan = {"image": torch.rand(3, 24, 32, generator=generator), "label": torch.rand(1, 24, 32, generator=generator)}
    for seed in range(50):
        expected, *others = [chain.set_random_state(seed=seed)(dict(scan)) for chain in chains]
        for other in others:
            assert all(torch.equal(torch.as_tensor(other[key]), torch.as_tensor(expected[key])) for key in scan)
