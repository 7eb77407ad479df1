"""One question, asked in one place: the first implementation that takes a tensor gets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from monai_fp4.errors import ConfigError
from monai_fp4.quantization import Recipe, fake_quantize
from monai_fp4.quantization.formats.scheme import Scheme
from monai_fp4.quantization.kernels import cpu_gemm, cpu_quantize, torch_quantize, triton_quantize
from monai_fp4.quantization.kernels.dispatch import KernelError, dispatch, plain_torch
from monai_fp4.quantization.kernels.quantizers import QUANTIZERS
from monai_fp4.quantization.kernels.task import Task
from monai_fp4.quantization.layers import NVFP4Conv2d, NVFP4Linear
from monai_fp4.quantization.layers.conv_products import ConvSpec
from monai_fp4.quantization.layers.gemm import MULTIPLIERS
from monai_fp4.quantization.layers.geometry import ConvGeometry
from monai_fp4.quantization.layers.linear_products import LinearSpec
from monai_fp4.quantization.numerics import decode, scaled_values


@dataclass
class Row:
    """An implementation that takes what is on its list and notes what it was asked."""

    name: str
    knows: tuple[object, ...] = ()
    fails: bool = False
    asked: list[object] = field(default_factory=list)

    def takes(self, x: Tensor, task: object) -> bool:
        self.asked.append(task)
        return task in self.knows

    def compute(self) -> str:
        if self.fails:
            raise KernelError(self.name)
        return self.name


def chosen(table: list[Row], task: object, x: Tensor | None = None) -> str:
    return dispatch(table, torch.ones(1) if x is None else x, task, Row.compute)


def test_the_first_that_takes_it_computes_and_the_last_takes_everything() -> None:
    table = [Row("one", ("a",)), Row("two", ("a", "b")), Row("plain")]
    assert [chosen(table, task) for task in "abc"] == ["one", "two", "plain"]
    assert table[0].asked == ["a", "b", "c"] and table[1].asked == ["b", "c"] and table[2].asked == []


def test_a_kernel_that_fails_leaves_the_work_to_the_next() -> None:
    table = [Row("one", ("a",), fails=True), Row("two", ("a",)), Row("plain")]
    assert chosen(table, "a") == "two"
    assert chosen([Row("one", ("a",), fails=True), Row("plain")], "a") == "plain"


def test_other_errors_are_no_failures_of_a_kernel() -> None:
    def refuse(row: Row) -> str:
        raise ConfigError(row.name)

    with pytest.raises(ConfigError, match="one"):
        dispatch([Row("one", ("a",)), Row("plain")], torch.ones(1), "a", refuse)


def test_plain_torch_alone_is_asked_where_kernels_cannot_look() -> None:
    table = [Row("one", ("a",)), Row("plain")]
    with plain_torch():
        with plain_torch():
            assert chosen(table, "a") == "plain"
        assert chosen(table, "a") == "plain"
    with FakeTensorMode():
        assert chosen(table, "a", torch.ones(1)) == "plain"
    assert chosen(table, "a") == "one"


def test_a_compiler_sees_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert chosen([Row("one", ("a",)), Row("plain")], "a") == "plain"


def test_the_switch_is_turned_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), plain_torch():
        raise ZeroDivisionError
    assert chosen([Row("one", ("a",)), Row("plain")], "a") == "one"


def test_every_quantization_asks_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is added to the table computes, through both public functions, and is asked about the format."""
    asked = []

    class Recording:
        takes = staticmethod(lambda x, task: asked.append(task.scheme) or task.scheme is Scheme.NVFP4)
        quantize = staticmethod(lambda x, task: torch_quantize.quantize(x * 2, task))

    monkeypatch.setattr("monai_fp4.quantization.kernels.quantizers.QUANTIZERS", (Recording, *QUANTIZERS))
    x = torch.randn(4, 32)
    with plain_torch():
        expected, mxfp4 = fake_quantize(x * 2), scaled_values(x, scheme=Scheme.MXFP4)
    assert torch.equal(scaled_values(x).amax, 2 * x.abs().amax()) and torch.equal(fake_quantize(x), expected)
    assert torch.equal(scaled_values(x, scheme=Scheme.MXFP4).values, mxfp4.values)
    assert asked == [Scheme.NVFP4, Scheme.NVFP4, Scheme.MXFP4]


