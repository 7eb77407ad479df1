"""A corpus of hostile bundles, one line each; every one is refused before anything in it runs, and ours all pass."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import BUNDLES, REPOSITORY

from monai_fp4.bundle import check_bundle, check_config
from monai_fp4.bundle.allowed import refusal_of
from monai_fp4.cli import main
from monai_fp4.errors import ConfigError

MARK = "PWNED"
CODE = f"__import__('pathlib').Path('{MARK}').touch()"
LOADER = {"l": {"_target_": "ThreadDataLoader", "dataset": [1], "num_workers": 1, "multiprocessing_context": "fork"}}
WAY = "@l.multiprocessing_context.reducer"
NETWORK = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1}


def target(name: Any, /, **arguments: Any) -> dict[str, Any]:
    return {"a": {"_target_": name, **arguments}}


DEEP: list[Any] = []
for _ in range(800):
    DEEP = [DEEP]

HOSTILE: dict[str, dict[str, Any]] = {
    # Names
    "a function of the system": target("os.system", command=f"touch {MARK}"),
    "a process": target("subprocess.check_output", args=["touch", MARK]),
    "a builtin": target("builtins.exec", source=CODE),
    "a builtin without its module": target("eval"),
    "a module that would be imported": target("hostile_module.Network"),
    "a name without a dot that would be imported": target("hostile_module"),
    "partial": target("functools.partial", func="@a"),
    "an alias in a module of MONAI's": target("monai.transforms.io.array.os.system", command="id"),
    "an alias in a module of ours": target("monai_fp4.atomic.os.system", command="id"),
    "an alias in a module of torch's": target("torch.nn.modules.module.functools.partial"),
    "an alias behind two dots": target("monai..utils..optional_import", module="os"),
    "the command line of ours": target("monai_fp4.cli.main", arguments=["doctor"]),
    "the module that is our command": target("monai_fp4.__main__.main"),
    "a path in place of a name": target("monai_fp4./tmp/hostile.x"),
    "a name with a null": target("monai_fp4.\0.x"),
    "MONAI's import": target("monai.utils.optional_import", module="os", name="system"),
    "MONAI's import without its module": target("optional_import", module="os", name="system"),
    "MONAI's instantiate": target("monai.utils.module.instantiate"),
    "MONAI's workflow": target("monai.bundle.ConfigWorkflow", config_file="other.json"),
    "MONAI's workflow without its module": target("ConfigWorkflow", config_file="other.json"),
    "MONAI's parser": target("monai.bundle.ConfigParser", config={}),
    "MONAI's run": target("monai.bundle.run", config_file="other.json"),
    "MONAI's load of a bundle": target("monai.bundle.load", name="x"),
    "a checkpoint with a pickle": target("torch.load", f="model.pt", weights_only=False),
    "a checkpoint by its handler": target("CheckpointLoader", load_path="model.pt", load_dict={}),
    "a file written by a handler": target("CheckpointSaver", save_dir="/", save_dict={}),
    "a network of a hub": target("torch.hub.load", repo_or_dir="x", model="y"),
    "a compiled extension": target("torch.utils.cpp_extension.load", name="x", sources=["x.cpp"]),
    "a TorchScript": target("torch.jit.load", f="model.ts"),
    "a library": target("torch.ops.load_library", path="x.so"),
    "a class attribute": target("torch.nn.Module.__class__"),
    "subclasses": target("torch.nn.Module.__subclasses__"),
    "globals of a function": target("torch.nn.functional.relu.__globals__"),
    "a reader of pickles": target("LoadImage", reader="NumpyReader"),
    "a reader that is any name": target("monai.transforms.LoadImaged", keys="image", reader="os.system"),
    "a writer": target("SaveImaged", keys="image", writer="os.system"),
    "a merger that is any name": target("PatchInferer", merger_cls="os.system"),
    "whatever torchvision has": target("monai.transforms.TorchVision", name="x"),
    "a loss that runs code of a hub": target("PerceptualLoss", spatial_dims=3, pretrained=True),
    "a network that fetches its weights": target("DenseNet121", spatial_dims=2, pretrained=True),
    "a network whose encoder fetches its weights": target("AHNet", spatial_dims=2, pretrained=True),
    "a block that fetches its weights": target("monai.networks.blocks.FCN", pretrained=True),
    "a cache of pickles": target("monai.data.PersistentDataset", data=[], cache_dir="."),
    "a decoder of pickles": target("torch.utils.data.datapipes.iter.RoutedDecoder"),
    "a runner of scripts": target("monai.apps.nnunet.nnUNetV2Runner", input_config="x"),
    "a download": target("monai.apps.download_url", url="http://x"),
    "a tracker": target("MLFlowHandler", tracking_uri="http://x"),
    "a name by reference": {"a": {"_target_": "@b"}, "b": "os.system"},
    "a name by macro": {"a": {"_target_": "%b"}, "b": "os.system"},
    "a name by expression": target("$@b.system", b=1),
    "a name that is a component": {"a": {"_target_": "@b"}, "b": NETWORK},
    "a disabled component": target("os.system", _disabled_=True),
    "a component that is handed on": target("os.system", _mode_="callable"),
    "the debugger": target("torch.nn.ReLU", _mode_="debug"),
    "a class that is handed on": target("SupervisedTrainer", _mode_="callable"),
    "a compiler among the arguments of a class that is handed on": {
        "net": dict(NETWORK),
        "a": {
            "_target_": "Dataset",
            "data": ["$('cpu', 1, [], @net, @net, @net) + (None,) * 18 + (True, {'options': {'cpp.cxx': ['/x.sh']}})"],
            "transform": {
                "_target_": "Compose", "unpack_items": True,
                "transforms": {"_target_": "SupervisedTrainer", "_mode_": "callable"},
            },
        },
    },
    "the debugger by reference": target("torch.nn.ReLU", _mode_="@b"),
    "a breakpoint": target("torch.nn.ReLU", _debug_=True),
    "deep within arguments": target("torch.nn.ReLU", x=[[{"y": {"_target_": "os.system"}}]]),
    "in a list": {"a": [1, [{"_target_": "os.system"}]]},
    "set by a key of two parts": {"a": dict(NETWORK), "a::_target_": "os.system"},
    "set by an old key of two parts": {"a": dict(NETWORK), "a#_target_": "os.system"},
    "added to a section": {"+a": {"_target_": "os.system"}},
    "a key that hides another": {"r": {"a::b": "x", "a": {"b": "y"}}},
    "a key with a blank": {"r": {"_target_ ": "os.system"}},
    "a trusted run folder": target("monai_fp4.bundle.TrainedRun", run_dir="x", trust_run_dir=True),
    "a trusted run folder at the top": {"trust_run_dir": True},
    # Expressions
    "an import": {"a": "$import hostile_module"},
    "an import of a name": {"a": "$from os import system"},
    "an import under another name": {"a": "$import os as len", "b": "$len('x')"},
    "a call": {"a": f"${CODE}"},
    "a call in what is called": {"a": f"$({CODE}).run()"},
    "a call in an argument": {"a": f"$len({CODE})"},
    "a call in a named argument": {"a": f"$@b.run(x={CODE})"},
    "a call in an index": {"a": f"$@b[{CODE}]"},
    "a call in a condition": {"a": f"$1 if {CODE} else 2"},
    "a call in a description": target("torch.nn.ReLU", _desc_=f"${CODE}"),
    "a call in what is required": target("torch.nn.ReLU", _requires_=[f"${CODE}"]),
    "a call in a relative id": {"a": {"b": 1, "c": f"$@#b + {CODE}"}},
    "a call after blanks": {"a": f"$   {CODE}"},
    "a call in MONAI's metadata": {"_meta_": {"task": f"${CODE}"}},
    "a call in wide letters": {"a": "$\uff45val('1')"},
    "a private attribute": {"a": "$@b.__class__.__mro__"},
    "globals of a method": {"a": "$@b.run.__globals__"},
    "a method that reads": {"a": "$@b.load_state_dict(1)"},
    "a name of MONAI's": {"a": "$monai.utils.optional_import('os')[0].system('id')"},
    "a name of torch's": {"a": "$torch.hub"},
    "a name of NumPy's": {"a": "$np.load"},
    "modules by public attributes": {"a": f"${WAY}.sys.modules.get('subprocess').run(['touch', '{MARK}'])", **LOADER},
    "a function by public attributes": {"a": f"${WAY}.os.system", **LOADER},
    "a function by public attributes for a transform": {
        "a": {
            "_target_": "CacheDataset",
            "data": [f"touch {MARK}"],
            "transform": {"_target_": "Lambda", "func": f"${WAY}.os.system"},
        },
        **LOADER,
    },
    "a method that is handed on": target("torch.optim.lr_scheduler.LambdaLR", lr_lambda="$@b.load_state_dict"),
    "a method that may be called and is handed on": target("torch.optim.lr_scheduler.LambdaLR", lr_lambda="$@b.run"),
    "a method of an item": {"a": "$@b[0].to_onnx"},
    "an attribute of what a method gives": {"a": "$@b.get(1).os"},
    "a compiler": target("SupervisedTrainer", compile=True, compile_kwargs={"options": {"cpp.cxx": ["/tmp/x.sh"]}}),
    "a compiler by a key of two parts": {**target("SupervisedEvaluator"), "a::compile_kwargs": {"options": "@b"}},
    "a compiler by a key that is added": {**target("SupervisedEvaluator"), "+a::compile_kwargs": {"options": 1}},
    "a compiler by reference": target("monai.engines.GanTrainer", compile_kwargs="@b"),
    "all references": {"a": "$__local_refs"},
    "a lambda": {"a": f"$lambda: {CODE}"},
    "a comprehension": {"a": f"$[{CODE} for x in '1']"},
    "an assignment": {"a": "$(x := 1)"},
    "a formatted text": {"a": f"$f'{{{CODE}}}'"},
    "a power that never ends": {"a": "$9**9**9**9"},
    "a shift that never ends": {"a": "$1 << 99999999999"},
    "a text with a reference that ends it": {"a": f"$'@b' + {CODE}"},
    "no expression": {"a": "$)("},
    "a null": {"a": "$1\0"},
    "brackets without end": {"a": "$" + "(" * 900},
    "signs without end": {"a": "$" + "-" * 900000 + "1"},
    "an id above the config": {"a": "$@####b"},
    # Macros
    "a macro out of the bundle": {"a": "%/etc/other.json"},
    "a macro out of the bundle by steps": {"a": "%../other.json::a"},
    "a macro that names nothing": {"a": "%missing.json::a"},
    "a macro that takes in itself": {"a": "%a"},
    "a macro of signs without end": {"a": "%" * 900_000},
    "a macro of files without end": {"a": "%" + ".json" * 150_000},
    "a macro of a null": {"a": "%\0.json::a"},
    "a macro of half a character": {"a": "%\ud800.json::a"},
    "a macro into what lies deep": {"a": "%b", "b": DEEP},
    "a name like many that is not there": {"a": ["%" + "c" * 900] * 9, **{f"{'b' * 400}{n}": 1 for n in range(99)}},
    "relative ids that grow": {"k" * 30_000: {"a": "@#" * 15_000}},
    "a long key over many values": {"k" * 30_000: ["a"] * 9000},
    "macros without end": {"a": ["%b"] * 1001, "b": 1},
    "macros of much": {"a": ["%b"] * 900, "b": [[1] * 20] * 90},
    "macros that count from the end": {"a": "%b::-1", "b": [1, "%c::-1"], "c": [{"_target_": "torch.nn.ReLU"}]},
    "macros that grow": {"a": ["%b", "%b"], "b": ["%c", "%c"], "c": ["%d", "%d"], "d": 1},
}  # fmt: skip

NAMES = """
    pathlib.Path.touch operator.methodcaller operator.attrgetter functools.reduce importlib.import_module runpy.run_path
    shutil.rmtree torch.classes.load_library torch.package.PackageImporter torch.jit.script torch.export.load
    torch._inductor.aoti_load_package torch.serialization.load torch.multiprocessing.spawn torch.distributed.run.main
    torch.utils.model_zoo.load_url torch.utils.tensorboard.SummaryWriter torch.compile torch.from_file
    torch.UntypedStorage.from_file torch.nn.utils.parametrize.register_parametrization torch.nn.Module.compile
    torch.nn.Module.apply torch.nn.Module.register_forward_hook torch.optim.Optimizer.register_step_pre_hook
    torch.fx.GraphModule torch.onnx.export torch.profiler.tensorboard_trace_handler monai.bundle.download load
    monai.bundle.PythonicWorkflow monai.bundle.ckpt_export monai.bundle.init_bundle push_to_hf_hub DecathlonDataset
    MedNISTDataset TciaDataset monai.apps.auto3dseg.AutoRunner BundleGen monai.apps.extractall ProfileHandler
    monai.utils.misc.run_cmd run_cmd StateCacher pickle_hashing LMDBDataset CacheNTransDataset GDSDataset CSVDataset
    NPZDictItemDataset load_decathlon_datalist ImageDataset PatchWSIDataset FolderLayout CSVSaver NumpyReader
    CameraDataset monai.fl.client.MonaiAlgo TensorBoardStatsHandler LogfileHandler MetricsSaver ClassificationSaver
    TrtHandler SEResNet50 monai.networks.layers.gmm.GaussianMixtureModel monai.networks.trt_compiler.TrtCompiler
    convert_to_torchscript torch.os.system torch.nn.functional.torch.load monai_fp4.bundle.foreign.os.system
    monai_fp4.atomic.Path.touch monai_fp4.atomic.write_atomically monai_fp4.bundle.trained_network.network_of_run
    monai_fp4.data.manifest.save_manifest monai_fp4.compiler.build monai_fp4.study.worker.run_task
    monai_fp4.bundle.checked_run.run monai_fp4.report.pages.write.write_report monai_fp4.data.pseudonyms.KeyFile
    monai_fp4.handlers.recorder.torch.load monai_fp4.inference.predictor.shutil.rmtree monai_fp4.handlers.nothing.at.all
    torch.nn.Module.__init__.__globals__.get torch.nn.Module.__mro__ torch.nn.__dict__ os.system. .os.system
    \uff4fs.system torch.nn.C\u043env2d torch.nn.\u212aLDivLoss b'os.system'
