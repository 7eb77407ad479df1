"""torch.compile and torch.export: whole graphs of operators, which compute what eager mode does, to the last bit."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import DynUNet, ViT
from stand_ins import image
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from monai_fp4.errors import ConfigError
from monai_fp4.networks import build_network
from monai_fp4.quantization import RECIPES, convert, seed_rounding, set_active
from monai_fp4.quantization.layers.separate import separate

Step = list[Tensor]


def layers() -> nn.Module:
    """Every kind of layer, on ``[N, 16, 8, 8]``."""
    return nn.Sequential(
        nn.Conv2d(16, 24, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.Conv2d(24, 32, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1),
        nn.Flatten(2),
        nn.Linear(64, 32),
    )


def volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(16, 16, 3, padding=1), nn.ConvTranspose3d(16, 32, 2, stride=2))


def vit() -> nn.Module:
    return ViT(3, (32, 32), (8, 8), 48, 96, 1, 3, spatial_dims=2, classification=True)


def dynunet() -> nn.Module:
    return DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(16, 16, 32))


def unet() -> nn.Module:
    return build_network("unet", "500k", 3, 1, (32, 32))


SHAPE = (2, 16, 8, 8)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "volumes": (volumes, (2, 16, 4, 4, 4), "sr"),
    "monai's vit": (vit, (2, 3, 32, 32), {"base": "sr", "attention": "fp4"}),
    "decoded attention": (vit, (2, 3, 32, 32), {"base": "chain_rule", "attention": "fp4"}),
    "monai's dynunet": (dynunet, (1, 1, 8, 8, 8), "sr_rht"),
    "the study's unet": (unet, (1, 3, 32, 32), "sr"),
}
FORMATS: list[Any] = [{"base": "sr_2d", "four_over_six": "all"}, {"base": "chain_rule", "format": "mxfp4"}]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def converted(build: Callable[[], nn.Module], recipe: Any) -> nn.Module:
    torch.manual_seed(0)
    return convert(build(), recipe, heads=[])[0]


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def steps(model: nn.Module, run: Callable[[Tensor], Any], x: Tensor, count: int = 2) -> Step:
    """Results and all gradients of some steps from the start of the model's stream."""
    seed_rounding(model, 0)
    found = []
    for _ in range(count):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        y = first(run(leaf))
        y.square().sum().backward()
        weights = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        found += [y.detach(), leaf.grad, *weights]
    return found


def same(ours: Step, theirs: Step) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def whole(model: Any, backend: str = "aot_eager", **options: Any) -> Any:
    return torch.compile(model, fullgraph=True, backend=backend, **options)


@pytest.mark.parametrize("recipe", [*(name for name in RECIPES if name != "bf16"), "forward_rht_2d", *FORMATS], ids=str)
def test_one_graph_computes_the_same_bits_under_every_recipe(recipe: Any) -> None:
    model, x = converted(layers, recipe), image(*SHAPE)
    expected = steps(model, model, x)
    assert same(steps(model, whole(model), x), expected)
    if model[0].recipe.stochastic_rounding:
        half = len(expected) // 2
        assert not same(expected[:half], expected[half:]), "each step rounds anew"


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compile_whole(name: str) -> None:
    build, shape, recipe = NETWORKS[name]
    model, x = converted(build, recipe), image(*shape)
    assert same(steps(model, whole(model), x), steps(model, model, x))


@pytest.mark.parametrize("channels_last", [True, False])
def test_autocast_and_memory_formats(channels_last: bool) -> None:
    model, x = converted(layers, "sr_rht_2d"), image(*SHAPE)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)

    def run(network: Any) -> Step:
        with torch.autocast("cpu", torch.bfloat16):
            return steps(model, network, x)

    assert same(run(whole(model)), run(model)) and run(model)[0].dtype is torch.bfloat16


