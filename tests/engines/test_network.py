"""From a config to a network on its device: seeds, conversion, precision."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from one_step import convolutions
from tiny_runs import Dataset, item, refusal, workflow
from torch import nn

from monai_fp4.bundle import RunFolder, RunOptions, defaults
from monai_fp4.engines import (
    EvaluationStep,
    TrainingStep,
    autocast,
    build_and_seed,
    prepare_network,
    seed_everything,
    synchronize_batch_norm,
)
from monai_fp4.errors import ConfigError


def test_the_weights_follow_the_seed_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(seed + 3)  # whatever was drawn before
        network = build_and_seed("unet", "500k", seed=seed, in_channels=1, out_channels=1, image_size=[32, 32])
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_all_recipes_start_training_from_the_same_random_state(tmp_path: Path) -> None:
    drawn, weights = [], []
    for recipe in ("bf16", "sr_rht_2d"):
        network = build_and_seed("unet", "500k", seed=3, in_channels=1, out_channels=1, image_size=[32, 32])
        session = SimpleNamespace(
            options=RunOptions.from_config(**(defaults() | {"recipe": recipe, "image_size": [32, 32], "seed": 3})),
            device=torch.device("cpu"),
            backend=SimpleNamespace(name="emulated"),
            rank=1,
            begun=True,
            world_size=1,
        )
        network = prepare_network(network, session)  # type: ignore[arg-type]
        weights.append(network.state_dict())
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_seeds_of_epochs_and_ranks_differ() -> None:
    drawn = set()
    for numbers in product((0, 1, 2**32 - 1), (1, 2, 10**6), (0, 1)):
        seed_everything(*numbers)
        drawn.add(torch.rand(1, dtype=torch.float64).item())
    assert len(drawn) == 18


def test_autocast_is_bf16_or_nothing() -> None:
    with autocast(torch.device("cpu"), True):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), False):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_amp_may_be_a_text_as_a_command_line_makes_it(text: str, value: bool) -> None:
    assert TrainingStep(amp=text).amp is value  # type: ignore[arg-type]
    assert EvaluationStep(image_size=(8, 8), amp=text).amp is value  # type: ignore[arg-type]
    assert len(EvaluationStep(image_size=(8, 8), flips=text).flips) == (4 if value else 1)  # type: ignore[arg-type]


def test_an_override_that_matches_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"base": "sr", "overrides": [{"pattern": "blok.*", "precision": "bf16"}]}
    session = SimpleNamespace(
        options=RunOptions.from_config(**(defaults() | {"recipe": recipe})),
        device=torch.device("cpu"),
        backend=SimpleNamespace(name="emulated"),
        rank=0,
        begun=True,
        world_size=1,
        run_folder=RunFolder(tmp_path),
    )
    prepare_network(convolutions(), session)  # type: ignore[arg-type]
    assert "note: override 'blok.*' of recipe sr_custom matches no layer" in capsys.readouterr().out


def test_batch_norm_is_synchronized_on_cuda_with_the_same_weights() -> None:
    network = build_and_seed("unet", "500k", seed=0, in_channels=1, out_channels=1, image_size=[32, 32])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    synchronized = synchronize_batch_norm(network, torch.device("cuda"))
    assert count == sum(isinstance(module, nn.SyncBatchNorm) for module in synchronized.modules()) > 0
    assert before.keys() == synchronized.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in synchronized.state_dict().items())


@pytest.mark.parametrize(("processes", "given"), [(1, True), (2, "false"), (2, True), (2, "perhaps")])
def test_batch_norm_is_synchronized_where_it_is_asked_for_and_can_be(
    processes: int, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", lambda network, device_ids: network)
    session = SimpleNamespace(
        options=RunOptions.from_config(**(defaults() | {"image_size": [32, 32]})),
        device=torch.device("cpu"),
        backend=SimpleNamespace(name="emulated"),
        rank=1,
        begun=True,
        world_size=processes,
    )
    network = build_and_seed("unet", "500k", seed=0, in_channels=1, out_channels=1, image_size=[32, 32])
    if (processes, given) in [(1, True), (2, "false")]:
        prepared = prepare_network(network, session, sync_batch_norm=given)  # type: ignore[arg-type]
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in prepared.modules())
        return
    with pytest.raises(ConfigError, match=r"sync_batch_norm must (have CUDA|be true or false)"):
        prepare_network(network, session, sync_batch_norm=given)  # type: ignore[arg-type]


def test_a_bundle_takes_the_option_from_the_command_line(tiny: Dataset, tmp_path: Path) -> None:
    flow = workflow(tiny, tmp_path / "run", **{"network#sync_batch_norm": "perhaps"})
    flow.initialize()
    item(flow, "session").world_size = 2
    assert "sync_batch_norm must be true or false" in str(refusal(lambda: item(flow, "network")))