"""
"""What torch, MONAI, Python and this package hold beside what a bundle needs."""


@pytest.mark.parametrize("name", [*NAMES.split(), "", " os.system", "os.system\n", "os.\u200bsystem"], ids=ascii)
def test_a_name_of_something_else_is_refused(name: str) -> None:
    (finding,) = check_config(target(name))
    assert "\n" not in str(finding) and str(finding).isprintable()


TEXTS = {
    "nested without end.json": "[" * 100_000,
    "objects without end.json": '{"a":' * 100_000,
    "nested a little too deep.json": '{"a":' * 50 + "1" + "}" * 50,
    "a number of 5000 digits.json": '{"a": ' + "9" * 5000 + "}",
    "a key that stands there twice.json": '{"a": 1, "a": {"_target_": "os.system"}}',
    "a list.json": '[{"_target_": "os.system"}]',
    "bytes.json": "\udcff\udcfe",
    "empty.json": "",
    "objects of Python.yaml": f"a: !!python/object/apply:os.system ['touch {MARK}']",
    "names of Python.yaml": "a: !!python/name:os.system",
    "aliases that grow.yaml": "a: &a [1,1]\nb: &b [*a,*a]\nc: &c [*b,*b]\n",
    "an alias of itself.yaml": "a: &a [*a]",
    "brackets without end.yaml": "[" * 60_000,
    "lists in lists without end.yaml": "- " * 30_000,
    "keys that are keys without end.yaml": "? " * 30_000,
    "keys that are numbers.yaml": "a: {1: 2}",
    "dates.yaml": "a: 2020-01-01",
    "a handler.conf": f"[handler_x]\nclass=StreamHandler\nargs=({CODE},)",
    "a class.conf": "[handler_x]\nclass=__import__('os').system\nargs=()",
    "a file.conf": "[handler_x]\nclass=FileHandler\nargs=('/tmp/x',)",
    "a class of a formatter.conf": "[formatter_x]\nclass=hostile_module.Formatter",
    "a formatter that is imported as a handler's class.conf": "[formatter_x]\nclass=StreamHandler",
    "defaults of a formatter.conf": f"[formatter_x]\ndefaults={CODE}",
    "an interpolation.conf": f"[handler_x]\nclass=StreamHandler\nlevel=%(x)s\nx={CODE}",
    "defaults.conf": f"[DEFAULT]\nargs={CODE}\n[handler_x]\nclass=StreamHandler",
    "another section.conf": "[elsewhere]\nkeys=1",
    "further arguments.conf": f"[handler_x]\nclass=StreamHandler\nkwargs={CODE}",
    "no ini.conf": "what",
    "module.py": CODE,
    "library.so": "",
    "path.pth": f"import os; {CODE}",
}


def test_the_corpus_is_large() -> None:
    assert len(HOSTILE) + len(TEXTS) >= 60


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile_module.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(HOSTILE[name]))
    findings = check_bundle(tmp_path / "config.json")
    assert findings and all("\n" not in finding.reason for finding in findings)
    assert not (tmp_path / MARK).exists() and "hostile_module" not in sys.modules


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_is_not_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(HOSTILE[name] | {"initialize": ["$@a"], "run": ["$@a"]}))
    assert main(["run", "--config_file", "config.json"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


@pytest.mark.parametrize("name", TEXTS)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(TEXTS[name].encode(errors="surrogateescape"))
    (tmp_path / "config.json").write_text("{}")
    findings = check_bundle(tmp_path)
    assert {Path(finding.file).name for finding in findings} == {name}
    assert not Path(MARK).exists()


def test_yaml_is_left_where_it_nests_too_deep(tmp_path: Path) -> None:
    """PyYAML takes the square of the time over brackets that are never closed, and ends with another reason."""
    (tmp_path / "a.yaml").write_text("a: " + "[" * 1000)
    (finding,) = check_bundle(tmp_path)
    assert "40 levels" in finding.reason


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "large.json").write_bytes(b" " * 2**21)
    assert len(check_bundle(tmp_path)) == 4
    with pytest.raises(ConfigError, match="does not exist"):
        check_bundle(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no \.json"):
        check_bundle(tmp_path / "empty")


def test_a_file_that_is_taken_in_is_checked(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"b": target("os.system")["a"], "c": dict(NETWORK)}))
    assert check_config({"a": "%other.json::b"}, tmp_path) != []
    (tmp_path / "good.json").write_text(json.dumps({"c": dict(NETWORK)}))
    assert check_config({"a": f"%{tmp_path}/good.json::c"}, tmp_path) == []


def test_files_that_take_in_each_other_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a circle of files nor a chain, each of which takes in the next twice, is gone through more than once."""
    monkeypatch.chdir(tmp_path)
    for number in range(60):
        (tmp_path / f"f{number}.json").write_text(json.dumps({"x": 1, "y": [f"%f{(number + 1) % 60}.json::x"] * 2}))
    assert check_bundle(tmp_path) == [] and check_bundle(tmp_path / "f0.json") == []
    (tmp_path / "f1.json").write_text(json.dumps({"x": "%f0.json::y"}))
    assert check_bundle(tmp_path / "f0.json") != []


