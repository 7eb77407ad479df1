"""Which backend runs where, what a recipe becomes in Transformer Engine, what a wrapped layer keeps of nn.Linear."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from monai_fp4.backends import BACKENDS, select_backend
from monai_fp4.backends.te_linear import TELinear, te_takes
from monai_fp4.backends.transformer_engine import CAPABILITIES, te_flags
from monai_fp4.errors import ConfigError
from monai_fp4.layers import NVFP4Linear
from monai_fp4.recipes import RECIPES

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
TE = BACKENDS["transformer_engine"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine that Transformer Engine runs on; tests take one thing away from it."""
    state = SimpleNamespace(
        cuda=True, capability=(10, 0), versions={"transformer-engine": "2.20.2", "transformer-engine-torch": "2.20.2"}
    )

    def version(package: str) -> str:
        if package not in state.versions:
            raise metadata.PackageNotFoundError(package)
        return state.versions[package]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: state.cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: state.capability)
    monkeypatch.setattr(metadata, "version", version)
    return state


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_auto_takes_transformer_engine_where_it_works(machine: SimpleNamespace, capability: tuple[int, int]) -> None:
    machine.capability = capability
    assert TE.check(CUDA).reasons == ()
    assert select_backend("auto", CUDA).name == "transformer_engine"
    assert select_backend("transformer_engine", CUDA).name == "transformer_engine"


@pytest.mark.parametrize(
    ("change", "device", "dtype", "reason"),
    [
        ({"capability": (9, 0)}, CUDA, torch.bfloat16, "compute capability 9.0 and NVFP4 training needs 10.0 or 10.3"),
        ({"capability": (12, 0)}, CUDA, torch.bfloat16, "compute capability 12.0"),
        ({"cuda": False}, CUDA, torch.bfloat16, "no CUDA device"),
        ({}, CPU, torch.bfloat16, "the model is on cpu"),
        ({}, CUDA, torch.float32, "turn on BF16 autocast"),
        ({"versions": {}}, CUDA, torch.bfloat16, "not installed"),
        (
            {"versions": {"transformer-engine": "2.20.2"}},
            CUDA,
            torch.bfloat16,
            "without its compiled PyTorch extension",
        ),
        (
            {"versions": {"transformer-engine": "2.9.0", "transformer-engine-torch": "2.9.0"}},
            CUDA,
            torch.bfloat16,
            "2.20 or later is needed",
        ),
    ],
)
def test_each_missing_thing_is_a_reason_of_its_own(
    machine: SimpleNamespace, change: dict[str, object], device: torch.device, dtype: torch.dtype, reason: str
) -> None:
    machine.__dict__.update(change)
    availability = TE.check(device, dtype)
    assert not availability.available
    assert len(availability.reasons) == 1
    assert reason in availability.reasons[0]
    assert select_backend("auto", device, dtype).name == "emulated"
    with pytest.raises(ConfigError, match="was asked for but does not work here") as caught:
        select_backend("transformer_engine", device, dtype)
    assert reason in str(caught.value)


def test_all_reasons_are_given_at_once(machine: SimpleNamespace) -> None:
    machine.capability, machine.versions = (8, 0), {}
    assert len(TE.check(CPU, torch.float16).reasons) == 4