def test_the_vit_of_the_study_compiles_whole_in_bf16() -> None:
    """Its attention has a quicker way in BF16 on a CPU, which no compiler can follow."""
    model = converted(lambda: build_network("vit", "500k", 3, 1, (32, 32)), "sr")
    with torch.autocast("cpu", torch.bfloat16):
        assert whole(model, "eager")(image(1, 3, 32, 32)).isfinite().all()


@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="inductor needs a C++ compiler")
def test_inductor_computes_the_same_bits() -> None:
    """But for the bias of a layer, whose gradient is a sum that inductor takes in another order."""
    model = converted(lambda: nn.Sequential(nn.Linear(32, 48, bias=False), nn.ReLU(), nn.Linear(48, 32)), "sr_rht_2d")
    x = image(4, 32)
    assert same(steps(model, whole(model, "inductor"), x)[:4], steps(model, model, x)[:4])


def test_batches_of_any_size_share_a_graph() -> None:
    model = converted(layers, "sr")
    compiled = whole(model)
    for size in (2, 3, 4, 7):
        assert torch.equal(compiled(image(size, *SHAPE[1:])), model(image(size, *SHAPE[1:])))
    assert counters["stats"]["unique_graphs"] == 2, "of the first size, and of all others"
    set_active(model, False)
    assert torch.equal(compiled(image(*SHAPE)), model(image(*SHAPE)))


