"""Seeds at the start of an epoch, precision before a step, validation after an epoch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from small_data import lgg_ids, write_lgg
from tiny_runs import Dataset, item, workflow
from torch import nn

from monai_fp4 import Recipe, convert
from monai_fp4.bundle import augmentation
from monai_fp4.data import SliceDataset, build_manifest, load_datalist
from monai_fp4.handlers import EpochSeeder, PrecisionSchedule, Validation
from monai_fp4.quantization.layers import NVFP4Layer

Epoch = dict[str, torch.Tensor]


def session(seed: int = 0, rank: int = 0, **options: Any) -> Any:
    return SimpleNamespace(
        options=SimpleNamespace(seed=seed, fold=0, **options), rank=rank, world_size=1, generator=torch.Generator()
    )


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = write_lgg(tmp_path_factory.mktemp("data"), dict.fromkeys(lgg_ids(2), 3))
    return load_datalist(build_manifest(folder, folds=2), folder, "all", "train")


def epochs(patients: list[dict[str, Any]], seed: int = 0, rank: int = 0, count: int = 2) -> list[Epoch]:
    """What is random in each epoch, always of the same items: the data's order is another matter."""
    dataset = SliceDataset(patients, (16, 16), augmentation(), seed=seed)
    run = session(seed, rank)
    engine, seen = Engine(lambda _engine, _batch: None), []
    EpochSeeder(run, dataset).attach(engine)

    def look(_engine: Engine) -> None:
        items = torch.stack([dataset[index]["image"] for index in range(len(dataset))])
        seen.append({"items": items, "torch": torch.rand(4), "workers": torch.rand(4, generator=run.generator)})

    engine.add_event_handler(Events.EPOCH_STARTED, look)
    engine.run([0], max_epochs=count)
    return seen


def differing(one: Epoch, other: Epoch) -> set[str]:
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_all_that_is_random_follows_seed_and_epoch(patients: list[dict[str, Any]]) -> None:
    first, second = epochs(patients)
    assert differing(first, second) == {"items", "torch", "workers"}
    for again, once in zip(epochs(patients), (first, second), strict=True):
        assert differing(again, once) == set()
    for other, once in zip(epochs(patients, seed=1), (first, second), strict=True):
        assert differing(other, once) == {"items", "torch", "workers"}


def test_ranks_draw_their_own_numbers_but_augment_an_item_alike(patients: list[dict[str, Any]]) -> None:
    assert differing(epochs(patients)[0], epochs(patients, rank=1)[0]) == {"torch"}


def test_an_epoch_of_a_seed_is_no_epoch_of_the_next_seed(patients: list[dict[str, Any]]) -> None:
    first, other = epochs(patients, count=3), epochs(patients, seed=1, count=3)
    for name in ("items", "torch", "workers"):
        assert not any(torch.equal(one[name], two[name]) for one in first for two in other), name


def test_a_bundle_s_epochs_augment_the_same_items_anew_and_by_its_seed(tiny: Dataset, tmp_path: Path) -> None:
    def seen(folder: str, seed: int) -> list[tuple[torch.Tensor, list[int]]]:
        flow, found = workflow(tiny, tmp_path / folder, seed=seed), []
        flow.initialize()
        dataset, sampler, trainer = (item(flow, f"train#{name}") for name in ("dataset", "sampler", "trainer"))
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda _: found.append((dataset[0]["image"].clone(), list(sampler)))
        )
        flow.run()
        return found

    (one, order), (two, _), (other, other_order) = *seen("a", 0), seen("b", 1)[0]
    assert not torch.equal(one, two) and not torch.equal(one, other)
    assert sorted(order) == list(range(12)) and order != sorted(order) and order != other_order


@pytest.mark.parametrize(
    ("share", "in_bf16"), [(0.5, [4, 5, 6]), (1 / 6, [6]), (0.25, [5, 6]), (0.05, []), (1.0, [1, 2, 3, 4, 5, 6])]
)
def test_the_last_share_of_the_steps_is_bf16_and_no_step_before(share: float, in_bf16: list[int]) -> None:
    recipe = Recipe.from_config({"base": "full", "bf16_last_share": share})
    network, _ = convert(nn.Sequential(*(nn.Linear(32, 32) for _ in range(3))), recipe)
    layers = [layer for layer in network.modules() if isinstance(layer, NVFP4Layer)]
    found: list[int] = []

    def step(engine: Engine, _batch: Any) -> None:
        states = {layer.active for layer in layers}
        assert len(states) == 1
        if states == {False}:
            found.append(engine.state.iteration)

    engine = Engine(step)
    PrecisionSchedule(session(recipe=recipe), network).attach(engine)
    engine.run([0, 1], max_epochs=3)
    assert layers and found == in_bf16


def test_a_run_resumed_late_is_in_bf16_at_once() -> None:
    recipe = Recipe.from_config({"base": "full", "bf16_last_share": 0.5})
    network, _ = convert(nn.Sequential(*(nn.Linear(32, 32) for _ in range(3))), recipe)
    engine, found = Engine(lambda _engine, _batch: found.append(network[1].active)), []
    PrecisionSchedule(session(recipe=recipe), network).attach(engine)
    engine.add_event_handler(Events.STARTED, lambda e: (setattr(e.state, "epoch", 2), setattr(e.state, "iteration", 2)))
    engine.run([0], max_epochs=4)
    assert found == [False, False]


@pytest.mark.parametrize(("recipe", "share"), [("full", 0.0), ("bf16", 0.5)])
def test_without_a_schedule_nothing_is_attached(recipe: str, share: float) -> None:
    engine = Engine(lambda _engine, _batch: None)
    chosen = Recipe.from_config({"base": recipe, "bf16_last_share": share})
    PrecisionSchedule(session(recipe=chosen), nn.Identity()).attach(engine)
    assert not engine._event_handlers


@pytest.mark.parametrize(
    ("fold", "interval", "expected"), [(0, 1, [1, 2, 3, 4, 5]), (0, 2, [2, 4, 5]), (0, 9, [5]), ("all", 1, [5])]
)
def test_validations(fold: int | str, interval: int, expected: list[int]) -> None:
    ran: list[int] = []
    run: Any = SimpleNamespace(options=SimpleNamespace(fold=fold), world_size=1)
    validator: Any = SimpleNamespace(run=ran.append)
    engine = Engine(lambda _engine, _batch: None)
    Validation(run, validator, interval).attach(engine)
    engine.run([0], max_epochs=5)
    assert ran == expected


@pytest.mark.parametrize("processes", [1, 2])
def test_ranks_validate_with_the_statistics_that_checkpoints_hold(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, sent = nn.BatchNorm1d(2), []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: sent.append((id(tensor), source)))
    validator: Any = SimpleNamespace(network=network, run=lambda _epoch: sent.append("validates"))
    engine = Engine(lambda _engine, _batch: None)
    Validation(SimpleNamespace(options=SimpleNamespace(fold=0), world_size=processes), validator).attach(engine)  # type: ignore[arg-type]
    engine.run([0])
    assert sent == [*([(id(buffer), 0) for buffer in network.buffers()] if processes > 1 else []), "validates"]