def test_our_own_bundles_pass() -> None:
    assert check_bundle(BUNDLES) == []


@pytest.mark.parametrize(
    "config",
    [
        {"a": NETWORK, "b": "$@a.parameters()", "c": "$[len(@d) * 2 // 3, @d[0], -1]", "d": [1, 2]},
        {"a": {"_target_": "UNet", "_disabled_": "$not @b", "_desc_": "a network"}, "b": True},
        {"a": {"_target_": "torch.utils.data.DataLoader", "dataset": "@b", "collate_fn": "@c"}},
        {"a": {"_target_": "monai.networks.nets.unet.UNet"}, "b": "%a", "text": "100 % of 5 $, a@b.c"},
        {"a": {"_target_": "DiceCELoss"}, "b": {"_target_": "monai_fp4.handlers.Progress"}},
    ],
)
def test_harmless_configs_pass(config: dict[str, Any]) -> None:
    assert check_config(config) == []


RUNS = re.compile(
    r"torch\.(load|hub)\b|models\.\w+\("
    r"|\bpickle\.|\bsubprocess\b|(?<![\w.])(?<!def )(eval|exec|locate|import_module|load_module)\("
    r"|download_url\(|np\.load\(|optional_import\([^)]*name=[a-z_.{f]|cpp_extension"
    # Engines may compile without options; a method of every module is no name that a bundle may call.
    r"|torch\.compile\((?!network, \*\*compile_kwargs\)|self\._call_impl)"
)
"""Calls that run or load what an argument names."""
MIXED = {"monai.data.dataset", "monai.inferers.inferer", "monai.transforms.utility.array"}
"""Modules that hold such classes, refused one by one, beside harmless ones."""