def test_layers_that_are_alike_share_a_graph() -> None:
    """As where each block of a network is compiled for itself: the layer's stream is an input, and no constant."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(10)))
    model, _ = convert(blocks, "sr", heads=[])
    x = image(4, 32)
    expected = steps(model, model, x)
    for block in model:
        block.compile(fullgraph=True, backend="aot_eager")
    assert same(steps(model, model, x), expected)
    assert counters["stats"]["unique_graphs"] <= 2


def test_checkpoints_and_a_layer_that_is_called_twice() -> None:
    model = converted(lambda: nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)), "sr")

    def run(x: Tensor) -> Tensor:
        return model(checkpoint(model, x, use_reentrant=False))

    x = image(4, 32)
    assert same(steps(model, whole(run), x), steps(model, run, x))


def test_a_compiled_training_counts_its_layers_and_warns_of_those_it_bypasses() -> None:
    class Bypass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.read = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(nn.functional.linear(x, self.read.weight))

    model, report = convert(Bypass(), "sr", heads=[])
    compiled, optimizer = whole(model), torch.optim.SGD(model.parameters(), 0.1)
    assert {str(layer.use) for layer in report.so_far().layers} == {"never ran"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.zero_grad()
            compiled(image(4, 32)).sum().backward()
            optimizer.step()
    assert len([said for said in caught if "without computing in FP4" in str(said.message)]) == 1
    assert model.used.history.passes == 3
    assert {layer.name: str(layer.use) for layer in report.so_far().layers} == {
        "used": "ran in FP4",
        "read": "never ran",
    }
    seen = {layer.name: str(layer.use) for layer in report.after(lambda: compiled(image(4, 32))).layers}
    assert seen == {"used": "ran in FP4", "read": "bypassed"}


def test_copies_have_streams_of_their_own() -> None:
    model = converted(lambda: nn.Sequential(nn.Linear(32, 32)), "sr")
    twin = copy.deepcopy(model)
    x = image(4, 32)
    expected = steps(model, whole(model), x)
    first_step = steps(twin, twin, x, count=1)
    assert same(steps(model, whole(model), x), expected) and same(first_step, expected[: len(first_step)])
    assert twin[0].history.passes == 1


def test_an_evaluation_of_several_patients() -> None:
    model, x = converted(layers, "full"), image(3, *SHAPE[1:])
    x[1:] *= 100
    compiled = whole(model)
    with torch.no_grad(), separate([1, 2]):
        assert torch.equal(compiled(x), model(x))
        several = model(x)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x)) and not torch.equal(several, model(x))


def test_what_eager_mode_refuses() -> None:
    model = converted(lambda: nn.Linear(32, 32), "sr")
    with pytest.raises(ConfigError, match="takes 32 input features found an input of 16"):
        torch.compile(model, backend="aot_eager")(image(4, 16))
    compiled, x = whole(model, "eager"), image(4, 32).requires_grad_()
    with pytest.raises(ConfigError, match="second derivative"):
        torch.autograd.grad(compiled(x).sum(), x, create_graph=True)
    with pytest.raises(ConfigError, match="is_grads_batched"):
        torch.autograd.grad(compiled(x), x, torch.ones(2, 4, 32), is_grads_batched=True)


def test_vmap_is_refused_inside_a_graph_too() -> None:
    model = converted(lambda: nn.Linear(32, 32), "sr")
    with pytest.raises(Exception, match="FP4 layers expected a plain forward and"):  # the compiler's own, around ours
        torch.compile(lambda x: torch.vmap(model)(x), backend="aot_eager")(image(4, 32))


def test_monais_tensors_leave_the_graph() -> None:
    model, x = converted(layers, "full"), image(*SHAPE)
    found = torch.compile(model, backend="eager")(MetaTensor(x))
    assert isinstance(found, MetaTensor) and torch.equal(found.as_tensor(), model(x))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ["layers", "monai's vit"])
def test_an_exported_program_computes_the_same_bits(name: str, strict: bool) -> None:
    build, shape, recipe = NETWORKS.get(name, (layers, SHAPE, "sr_rht_2d"))
    model, x = converted(build, recipe), image(*shape)
    sizes = ({0: torch.export.Dim("batch", min=2)},) if name == "layers" else None
    program = torch.export.export(model, (x,), strict=strict, dynamic_shapes=sizes)
    module = program.module()
    expected, found = steps(model, model, x), []
    seed_rounding(model, 0)
    for _ in range(2):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        first(module(leaf)).square().sum().backward()
        weights = dict(module.named_parameters())
        names = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
        found += [first(module(leaf)).detach(), leaf.grad, *(weights[name].grad.clone() for name in names)]
    assert same(found, expected)
    if sizes:
        assert torch.equal(module(image(5, *shape[1:])), model(image(5, *shape[1:])))
    targets = {str(node.target) for node in program.run_decompositions().graph.nodes}
    assert "monai_fp4.linear.default" in targets


LOAD = """
import sys
import torch
import monai_fp4.quantization.layers
program = torch.export.load(sys.argv[1] + "/program.pt2").module()
x, y, gradient = torch.load(sys.argv[1] + "/expected.pt")
program(x).square().sum().backward()
weight = dict(program.named_parameters())["0.weight"]
first, weight.grad = weight.grad, None
program(x).square().sum().backward()
print(torch.equal(program(x), y), torch.equal(first, weight.grad), bool((first - gradient).norm() < gradient.norm()))
"""


def test_a_saved_program_runs_and_trains_in_another_process(tmp_path: Path) -> None:
    model, x = converted(layers, "sr"), image(*SHAPE)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "program.pt2")
    y = model(x)
    y.square().sum().backward()
    torch.save((x, y.detach(), model[0].weight.grad), tmp_path / "expected.pt")
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "False", "True"], done.stderr


def test_onnx_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(layers, "sr")
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with pytest.raises(ConfigError, match="ONNX has no operators for FP4 layers"):
        torch.export.export(model, (image(*SHAPE),), strict=False)
    with pytest.raises(Exception, match="ONNX has no operators for FP4 layers"):  # torch's own, around ours
        torch.export.export(model, (image(*SHAPE),), strict=True)


OPERATORS = torch.ops.monai_fp4
CALLS: dict[str, tuple[Any, list[tuple[int, ...]], list[Any]]] = {
    "linear": (OPERATORS.linear, [(5, 32), (48, 32)], [torch.float32]),
    "strided": (
        OPERATORS.convolution,
        [(2, 32, 6, 6), (16, 32, 3, 3)],
        [torch.float32, [1, 2], [1, 0], [1, 1], 1, None],
    ),
    "transposed, in groups": (
        OPERATORS.convolution,
        [(1, 32, 2, 2, 2), (32, 16, 3, 3, 3)],
        [torch.float32, [2] * 3, [0] * 3, [1] * 3, 2, [1, 0, 1]],
    ),
    "attention": (OPERATORS.attention_product, [(2, 2, 5, 8), (2, 2, 7, 8)], []),
}


@pytest.mark.parametrize("recipe", ["full", "chain_rule", "2d"])
@pytest.mark.parametrize("name", CALLS)
def test_operators_keep_torchs_contract(name: str, recipe: str) -> None:
    """Schemas, fake results, gradients, by torch's own test of operators."""
    operator, shapes, arguments = CALLS[name]
    layer = converted(lambda: nn.Linear(32, 32), recipe)
    for last in (False, True):
        a, b = (image(*shape, seed=seed) for seed, shape in enumerate(shapes))
        if last and a.ndim == 4:
            a = a.to(memory_format=torch.channels_last)
        shared = (a.requires_grad_(), b.requires_grad_(), layer.history.stream, RECIPES[recipe].text, *arguments)
        torch.library.opcheck(operator.default, shared)
        gradient = torch.ones_like(operator(*shared)).detach()
        backward = getattr(OPERATORS, f"{operator.__name__}_backward").default
        for needed in ([True, True], [True, False], [False, True]):
            torch.library.opcheck(backward, (gradient, *shared, needed), test_utils="test_faketensor")
        assert torch.Tag.cudagraph_unsafe in backward.tags


