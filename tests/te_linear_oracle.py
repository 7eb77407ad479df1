"""Runs Transformer Engine's own ``te.Linear`` on a CPU: the oracle for a whole linear layer, forward and backward.

Started as a program, in a process of its own, because it puts stand-ins into ``sys.modules`` that no other test may
see:

    python te_linear_oracle.py CASES.pt RESULTS.pt
    python te_linear_oracle.py --run PROGRAM.py ARGUMENTS...

``CASES.pt`` holds a list of dicts (``x``, ``weight``, ``dy``, ``rht``, ``two_d``, and if wanted
``backward_override``, ``autocast`` (a dtype), or ``recipe`` (a name: run our wrapper of te.Linear instead) with, for a
convolution, ``layer`` (the name of a class of torch.nn and its arguments)); ``RESULTS.pt`` gets a list of dicts
(``y``, ``dx``, ``dw``).

The second runs a program that uses the Transformer Engine backend, on tensors of the CPU, with TE's reference quantizer
in place of TE's kernels: recipes with stochastic rounding and four over six included (`reference_recipe`).

What is real and what is not. Real: ``te.Linear`` with its autograd function, ``te.autocast``, ``CustomRecipe``,
``NVFP4QuantizerRef`` and its GEMM, all as the wheel ships them. Stand-ins: the compiled extension
(``transformer_engine_torch``), Triton and onnxscript, none of which this path calls, and the few CUDA queries on the
way to the first quantizer. A stand-in that *is* called raises, so the oracle cannot quietly answer with something of
ours. Two exceptions for ``backward_override``: the high-precision GEMM (cuBLAS in TE) is a product in FP32, and
``NVFP4TensorRef.dequantize``, which the wheel leaves out, is written here; which operands meet in which GEMM is still
TE's. And one more, for our layers only: see `_KernelAlpha`.
"""

from __future__ import annotations

import copy
import enum
import importlib
import importlib.abc
import importlib.machinery
import itertools
import os
import runpy
import sys
import types
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch

os.environ["NVTE_PROJECT_BUILDING"] = "1"  # lets transformer_engine.common be imported without its shared libraries

_STAND_INS = (
    "transformer_engine_torch",
    "transformer_engine.pytorch.triton",
    "transformer_engine.pytorch.onnx_extensions",
)
_numbers = itertools.count()


class _StandIn(type):
    """A class whose every attribute is a distinct number (an enum member, as far as TE's tables can tell)."""

    def __getattr__(cls, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(cls, name, number := next(_numbers))
        return number

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        raise RuntimeError(
            f"te.Linear called {cls.__name__} of the compiled extension, which the oracle only stands in for"
        )


class _StandInModule(types.ModuleType):
    __path__: ClassVar[list[str]] = []
    __all__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, value := _StandIn(name, (), {}))
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if any(name == root or name.startswith(root + ".") for root in _STAND_INS):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "transformer_engine_torch":  # TE compares its Python enums with these, member by member
            for name, members in {
                "DType": "kByte kInt32 kFloat32 kFloat16 kBFloat16 kFloat8E4M3 kFloat8E5M2 kFloat4E2M1",
                "FP8FwdTensors": " ".join(
                    f"GEMM{i}_{part}" for i in (1, 2, 3) for part in ("INPUT", "WEIGHT", "OUTPUT")
                ),
                "FP8BwdTensors": " ".join(f"GRAD_{part}{i}" for i in (1, 2, 3) for part in ("OUTPUT", "INPUT")),
                "NVTE_Fused_Attn_Backend": "NVTE_No_Backend NVTE_F16_arbitrary_seqlen NVTE_FP8",
            }.items():
                setattr(module, name, enum.IntEnum(name, members, start=0))


def _generic_gemm(
    a: torch.Tensor, transa: bool, b: torch.Tensor, transb: bool, *args: Any, **kwargs: Any
) -> tuple[Any, ...]:
    """cuBLAS's column-major ``op(a) op(b)`` as TE calls it, which in row-major words is ``op(b) @ op(a)``."""
    product = (b.t() if transb else b).float() @ (a.t() if transa else a).float()
    return product.to(b.dtype), None, None, None