@pytest.mark.parametrize("layer", [NVFP4Linear(16, 16, recipe="full"), NVFP4Conv2d(16, 16, 1, recipe="full")])
def test_every_layer_asks_the_table(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward both go to a new first row."""
    computed = []
    for spec, rows in MULTIPLIERS.items():

        class Recording(rows[-1]):  # type: ignore[misc, valid-type]
            def forward(self, x, weight):  # type: ignore[no-untyped-def]
                computed.append("forward")
                return super().forward(x, weight)

            def gradients(self, *arguments):  # type: ignore[no-untyped-def]
                computed.append("backward")
                return super().gradients(*arguments)

        monkeypatch.setitem(MULTIPLIERS, spec, (Recording, *rows))  # type: ignore[arg-type]
    x = torch.randn(2, 16) if isinstance(layer, nn.Linear) else torch.randn(2, 16, 4, 4)
    layer(x.requires_grad_()).sum().backward()
    assert computed == ["forward", "backward"]


@pytest.mark.parametrize("scheme", [Scheme.FOUR_OVER_SIX, Scheme.MXFP4])
def test_kernels_leave_formats_alone_that_they_do_not_know(scheme: Scheme) -> None:
    x, task = torch.ones(16, 16), Task(scheme=scheme)
    assert not cpu_quantize.takes(x, task) and not triton_quantize.takes(x, task)
    assert torch_quantize.takes(x, task)


def test_kernels_leave_other_devices_alone() -> None:
    x = torch.ones(16, 16, device="meta")
    assert not any(row.takes(x, Scheme.NVFP4) for row in QUANTIZERS[:-1])


@pytest.mark.parametrize("missing", [cpu_quantize, cpu_gemm])
def test_the_compiled_products_need_both_kernels(missing: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = NVFP4Linear(16, 16, recipe="full"), torch.randn(2, 16)
    with plain_torch():
        expected = layer(x)
    monkeypatch.setattr(missing, "available", lambda: False)
    monkeypatch.setattr(cpu_gemm, "matrix_product", lambda *_: pytest.fail("a kernel is missing"))
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(
    ("scheme", "count", "available", "taken"),
    [
        (Scheme.NVFP4, 16, True, True),
        (Scheme.NVFP4, 0, True, False),
        (Scheme.NVFP4, 16, False, False),
        (Scheme.MXFP4, 16, True, False),
        (Scheme.FOUR_OVER_SIX, 16, True, False),
    ],
)
def test_triton_takes_numbers_in_the_standard_format_on_a_gpu(
    scheme: Scheme, count: int, available: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_quantize, "available", lambda device: (available, "a GPU"))
    x: Any = SimpleNamespace(is_cuda=True, device="cuda", numel=lambda: count)
    assert triton_quantize.takes(x, Task(scheme=scheme)) is taken
    assert not cpu_quantize.takes(SimpleNamespace(is_cpu=False), Task(scheme=scheme))  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", Scheme)
def test_the_definition_decodes_every_format(scheme: Scheme) -> None:
    x = torch.randn(4, 64)
    found = torch_quantize.quantize(x, Task(decoded=True, with_scales=False, scheme=scheme))
    assert torch.equal(found.values, decode(torch_quantize.quantize(x, Task(scheme=scheme))))
    assert found.scheme is scheme and found.scales.numel() == 0


@pytest.mark.parametrize("fields", [{"format": "mxfp4"}, {"four_over_six": "weights"}])
def test_recipes_in_other_formats_are_multiplied_in_plain_torch(fields: dict[str, str]) -> None:
    recipe = Recipe.from_config({"forward": "fp4", "backward": "fp4", **fields})
    for spec in (
        LinearSpec(recipe, torch.float32),
        ConvSpec(ConvGeometry((1,), (1,), (0,), (1,), 1), recipe, torch.float32, False, (1, 16, 4)),
    ):
        takers = [row.takes(torch.ones(2, 16), spec) for row in MULTIPLIERS[type(spec)]]
        assert takers == [False, False, True]
