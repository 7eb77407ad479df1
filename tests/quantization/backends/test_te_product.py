"""Where and when `te.Linear` is built and called: by stand-ins for Transformer Engine, whose numbers play no part."""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_fp4.quantization.backends import BACKENDS, te_product
from monai_fp4.quantization.kernels import triton_gemm, triton_launch
from monai_fp4.quantization.recipes import RECIPES

TE = BACKENDS["transformer_engine"]


class StandIn(nn.Module):
    """Draws initial weights where te.Linear does: unless it is built on the device meta."""

    made: ClassVar[list[StandIn]] = []
    enabled: ClassVar[bool] = False  # of the whole process, as in Transformer Engine

    def __init__(self, inputs: int, outputs: int, *, device: object, params_dtype: torch.dtype, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, device=device, dtype=params_dtype))  # type: ignore[call-overload]
        if device != "meta":
            nn.init.normal_(self.weight)
        self.made.append(self)

    def forward(self, x: Tensor) -> Tensor:
        assert StandIn.enabled
        return F.linear(x, self.weight.to(x.dtype))


@contextlib.contextmanager
def autocast(enabled: bool, recipe: object) -> Iterator[None]:
    before, StandIn.enabled = StandIn.enabled, enabled
    try:
        yield
    finally:
        StandIn.enabled = before


@pytest.fixture
def te(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Transformer Engine by stand-ins, on tensors of the CPU that pass for CUDA's; the layers of it that were built."""
    for name in ("", ".pytorch", ".pytorch.module", ".pytorch.module.linear", ".pytorch.quantization"):
        quantized_model_init = lambda enabled: contextlib.nullcontext()  # noqa: E731
        module = SimpleNamespace(Linear=StandIn, autocast=autocast, quantized_model_init=quantized_model_init)
        monkeypatch.setitem(sys.modules, "transformer_engine" + name, module)
    monkeypatch.setattr(te_product, "obstacle", lambda input, weight: None)
    monkeypatch.setattr(te_product, "te_recipe", lambda recipe: recipe)
    monkeypatch.setattr(StandIn, "made", [])
    monkeypatch.setattr(StandIn, "enabled", False)
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True))
    return StandIn.made


LAYERS = [nn.Linear(40, 24), nn.Conv2d(3, 32, 4, stride=4), nn.ConvTranspose2d(32, 16, 2, stride=2)]
SHAPES = [(5, 40), (2, 3, 8, 8), (2, 32, 4, 4)]


@pytest.mark.parametrize(("plain", "shape"), list(zip(LAYERS, SHAPES, strict=True)), ids=str)
def test_te_linear_is_built_at_conversion_and_draws_nothing(
    te: list[Any], plain: nn.Module, shape: tuple[int, ...]
) -> None:
    x, before = torch.randn(shape), torch.get_rng_state()
    layer = TE.build(plain, RECIPES["full"])
    assert len(te) == 1
    layer(x)
    assert len(te) == 1
    copy.deepcopy(layer)(x)
    assert len(te) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_that_has_moved_or_has_another_recipe_builds_anew(te: list[Any]) -> None:
    layer: Any = TE.build(nn.Linear(32, 32), RECIPES["full"])
    one, other = (layer.te_linear(torch.device("cuda", index)) for index in (0, 1))
    assert one is not other
    assert layer.te_linear(torch.device("cuda", 0)) is one
    layer.recipe = RECIPES["rht"]
    assert layer.te_linear(torch.device("cuda", 0)) is not one
    assert len(te) == 4  # one at conversion, on the CPU


def test_the_replicas_of_data_parallel_share_what_is_built(te: list[Any]) -> None:
    layer: Any = TE.build(nn.Linear(32, 32), RECIPES["full"])
    for _ in range(2):  # torch makes them anew for each forward pass
        layer._replicate_for_data_parallel().te_linear(torch.device("cuda", 1))
    assert len(te) == 2


def test_threads_do_not_turn_each_others_autocast(te: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # While the first is inside, the second tries to come in. Were it let in, it would say so within the second's wait.
    layers = [TE.build(nn.Linear(32, 32), RECIPES["full"]) for _ in range(2)]
    entered, together = [threading.Event(), threading.Event()], []

    def forward(self: StandIn, x: Tensor) -> Tensor:
        index = te.index(self)
        entered[index].set()
        if index == 0:
            together.append(entered[1].wait(timeout=0.3))
        return F.linear(x, self.weight.to(x.dtype))

    monkeypatch.setattr(StandIn, "forward", forward)
    first = threading.Thread(target=layers[0], args=(torch.randn(4, 32),))
    first.start()
    assert entered[0].wait(timeout=60)
    layers[1](torch.randn(4, 32))
    first.join()
    assert together == [False]
    assert not StandIn.enabled


def test_te_linear_is_called_on_the_device_of_its_input(te: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []

    @contextlib.contextmanager
    def device_of(x: Tensor) -> Iterator[None]:
        devices.append(x.device)
        yield
        devices.pop()

    def forward(self: StandIn, x: Tensor) -> Tensor:
        assert devices == [x.device]
        return F.linear(x, self.weight.to(x.dtype))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(StandIn, "forward", forward)
    TE.build(nn.Linear(32, 32), RECIPES["full"])(torch.randn(4, 32))
    assert devices == []


@pytest.mark.parametrize("module", [triton_gemm, triton_launch], ids=lambda module: module.__name__.split(".")[-1])
def test_every_triton_kernel_is_launched_on_the_device_of_its_operands(module: Any) -> None:
    # Two GPUs would show it; without them the launches, `kernel[grid](...)`, are looked up in the source.
    tree = ast.parse(inspect.getsource(module))
    guarded = {
        launch
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and "torch.cuda.device_of" in ast.unparse(node.items[0].context_expr)
        for launch in launches(node)
    }
    assert guarded
    assert launches(tree) == guarded


def launches(tree: ast.AST) -> set[ast.Call]:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {call for call in calls if isinstance(call.func, ast.Subscript)}
