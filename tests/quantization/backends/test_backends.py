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
import warnings
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.backends import BACKENDS, select_backend, self_test, te_product, transformer_engine
from monai_fp4.quantization.backends.self_test import Verdict
from monai_fp4.quantization.backends.te_product import obstacle
from monai_fp4.quantization.backends.te_recipe import te_flags
from monai_fp4.quantization.backends.transformer_engine import CAPABILITIES
from monai_fp4.quantization.conversion import convert, unconvert
from monai_fp4.quantization.layers import LAYER_TYPES, NVFP4Layer
from monai_fp4.quantization.recipes import RECIPES

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
TE, IM2COL = BACKENDS["transformer_engine"], BACKENDS["transformer_engine_im2col"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine that Transformer Engine runs on; tests take one thing away from it."""
    state = SimpleNamespace(
        cuda=True,
        capability=(10, 0),
        versions={"transformer-engine": "2.20.2", "transformer-engine-torch": "2.20.2"},
        faults=[],
        passed=False,
        tested=[],
    )

    def version(package: str) -> str:
        if package not in state.versions:
            raise metadata.PackageNotFoundError(package)
        return state.versions[package]

    def tested(device: str) -> Verdict:
        state.tested.append(device)
        return Verdict(state.passed, f"the self-test on {device} says {'yes' if state.passed else 'no'}")

    monkeypatch.setattr(self_test, "self_test", tested)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: state.cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: state.capability)
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(transformer_engine, "_import_faults", lambda: list(state.faults))
    return state


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was said yet about layers that are left to the emulation."""
    monkeypatch.setattr(te_product, "_warned", set())


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_auto_takes_transformer_engine_where_it_works(machine: SimpleNamespace, capability: tuple[int, int]) -> None:
    machine.capability = capability
    assert TE.check(CUDA).reasons == ()
    assert select_backend("auto", CUDA).name == "transformer_engine"
    assert select_backend("transformer_engine", CUDA).name == "transformer_engine"
    assert machine.tested == []


@pytest.mark.parametrize("capability", [(12, 0), (12, 1), (11, 0), (13, 0)])
def test_a_gpu_that_is_not_known_is_asked_itself(machine: SimpleNamespace, capability: tuple[int, int]) -> None:
    machine.capability, machine.passed = capability, True
    availability = TE.check(torch.device("cuda", 1))
    assert availability.available
    assert availability.evidence == "the self-test on cuda:1 says yes"
    assert select_backend("auto", CUDA).name == "transformer_engine"
    assert machine.tested == ["cuda:1", "cuda:3"]  # the second is the current device
    TE.check(CUDA, torch.float16)  # what cannot run anyhow is not tested
    assert len(machine.tested) == 2


@pytest.mark.parametrize(
    ("change", "device", "dtype", "reason"),
    [
        (
            {"capability": (9, 0)},
            CUDA,
            torch.bfloat16,
            "9.0 has no FP4 tensor cores and NVFP4 training needs 10.0 or later",
        ),
        ({"capability": (8, 6)}, CUDA, torch.bfloat16, "8.6 has no FP4 tensor cores"),
        ({"capability": (12, 0)}, CUDA, torch.bfloat16, "the self-test on cuda:3 says no: update Transformer Engine"),
        ({"capability": (11, 0)}, CUDA, torch.bfloat16, "the self-test on cuda:3 says no"),
        ({"capability": (12, 0), "versions": {}}, CUDA, torch.bfloat16, "not installed"),  # and nothing is tested
        ({"faults": ["cannot be imported (OSError)"]}, CUDA, torch.bfloat16, "cannot be imported"),
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
        (
            {"versions": {"transformer-engine": "2.21.0", "transformer-engine-torch": "2.20.2"}},
            CUDA,
            torch.bfloat16,
            "2.21.0 is installed with the PyTorch extension of version 2.20.2",
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


def test_fast_math_would_be_other_numbers(machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVTE_USE_FAST_MATH", "0")
    assert TE.check(CUDA).available
    monkeypatch.setenv("NVTE_USE_FAST_MATH", "1")
    assert "unset it" in TE.check(CUDA).reasons[0]


# The first is a variable of four over six, the second of the fused rotation, the third is none that exists.
@pytest.mark.parametrize("kind", ["NVFP4_4OVER6_ERR", "RHT_CAST_FUSION", "TOMORROWS"])
def test_every_shortcut_of_its_kind_is_refused_by_name(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv(f"NVTE_{kind}_USE_FAST_MATH", "1")
    (reason,) = TE.check(CUDA).reasons
    assert f"NVTE_{kind}_USE_FAST_MATH is set" in reason
    monkeypatch.setenv(f"NVTE_{kind}_USE_FAST_MATH", "")
    assert TE.check(CUDA).available


def test_an_installation_that_cannot_be_imported_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    (reason,) = transformer_engine._import_faults()
    assert "cannot be imported (ModuleNotFoundError: " in reason


@pytest.mark.parametrize(("answer", "reasons"), [((True, ""), 0), ((False, "no FP4 today"), 1)])
def test_transformer_engine_is_asked_itself(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[bool, str], reasons: int
) -> None:
    names = ["", ".pytorch", ".pytorch.module", ".pytorch.module.linear", ".pytorch.quantization"]
    for name in names:
        module = SimpleNamespace(Linear=object, is_nvfp4_available=lambda return_reason: answer, __path__=[])
        monkeypatch.setitem(sys.modules, "transformer_engine" + name, module)
    found = transformer_engine._import_faults()
    assert len(found) == reasons
    assert all(answer[1] in reason for reason in found)


PLAIN = [
    nn.Linear(40, 24),
    nn.Conv1d(16, 16, 1),
    nn.Conv2d(32, 16, 1, stride=2),
    nn.Conv2d(3, 32, 4, stride=4),
    nn.Conv3d(16, 32, 2, stride=2, padding="valid"),
    nn.ConvTranspose2d(32, 16, 2, stride=2),
    nn.ConvTranspose3d(32, 16, 2, stride=2),
]
OVERLAPPING = [nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(16, 16, 1, padding=1), nn.Conv3d(16, 16, 3, dilation=2)]
NOT_A_PRODUCT = {
    "no groups": nn.Conv2d(64, 64, 1, groups=2),
    "would round each tap": nn.ConvTranspose2d(32, 32, 3, stride=2, padding=1),
}


@pytest.mark.parametrize("layer", [*PLAIN, *OVERLAPPING, *NOT_A_PRODUCT.values()], ids=str)
def test_which_layers_transformer_engine_takes(layer: nn.Module) -> None:
    taken = any(layer is one for one in PLAIN)
    assert (TE.refuses(layer, RECIPES["full"]) is None) == taken
    assert (IM2COL.refuses(layer, RECIPES["full"]) is None) == (taken or any(layer is one for one in OVERLAPPING))
    for backend in (TE, IM2COL):
        if (reason := backend.refuses(layer, RECIPES["full"])) is not None:
            with pytest.raises(ConfigError, match="does not take this"):
                backend.build(layer, RECIPES["full"])
            assert reason.startswith("emulated: ")
        else:
            built = backend.build(layer, RECIPES["full"])
            assert isinstance(built, te_product.TEProduct)
            assert isinstance(built, LAYER_TYPES[type(layer)])


def test_it_says_what_is_no_product_and_what_it_cannot_build() -> None:
    for reason, layer in NOT_A_PRODUCT.items():
        assert reason in (IM2COL.refuses(layer, RECIPES["full"]) or "")
    assert "no library has an NVFP4 Conv2d" in (TE.refuses(OVERLAPPING[0], RECIPES["full"]) or "")
    for kind, layer in ((nn.Linear, nn.Linear(32, 32)), (nn.Conv2d, nn.Conv2d(32, 32, 1))):
        layer.__class__ = type("Mine", (kind,), {})
        assert TE.refuses(layer, RECIPES["full"]) == "emulated: Mine is none of torch's own classes"
    with pytest.raises(ConfigError, match="expected a linear layer or a convolution, found LayerNorm"):
        TE.build(nn.LayerNorm(32), RECIPES["full"])


def test_im2col_is_never_chosen_by_itself(machine: SimpleNamespace) -> None:
    assert select_backend("auto", CUDA).name == "transformer_engine"
    assert select_backend("transformer_engine_im2col", CUDA).name == "transformer_engine_im2col"
    machine.capability = (9, 0)
    assert select_backend("auto", CUDA).name == "emulated"


@pytest.mark.parametrize(("name", "emulated"), [("transformer_engine", 2), ("transformer_engine_im2col", 1)])
def test_the_conversion_report_says_which_layers_are_emulated(
    monkeypatch: pytest.MonkeyPatch, name: str, emulated: int
) -> None:
    monkeypatch.setattr(type(BACKENDS[name]), "check", lambda *args: BACKENDS["emulated"].check(CPU))
    # stem and head stay in high precision
    body = [nn.Conv2d(32, 64, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1, groups=2)]
    model = nn.Sequential(nn.Conv2d(3, 32, 3), *body, nn.ConvTranspose2d(64, 32, 2, stride=2), nn.Conv2d(32, 1, 1))
    keys, before = list(model.state_dict()), [type(layer) for layer in model]
    model, report = convert(model, "full", backend=name)
    layers = [layer for layer in report.layers if layer.quantized]
    assert [layer.backend for layer in layers].count(name) == 4 - emulated
    assert sum("emulated: " in layer.reason for layer in layers) == emulated
    assert list(model.state_dict()) == keys
    assert [type(layer) for layer in unconvert(model)] == before


@pytest.mark.parametrize("plain", PLAIN, ids=str)
def test_a_wrapped_layer_is_a_plain_layer_to_everybody_else(plain: nn.Module) -> None:
    layer = TE.build(plain, RECIPES["full"])
    assert layer.weight is plain.weight
    assert list(layer.state_dict()) == ["weight", "bias"]
    copy.deepcopy(plain).load_state_dict(layer.state_dict(), strict=True)
    layer.load_state_dict(copy.deepcopy(plain).state_dict(), strict=True)
    layer._te["a device"] = lambda: "a handle of this process, which cannot be pickled"  # type: ignore[operator,index]
    assert copy.deepcopy(layer)._te == pickle.loads(pickle.dumps(layer))._te == {}
    assert len(layer._te) == 1  # type: ignore[arg-type]
    assert [name for name, _ in layer.named_modules()] == [""]


@pytest.mark.usefixtures("untold")
@pytest.mark.parametrize(("plain", "shape"), [(nn.Linear(40, 24), (5, 40)), (PLAIN[3], (2, 3, 8, 8))], ids=str)
def test_a_wrapped_layer_on_the_cpu_computes_what_the_emulation_computes(
    plain: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    wrapped, emulated = TE.build(plain, RECIPES["full"]), LAYER_TYPES[type(plain)].from_float(plain, RECIPES["full"])
    assert isinstance(wrapped, NVFP4Layer)
    with pytest.warns(UserWarning, match="computed by the emulation, in the same numbers: its input is on cpu"):
        assert torch.equal(wrapped(x), emulated(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert not torch.equal(wrapped(x), plain(x))
        wrapped.active = False
        assert torch.equal(wrapped(x), plain(x))


@pytest.mark.usefixtures("untold")
def test_a_layer_that_is_not_quantizing_has_nothing_to_say() -> None:
    layer, empty = TE.build(nn.Linear(32, 32), RECIPES["full"]), torch.zeros(0, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layer(empty).shape == (0, 32)
        layer.active = False  # type: ignore[assignment]
        layer(torch.randn(2, 32))


def test_what_keeps_a_call_from_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    bf16, fp32, fp16 = torch.bfloat16, torch.float32, torch.float16

    def on_cuda(dtype: torch.dtype) -> torch.Tensor:
        return SimpleNamespace(is_cuda=True, dtype=dtype, device=CUDA)  # type: ignore[return-value]

    def weight(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(0, dtype=dtype)

    assert "on cpu" in (obstacle(torch.zeros(1), weight(fp32)) or "")
    assert obstacle(on_cuda(bf16), weight(bf16)) is None
    assert obstacle(on_cuda(bf16), weight(fp32)) is None
    assert "turn on BF16 autocast" in (obstacle(on_cuda(fp32), weight(fp32)) or "")
    assert "its weight is torch.float16" in (obstacle(on_cuda(bf16), weight(fp16)) or "")
    monkeypatch.setattr(
        te_product, "working_dtype", lambda x: bf16
    )  # BF16 autocast, which wants a GPU to be on for one
    assert obstacle(on_cuda(fp32), weight(fp32)) is None  # a layer norm's output: cast, under every recipe
    monkeypatch.setattr(te_product, "working_dtype", lambda x: fp16)
    assert "works in torch.float16" in (obstacle(on_cuda(fp32), weight(fp32)) or "")


def test_availability_is_a_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TE.check(CPU).available = True  # type: ignore[misc]