def test_classes_that_may_be_named_run_and_load_nothing() -> None:
    """Read the source of every class that may be named, and of the module around it."""
    found = []
    for name, module in sorted(sys.modules.items()):
        if name.startswith(("monai.", "torch.nn.", "torch.optim.", "torch.utils.data.")) and module is not None:
            for key, value in list(vars(module).items()):
                own = isinstance(value, type) and value.__module__ == name
                if own and refusal_of(f"{name}.{key}") is None:
                    source = inspect.getsource(value if name in MIXED else module)
                    code = re.sub(r'"""(.|\n)*?"""|#.*', "", source)
                    found += [f"{name}.{key}: {match.group()}" for match in RUNS.finditer(code)]
    assert found == []


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(target("os.system")))
    assert main(["check", str(tmp_path)]) == 1
    said = "config.json: a: _target_ 'os.system': os.system lies outside torch, monai and monai_fp4"
    assert capsys.readouterr().out.strip().endswith(said)
    assert main(["check", str(BUNDLES / "unet_500k_bf16.json")]) == 0


def test_with_trust_a_bundle_runs_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"run": [f"${CODE}"], "initialize": []}))
    words = [sys.executable, "-m", "monai_fp4", "run", "--config_file", "config.json"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    for trust, code in (([], 1), (["--trust"], 0)):
        done = subprocess.run(
            [*words, *trust], cwd=tmp_path, env=environment, capture_output=True, check=False, text=True
        )
        assert (done.returncode, (tmp_path / MARK).exists()) == (code, bool(trust)), done.stderr


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"run": 5},
        {"run": ["$@missing.run()"], "initialize": []},
        {"run": ["@a"], "a": "@b", "b": "@a"},
        {"run": ["%nothing"], "initialize": []},
        {"run": ["%a::-1::b"], "a": [1], "initialize": []},
        {"run": ["$1 // 0"], "initialize": []},
        {"run": ["@a"], "a": {"_target_": "torch.nn.Conv2d", "nonsense": 1}},
        {"run": ["@a"], "a": {"_target_": "monai_fp4.bundle.TrainedRun", "run_dir": "x"}},
    ],
)
def test_a_harmless_bundle_that_does_not_run_is_one_sentence(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps(config))
    code = main(["run", "--config_file", "config.json"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == (0 if config == {"run": 5} else 1) and len(said) == code


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("logging.conf", ""),
        ("logging.conf", "[a]"),
        ("logging.conf", "[loggers]\nkeys=root\n[handlers]\nkeys=h\n[formatters]\nkeys=\n[logger_root]\nhandlers=h"),
        ("logging.conf", "[formatters]\nkeys=f\n[formatter_f]\nstyle=?\n[handlers]\nkeys=\n[loggers]\nkeys=root"),
        ("metadata.json", "[1]"),
        ("metadata.json", '"x"'),
        ("metadata.json", "{"),
    ],
)
def test_what_lies_beside_a_bundle_and_is_damaged_is_one_sentence(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps({"run": ["$1"], "initialize": []}))
    assert main(["run", "--config_file", "config.json"]) == 0
    Path(name).write_text(text)
    assert main(["run", "--config_file", "config.json"]) == 1
    assert [line[:7] for line in capsys.readouterr().err.splitlines()][-1:] == ["error: "]