def test_an_unknown_backend_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"backend 'emulate' is not known; the nearest names are 'emulated'"):
        select_backend("emulate", CPU)


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None, reason="transformer-engine is not installed"
)
def test_flags_are_those_of_the_real_dataclass() -> None:
    # In a process of its own: the import needs NVTE_PROJECT_BUILDING, and environment variables that must not win.
    flags = {name: te_flags(recipe) for name, recipe in RECIPES.items() if recipe.quantizes}
    program = """
import json, sys, warnings
warnings.simplefilter("ignore")
from transformer_engine.common.recipe import NVFP4BlockScaling
found = {}
for name, flags in json.loads(sys.argv[1]).items():
    recipe = NVFP4BlockScaling(**flags)
    x, w, dy = recipe.fp4_quant_fwd_inp, recipe.fp4_quant_fwd_weight, recipe.fp4_quant_bwd_grad
    found[name] = [x.random_hadamard_transform, w.random_hadamard_transform, dy.random_hadamard_transform,
                   x.stochastic_rounding, w.stochastic_rounding, dy.stochastic_rounding, w.fp4_2d_quantization,
                   recipe.backward_override, recipe.row_scaled_activation, recipe.nvfp4_4over6]
print(json.dumps(found))
"""
    hostile = {
        "NVTE_NVFP4_ROW_SCALED_ACTIVATION": "1",
        "NVTE_NVFP4_4OVER6": "all",
        "NVTE_BACKWARD_OVERRIDE": "dequantized",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(flags)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NVTE_PROJECT_BUILDING": "1"} | hostile,
    )
    assert done.returncode == 0, done.stderr
    overrides = {"fp4": None, "high_precision": "high_precision", "dequantized": "dequantized"}
    for name, found in json.loads(done.stdout).items():
        rht, sr, two_d = "rht" in name.split("_"), "sr" in name.split("_"), "2d" in name.split("_")
        expected = [rht, False, rht, False, False, sr, two_d, overrides[RECIPES[name].backward], False, "none"]
        assert found == expected, name


def test_bf16_has_no_transformer_engine_recipe() -> None:
    with pytest.raises(ConfigError, match="quantizes nothing"):
        te_flags(RECIPES["bf16"])


def test_transformer_engine_leaves_convolutions_to_the_emulation() -> None:
    assert "no library has an NVFP4 Conv2d" in (TE.refuses(nn.Conv2d(32, 32, 3), RECIPES["full"]) or "")
    assert TE.refuses(nn.Linear(32, 32), RECIPES["full"]) is None
    with pytest.raises(ConfigError, match="expected a Linear layer, found Conv2d"):
        TE.build(nn.Conv2d(32, 32, 3), RECIPES["full"])


def test_a_wrapped_layer_is_a_linear_layer_to_everybody_else() -> None:
    plain = nn.Linear(40, 24)
    layer = TE.build(plain, RECIPES["full"])
    assert isinstance(layer, TELinear)
    assert layer.weight is plain.weight
    assert list(layer.state_dict()) == ["weight", "bias"]
    nn.Linear(40, 24).load_state_dict(layer.state_dict(), strict=True)
    layer.load_state_dict(nn.Linear(40, 24).state_dict(), strict=True)
    object.__setattr__(layer, "_te", "a handle of this process")
    assert copy.deepcopy(layer)._te is None
    assert pickle.loads(pickle.dumps(layer))._te is None
    assert [name for name, _ in layer.named_modules()] == [""]


def test_a_wrapped_layer_on_the_cpu_computes_what_the_emulation_computes() -> None:
    torch.manual_seed(0)
    plain, x = nn.Linear(40, 24), torch.randn(5, 40)
    wrapped, emulated = TE.build(plain, RECIPES["full"]), NVFP4Linear.from_float(plain, RECIPES["full"])
    assert torch.equal(wrapped(x), emulated(x))
    assert not torch.equal(wrapped(x), plain(x))
    wrapped.active = False
    assert torch.equal(wrapped(x), plain(x))


def test_dtypes_that_transformer_engine_takes() -> None:
    bf16, fp32, fp16 = torch.bfloat16, torch.float32, torch.float16
    assert all(te_takes(bf16, bf16, recipe) for recipe in RECIPES.values())
    assert te_takes(fp32, fp32, RECIPES["sr_2d"])
    assert te_takes(bf16, fp32, RECIPES["sr_rht_2d"])
    assert not te_takes(fp32, fp32, RECIPES["sr_rht_2d"])  # its kernels rotate BF16 only
    assert te_takes(fp32, fp32, RECIPES["chain_rule"])
    assert not te_takes(bf16, fp32, RECIPES["forward_only"])  # no product of a BF16 gradient and an FP32 weight
    assert not te_takes(fp16, fp32, RECIPES["full"])


def test_availability_is_a_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TE.check(CPU).available = True  # type: ignore[misc]