def _dequantize(tensor: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Decode the row-wise copy of an ``NVFP4TensorRef``, with TE's own table of E2M1 values."""
    codes = sys.modules["transformer_engine.pytorch.custom_recipes.reference_nvfp4"].cast_from_fp4x2(
        tensor.data, torch.float32
    )
    rows, columns = codes.shape
    scales = (tensor.scale.float() * tensor.global_amax_row) * (1.0 / 2688.0)
    scales = scales.repeat_interleave(16, dim=1)[:rows, :columns]
    return (codes * scales).to(dtype or tensor.dtype)


def _bare_package(name: str, folder: Path) -> None:
    """Register a package without running its ``__init__``, which would import everything else."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def load_te() -> types.SimpleNamespace:
    """Import ``te.Linear`` and what it needs; only in a process of its own."""
    sys.meta_path.insert(0, _Finder())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TE warns that its PyTorch extension is missing: the reason why we are here
        common = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda framework: None
    for name in [name for name in sys.modules if name.startswith("transformer_engine.pytorch")]:
        del sys.modules[name]
    root = Path(common.__file__).parent.parent / "pytorch"
    _bare_package("transformer_engine.pytorch", root)
    _bare_package("transformer_engine.pytorch.module", root / "module")
    importlib.import_module("transformer_engine.pytorch.tensor")  # first: it and quantized_tensor import each other
    linear = importlib.import_module("transformer_engine.pytorch.module.linear")
    quantization = importlib.import_module("transformer_engine.pytorch.quantization")
    gemm = importlib.import_module("transformer_engine.pytorch.cpp_extensions.gemm")
    gemm.get_cublas_workspace = lambda *args: torch.empty(0, dtype=torch.uint8)
    importlib.import_module("transformer_engine.pytorch.utils")._empty_tensor = torch.Tensor
    sys.modules["transformer_engine_torch"].generic_gemm = _generic_gemm
    reference = importlib.import_module("transformer_engine.pytorch.custom_recipes.reference_nvfp4")
    reference.NVFP4TensorRef.dequantize = lambda self, dtype=None: _dequantize(self, dtype)
    # What TE asks CUDA before it quantizes anything: answered as a B200 would, so that it runs its Blackwell path.
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda *args: (10, 0)
    torch.cuda.get_device_properties = lambda *args: types.SimpleNamespace(major=10, minor=0)
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.Tensor.is_cuda = property(lambda self: True)
    return types.SimpleNamespace(
        Linear=linear.Linear,
        autocast=quantization.autocast,
        CustomRecipe=importlib.import_module("transformer_engine.common.recipe").CustomRecipe,
        reference=reference,
        formats=importlib.import_module("transformer_engine.pytorch.custom_recipes.reference_utils").Fp4Formats,
    )


def factory(te: types.SimpleNamespace, *, rht: bool, two_d: bool, sr: bool = False, four_over_six: str = "none") -> Any:
    """TE's ``nvfp4_ref_rht_2d_factory`` where it applies, and the same with other techniques where it does not."""
    if rht and two_d and not sr and four_over_six == "none":
        return te.reference.nvfp4_ref_rht_2d_factory

    class Stochastic(te.reference.NVFP4QuantizerRef):  # type: ignore[misc,name-defined]
        """The reference has no stochastic rounding: here it rounds to the grid at random before it rounds."""

        def quantize(self, *args: Any, **kwargs: Any) -> Any:
            cast = te.reference.cast_to_fp4x2
            te.reference.cast_to_fp4x2 = lambda x: cast(_round_at_random(x))
            try:
                return super().quantize(*args, **kwargs)
            finally:
                te.reference.cast_to_fp4x2 = cast

    def build(role: Any) -> Any:
        tensor = role.tensor_type if role is not None and role.module_type == "linear" else None
        adaptive = four_over_six in {"weight": ("all", "weights"), "input": ("all", "activations")}.get(tensor, ())
        kind = Stochastic if sr and tensor == "grad_output" else te.reference.NVFP4QuantizerRef
        return kind(
            dtype=te.formats.E2M1,
            quant_tile_shape=(16, 16) if tensor == "weight" and two_d else (1, 16),
            pow_2_scales=False,
            with_rht=rht and tensor != "weight",
            nvfp4_use_4over6=adaptive,
            nvfp4_e4m3_max=256,
        )

    return build


def _round_at_random(x: torch.Tensor) -> torch.Tensor:
    step = torch.where(x.abs() < 2, 0.5, torch.where(x.abs() < 4, 1.0, 2.0))
    return x.sign() * ((x.abs() / step + torch.rand_like(x)).floor() * step).clamp(max=6.0)


def reference_recipe(te: types.SimpleNamespace, recipe: Any) -> Any:
    """A recipe of ours for TE, with its reference quantizer; ``NVFP4BlockScaling`` would want its kernels."""
    from monai_fp4.quantization.backends.te_recipe import te_flags

    flags = te_flags(recipe)
    build = factory(
        te,
        rht=not flags["disable_rht"],
        two_d=not flags["disable_2d_quantization"],
        sr=not flags["disable_stochastic_rounding"],
        four_over_six=flags["nvfp4_4over6"],
    )
    return te.CustomRecipe(qfactory=build, backward_override=flags["backward_override"])


def run_case(te: types.SimpleNamespace, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One forward and backward of ``te.Linear`` without bias (TE's reference GEMM refuses a bias)."""
    te.reference.torch = torch
    out_features, in_features = case["weight"].shape
    layer = te.Linear(in_features, out_features, bias=False, device="cpu", params_dtype=case["weight"].dtype)
    with torch.no_grad():
        layer.weight.copy_(case["weight"])
    x = case["x"].clone().requires_grad_()
    recipe = te.CustomRecipe(
        qfactory=factory(te, rht=case["rht"], two_d=case["two_d"]), backward_override=case.get("backward_override")
    )
    autocast = case.get("autocast")
    with (
        torch.autocast("cuda", dtype=autocast or torch.bfloat16, enabled=autocast is not None),
        te.autocast(enabled=True, recipe=recipe),
    ):
        y = layer(x)
    y.backward(case["dy"])
    return {"y": y.detach(), "dx": x.grad, "dw": layer.weight.grad}


class _KernelAlpha:
    """``torch`` as TE's reference is to see it where our layers run it: with the alpha of TE's kernels.

    Reference: ``alpha = amaxA * amaxB / (36 * 448 * 448)``. Kernels, and the contract: times the reciprocal, which
    gives one alpha in six another last bit; it shows wherever a result is the middle of two BF16 numbers.
    """

    divisor = 36.0 * 448.0 * 448.0

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def div(self, a: Any, b: Any, **kwargs: Any) -> torch.Tensor:
        return a * (1.0 / b) if isinstance(b, float) and b == self.divisor else torch.div(a, b, **kwargs)


def run_wrapped(te: types.SimpleNamespace, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The same through a layer of our backend, which pads, lends its weight and adds its bias around this te.Linear."""
    from monai_fp4.quantization.backends import BACKENDS, te_product
    from monai_fp4.quantization.recipes import RECIPES

    # These tensors say that they are on CUDA, but their device does not: it would ask for the autocast of the CPU.
    te_product.working_dtype = lambda x: (
        torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    )
    te_product.te_recipe = lambda recipe: reference_recipe(te, recipe)
    te.reference.torch = _KernelAlpha()
    kind, arguments = case["layer"]
    plain = getattr(torch.nn, kind)(**arguments, bias="bias" in case, dtype=case["weight"].dtype)
    plain.load_state_dict({key: case[key] for key in ("weight", "bias") if key in case})
    layer = BACKENDS["transformer_engine_im2col"].build(plain, RECIPES[case["recipe"]])
    x = case["x"].clone().requires_grad_()
    autocast = case.get("autocast")
    multiplied = count_products(te)
    with torch.autocast("cuda", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        y = layer(x)
        again = copy.deepcopy(layer)(x).detach()
    if not layer._te:
        raise RuntimeError("the layer left this case to the emulation: nothing of te.Linear was run")
    multiplied.clear()
    y.backward(case["dy"])
    if list(layer.state_dict()) != list(plain.state_dict()) or list(layer.children()):
        raise RuntimeError(f"expected the state_dict of {kind}, found {list(layer.state_dict())}")
    result = {"y": y.detach(), "again": again, "dx": x.grad, "dw": layer.weight.grad}
    result["backward_products"] = torch.tensor(len(multiplied))
    return result | ({"db": layer.bias.grad} if layer.bias is not None else {})


def count_products(te: types.SimpleNamespace) -> list[str]:
    """A list that grows by the layout of every GEMM that te.Linear asks for from now on."""
    found: list[str] = []
    module = sys.modules["transformer_engine.pytorch.module.linear"]
    original = getattr(module.general_gemm, "original", module.general_gemm)

    def counted(*args: Any, **kwargs: Any) -> Any:
        found.append(kwargs.get("layout", "TN"))
        return original(*args, **kwargs)

    counted.original = original  # type: ignore[attr-defined]
    module.general_gemm = counted
    return found


def run_program(te: types.SimpleNamespace, path: str, arguments: list[str]) -> None:
    """Run a program of this repository with TE's reference in TE's place."""
    from monai_fp4.quantization.backends import te_product

    te_product.te_recipe = lambda recipe: reference_recipe(te, recipe)
    te.reference.torch = _KernelAlpha()
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")


def main() -> None:
    """Read the cases, run them, write the results; or run a program."""
    te = load_te()
    if sys.argv[1] == "--run":
        run_program(te, sys.argv[2], sys.argv[3:])
        return
    cases = torch.load(sys.argv[1], weights_only=True)
    torch.save([run_wrapped(te, case) if "recipe" in case else run_case(te, case) for case in cases], sys.argv[2])


if __name__ == "__main__":
    main()