def test_a_file_that_is_not_there_is_named_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps({"run": ["$1"]}))
    for words in (["config_file", "missing.json"], ["meta_file", "missing.json"], ["logging_file", "missing.json"]):
        assert main(["run", "--config_file", "config.json", f"--{words[0]}", words[1]]) == 1
        error = capsys.readouterr().err
        assert (
            error.startswith("error: expected a ") and "at missing.json, found no" in error and error.count("\n") == 1
        )


@pytest.mark.parametrize(
    "words",
    [
        ["--config_file", "missing.json"],
        ["--config_file", "config.json", "--meta_file", "missing.json"],
        ["--config_file", "config.json", "--args_file", "missing.json"],
        ["--config_file", "config.json", "--tracking", "mlflow"],
        ["--config_file", "config.json", "--epohcs", "1"],
        ["--config_file", "config.json", "--a", f"${CODE}"],
        ["--config_file", "config.json", "--a#_target_", "os.system"],
        ["--config_file", "config.json", "--a", "%/etc/x.json"],
        ["--args_file", "args.json"],
        ["--args_file", "trust.json"],
        ["--config_file", "config.json", "--logging_file", "args.json"],
        ["--config_file", "config.json", "--logging_file"],
    ],
)
def test_what_a_command_line_adds_is_checked(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps({"a": dict(NETWORK), "run": ["@a"]}))
    Path("trust.json").write_text(json.dumps({"config_file": "trusting.json", "trust_run_dir": True}))
    Path("trusting.json").write_text(json.dumps({"trust_run_dir": False, "run": ["$1"]}))
    Path("args.json").write_text(json.dumps({"config_file": "config.json", "a::_target_": "os.system"}))
    assert main(["run", *words]) == 1
    assert "error: " in capsys.readouterr().err and not Path(MARK).exists()
    assert main(["run", "--config_file", "config.json", "--a#kernel_size", "3"]) == 0
