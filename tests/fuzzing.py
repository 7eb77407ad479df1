"""Files and options that are nearly right, for whatever reads what another person may have made.

Each `Target` takes an input and ends normally, or with one of the package's errors; anything else is a fault. Inputs
are documents and files that are good but for a few changes, drawn by hypothesis. tests/test_fuzz.py tries a few of each
and benchmarks/fuzz.py many. Scans and manifests have theirs in tests/data/test_hostile.py.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st
from ignite.engine import Engine
from synthetic_study import definition, write_study
from torch import nn

from monai_fp4.bundle import RunFolder, Session, TrainedNetwork
from monai_fp4.bundle.foreign import check_bundle
from monai_fp4.bundle.options import defaults
from monai_fp4.bundle.tensor_files import save_tensors
from monai_fp4.engines import nonfinite_tensors
from monai_fp4.errors import ConfigError, MonaiFP4Error
from monai_fp4.handlers import Recorder
from monai_fp4.networks import build_network
from monai_fp4.report.analyse import analyse
from monai_fp4.report.tables import collect

BUNDLES = Path(__file__).parents[1] / "bundles"
LONGEST = 3000
"""Characters of a sentence: a path, an id and a value, each cut."""

PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 99), st.floats(), st.text(max_size=8),
    st.sampled_from([
        -1, 0, 2**31, 2**63, 2**64, 10**400, 1e308, float("nan"), "", "all", "fp4", "15m", "../..", "/", "\x1b[2J",
        "\ud800", "\0", "x" * 9999, "$__import__('os').getcwd()", "@network_def", "%config.json", "[64,64]", "1e9",
        {"_target_": "os.getcwd"}, {"_target_": "torch.nn.Linear"}, [[]], [1, "a", None], {"a": 1},
    ]),
)  # fmt: skip
NESTED = st.sampled_from([12, 70, 200]).map(lambda depth: json.loads("[" * depth + "]" * depth))
TENSORS = st.sampled_from([
    torch.zeros(()), torch.zeros(0), torch.full((3,), torch.nan), torch.full((2, 2), torch.inf), torch.ones(5).half(),
    torch.ones(2, dtype=torch.complex64), torch.ones(4, dtype=torch.int64), torch.ones(2, 2).to_sparse(),
    torch.empty(2, device="meta"), torch.ones(1).expand(1000, 1000), torch.full((2, 1), 3e38), torch.ones(2) > 0,
])  # fmt: skip
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 2**16), st.sampled_from(["replace", "remove", "repeat", "rename", "move"]), PLAIN | NESTED
    ),
    min_size=1,
    max_size=3,
)
FAULTS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "drop", "insert", "zero"]), st.integers(0, 2**24), st.binary(max_size=9)),
    min_size=1,
    max_size=3,
)


@dataclass(frozen=True)
class Target:
    """Something that reads.

    Attributes:
        good: an input that it takes.
        inputs: nearly right ones.
        take: reads one.
    """

    good: Any
    inputs: st.SearchStrategy[Any]
    take: Callable[[Any], None]

    def refuses(self, value: Any) -> bool:
        """Whether it says no; all that it may say is one sentence for a terminal."""
        try:
            self.take(value)
        except MonaiFP4Error as error:
            said = str(error)
            assert said and said.isprintable() and len(said) < LONGEST, said
            return True
        return False


def changed(document: Any, changes: Sequence[tuple[int, str, Any]]) -> Any:
    """A copy of a tree of dictionaries and lists with some of its parts changed."""
    root = {"": copy.deepcopy(document)}
    for where, how, value in changes:
        places = list(_places(root))
        part, name = places[where % len(places)]
        if how == "replace" or part is root:
            part[name] = copy.deepcopy(value)
        elif how == "remove":
            del part[name]
        elif how == "move":
            other, place = places[(where * 31 + 7) % len(places)]
            part[name] = copy.deepcopy(other[place])
        elif isinstance(part, list):
            part.insert(name, copy.deepcopy(part[name]))
        else:
            part[str(value)[:20] if how == "rename" else f"{name}_"] = part.pop(name)
    return root[""]


def _places(part: Any) -> Iterator[tuple[Any, Any]]:
    for name in list(part) if isinstance(part, dict) else range(len(part)):
        yield part, name
        if isinstance(part[name], (dict, list)):
            yield from _places(part[name])


def damaged(content: bytes, faults: Sequence[tuple[str, int, bytes]]) -> bytes:
    """The bytes with some of them changed."""
    found = bytearray(content)
    for how, where, more in faults:
        at = where % max(len(found), 1)
        if how == "cut":
            del found[at:]
        elif how == "drop":
            del found[at : at + 1 + where % 97]
        elif how == "insert":
            found[at:at] = more
        elif how == "zero":
            found[at : at + 64] = bytes(len(found[at : at + 64]))
        elif found:
            found[at] ^= 1 << where % 8
    return bytes(found)


def repacked(content: bytes, number: int, faults: Sequence[tuple[str, int, bytes]]) -> bytes:
    """An archive one of whose members is damaged, or another one's, with checksums that fit."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    one, other = names[number % len(names)], names[number // 7 % len(names)]
    members[one] = members[other] if one != other and number % 3 else damaged(members[one], faults)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return written.getvalue()