def without_groups() -> nn.Module:
    """For of a gradient in groups torch's formula counts products with the other groups, which nobody computes."""
    return nn.Sequential(*(layer for layer in layers() if getattr(layer, "groups", 1) == 1))


@pytest.mark.parametrize("build", [without_groups, volumes])
def test_the_flop_counter_counts_what_it_counts_of_torchs_layers(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    plain = build()
    x, counts = image(*(SHAPE if build is without_groups else (2, 16, 4, 4, 4))), []
    for model in (plain, convert(copy.deepcopy(plain), "sr", heads=[])[0]):
        for leaf in (x, x.clone().requires_grad_()):
            with FlopCounterMode(display=False) as counter:
                model(leaf).sum().backward()
            counts.append(counter.get_total_flops())
    assert counts[:2] == counts[2:] and counts[0] < counts[1]


def test_the_profiler_sees_operators() -> None:
    model, x = converted(layers, "sr"), image(*SHAPE)
    expected = steps(model, model, x)
    with torch.profiler.profile() as profile:
        assert same(steps(model, model, x), expected)
    seen = {event.key: event.count for event in profile.key_averages()}
    counted = {f"monai_fp4::{name}": count for name, count in (("linear", 2), ("convolution", 8))}
    counted |= {f"{name}_backward": count for name, count in counted.items()}
    assert {name: seen.get(name) for name in counted} == counted


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_an_operator_answers_with_memory_of_its_own(dims: int) -> None:
    """torch's conv1d gives a view, which the bias could not be added to in place."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = converted(lambda: conv(32, 32, 3, padding=1), {"base": "full", "format": "mxfp4"})
    x = image(2, 32, *[8] * dims)
    expected = steps(model, model, x)
    with torch.profiler.profile():
        assert same(steps(model, model, x), expected)


def test_fake_tensors() -> None:
    with FakeTensorMode() as mode:
        model = converted(layers, "sr")
        y = model(torch.randn(SHAPE))
        assert isinstance(y, FakeTensor) and y.shape == (2, 16, 32)
        y.sum().backward()
        assert model[0].weight.grad.shape == (24, 16, 3, 3)
    real = converted(layers, "sr")
    weights = {name: mode.from_tensor(parameter) for name, parameter in real.named_parameters()}
    with mode:
        assert torch.func.functional_call(real, weights, (torch.randn(SHAPE),)).shape == (2, 16, 32)
    assert real[0].history.passes == 0