def saved(content: Any) -> bytes:
    """What torch writes of it; of what it cannot write, the text."""
    written = io.BytesIO()
    try:
        torch.save(content, written)
    except Exception:
        return repr(content).encode(errors="replace")
    return written.getvalue()


def as_text(document: Any) -> bytes:
    """A document as JSON, as Python writes it."""
    return json.dumps(document).encode()


def documents(document: Any) -> st.SearchStrategy[bytes]:
    """JSON files: the document changed, or its text damaged."""
    text = as_text(document)
    return CHANGES.map(lambda changes: as_text(changed(document, changes))) | FAULTS.map(lambda f: damaged(text, f))


def archives(content: Any) -> st.SearchStrategy[bytes]:
    """Files of torch: the content changed, the file damaged, or a part of the file."""
    whole = saved(content)
    of_tensors = st.lists(st.tuples(st.integers(0, 2**16), st.just("replace"), TENSORS), min_size=1, max_size=2)
    return st.one_of(
        CHANGES.map(lambda changes: saved(changed(content, changes))),
        of_tensors.map(lambda changes: saved(changed(content, changes))),
        FAULTS.map(lambda faults: damaged(whole, faults)),
        st.tuples(st.integers(0, 999), FAULTS).map(lambda drawn: repacked(whole, *drawn)),
    )


def file_of(path: Path, read: Callable[[], object]) -> Callable[[bytes], None]:
    """Write the input to a file, and have its folder read."""

    def take(content: bytes) -> None:
        path.write_bytes(content)
        read()

    return take


def of_file(path: Path, inputs: st.SearchStrategy[bytes], read: Callable[[], object]) -> Target:
    """A file among good ones, which is put back afterwards."""
    good, take = path.read_bytes(), file_of(path, read)

    def restored(content: bytes) -> None:
        try:
            take(content)
        finally:
            path.write_bytes(good)

    return Target(good, inputs, restored)


def small_recorder(folder: Path) -> tuple[Recorder, Engine]:
    """What resumes a run of two epochs of one step, and its engine."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=2)
    session: Any = SimpleNamespace(
        run_folder=RunFolder(folder),
        options=SimpleNamespace(fold=0),
        device=torch.device("cpu"),
        rank=0,
        world_size=1,
        validation_patients=("a", "b"),
    )
    engine, evaluator = Engine(lambda _engine, _batch: None), Engine(lambda _engine, _batch: None)
    engine.state.epoch_length, engine.state.max_epochs = 1, 2
    evaluator.state.epoch, evaluator.state.metrics = 1, {"auprc": 0.5, "threshold": 0.5}
    return Recorder(session, network, optimizer, schedule, evaluator), engine  # type: ignore[arg-type]


def checkpoint_of(folder: Path) -> Any:
    """Make the step, and write the folder's files."""
    recorder, engine = small_recorder(folder)
    recorder.network(torch.rand(4, 2)).sum().backward()
    recorder.optimizer.step()
    recorder.lr_scheduler.step()
    engine.state.epoch = engine.state.iteration = 1
    recorder.record(engine)
    recorder.folder.settle()
    return torch.load(recorder.folder.checkpoint_path, weights_only=True)


def resume(folder: Path) -> None:
    """Resume, make a step, and see that its numbers are good ones."""
    recorder, engine = small_recorder(folder)
    recorder.resume(engine)
    recorder.network(torch.rand(4, 2)).sum().backward()
    recorder.optimizer.step()
    assert not nonfinite_tensors(recorder.network.state_dict())


def write_run(path: Path, config: Any) -> None:
    """Write the files of a run that nobody has trained."""
    run = RunFolder(path)
    network = build_network("unet", "500k")
    history = [{"epoch": 1, "train_loss": 1.0, "learning_rate": 0.001, "fp4": True, "auprc": 0.5, "threshold": 0.5}]
    run.write_json("config.json", config)
    run.write_json("patients.json", {"train": ["a"], "val": ["b"], "test": [], "channels": ["T1", "FLAIR", "T1c"]})
    run.write_json(
        "metrics.json", {"finished": False, "best_epoch": 1, "threshold": 0.5, "fp4": True, "history": history}
    )
    save_tensors(run.model_path, network.state_dict())


OF_A_RUN = ("config.json", "metrics.json", "patients.json")
OF_A_CELL = (
    "cell.json", "config.json", "metrics.json", "health.json", "pr_curve.json", "evaluation/metrics.json",
    "environment.json",
)  # fmt: skip
NAMES = (
    "bundles, checked", "options of a bundle",
    *(f"{name} of a run, {what}" for name in OF_A_RUN for what in ("evaluated", "started again")),
    "model.pt of a run, evaluated", "checkpoint.pt of a run, resumed", "study.json, reported",
    *(f"{name} of a cell, reported" for name in OF_A_CELL),
)  # fmt: skip
"""Names of the targets."""


def targets(folder: Path) -> dict[str, Target]:
    """Whatever reads, by name; the files lie in ``folder``."""
    found: dict[str, Target] = {}
    bundles = [json.loads((BUNDLES / f"{name}.json").read_text()) for name in ("unet_500k_sr", "evaluate", "inference")]
    bundle = folder / "bundle.json"
    found["bundles, checked"] = Target(
        as_text(bundles[0]),
        st.one_of(*map(documents, bundles)),
        file_of(bundle, lambda: _refuse(check_bundle(str(bundle)))),
    )
    found["options of a bundle"] = Target(
        defaults(),
        CHANGES.map(lambda changes: {**_object(changed(defaults(), changes))}),
        lambda o: _discard(Session(**o)),
    )

    run = folder / "run"
    write_run(run, bundles[0])
    config, patients = RunFolder(run).read_config(), RunFolder(run).read_json("patients.json")

    def evaluate() -> None:
        trained = TrainedNetwork(str(run), device="cpu")
        assert trained.network and trained.normalization is None and 0 <= abs(trained.threshold) < 2**1024

    def start() -> None:
        RunFolder(run).check(config, patients)
        assert RunFolder(run).finished in (True, False)

    for name in OF_A_RUN:
        good = run / name
        for what, read in (("evaluated", evaluate), ("started again", start)):
            found[f"{name} of a run, {what}"] = of_file(good, _changed_file(good), read)
    model = run / "model.pt"
    weights = torch.load(model, weights_only=True)
    found["model.pt of a run, evaluated"] = of_file(model, archives(weights), evaluate)

    (folder / "cut").mkdir()
    checkpoint = folder / "cut" / "checkpoint.pt"
    made = archives(checkpoint_of(folder / "cut"))
    found["checkpoint.pt of a run, resumed"] = of_file(checkpoint, made, lambda: resume(folder / "cut"))

    study = write_study(folder / "study", definition(archs=("unet",), seeds=(0, 1)), patients=3)
    cell = study.run_dir(study.read_definition().cells()[0])

    def report() -> None:
        analyse(collect(study.path))

    found["study.json, reported"] = of_file(study.definition_path, _changed_file(study.definition_path), report)
    for name in OF_A_CELL:
        found[f"{name} of a cell, reported"] = of_file(cell / name, _changed_file(cell / name), report)
    return found


def _changed_file(path: Path) -> st.SearchStrategy[bytes]:
    return documents(json.loads(path.read_text()))


def _object(value: Any) -> dict[str, Any]:
    return {str(name): part for name, part in value.items()} if isinstance(value, dict) else {"options": value}


def _refuse(findings: Sequence[object]) -> None:
    if findings:
        raise ConfigError(str(findings[0]))


def _discard(_value: object) -> None:
    """What was read is of no interest."""
