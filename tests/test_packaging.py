"""The wheel holds what an installed package needs, and README's commands exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy: what is built must not depend on what lies about in the checkout."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("monai_fp4", "data_manifests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(output)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    return zipfile.ZipFile(next(output.glob("*.whl")))


def test_wheel_holds_the_manifests_and_the_typing_marker(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "monai_fp4/py.typed" in names
    shipped = {f"monai_fp4/_manifests/{path.name}" for path in (ROOT / "data_manifests").glob("*.json")}
    assert {"monai_fp4/_manifests/phantom.json", "monai_fp4/_manifests/lgg.json"} <= shipped
    assert shipped <= names


def test_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "monai_fp4").rglob("*.py")}
    names = set(wheel.namelist())
    assert modules <= names
    assert all(name.startswith(("monai_fp4/", "monai_fp4-")) for name in names)


def test_wheel_holds_the_templates_that_bundles_are_written_from(wheel: zipfile.ZipFile) -> None:
    folder = ROOT / "monai_fp4" / "bundle" / "templates"
    templates = {path.relative_to(ROOT).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {Path(name).name for name in templates} == {
        "train.json", "evaluate.json", "inference.json", "lgg.json", "paper.json", "metadata.json", "logging.conf",
    }  # fmt: skip
    assert templates <= set(wheel.namelist())


def test_no_image_is_shipped_or_tracked(wheel: zipfile.ZipFile) -> None:
    patients = re.compile(r"\.(tiff?|webp|dcm|nii|nii\.gz)$")
    assert [name for name in wheel.namelist() if patients.search(name)] == []


def test_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    entry_points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "monai-fp4 = monai_fp4.cli:main" in wheel.read(entry_points).decode()


def test_constraints_pin_torch_exactly_and_for_every_platform() -> None:
    assert re.search(r"^torch==2\.13\.0$", CONSTRAINTS, re.MULTILINE)
    assert "://" not in CONSTRAINTS and "--" not in re.sub("^#.*", "", CONSTRAINTS, flags=re.MULTILINE)


def test_constraints_pin_every_dependency() -> None:
    def normalised(requirement: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()

    pinned = {normalised(line) for line in CONSTRAINTS.splitlines() if "==" in line and not line.startswith("#")}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    pinned.add("triton")  # CUDA builds of torch bring their own version
    assert sorted({normalised(requirement) for requirement in wanted} - pinned) == []


@pytest.mark.parametrize(
    ("status", "holes", "code", "said"),
    [
        (200, [], 0, "No known vulnerabilities"),
        (200, ["numpy"], 1, "PYSEC-2026-1"),
        (500, [], 1, "500"),
    ],
)
def test_an_audit_fails_on_a_known_hole_and_where_nobody_answers(
    status: int, holes: list[str], code: int, said: str
) -> None:
    """``make audit`` as it stands in the Makefile, of advisories that a server of the test's own gives."""

    class Advisories(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
            package = {"package": {"name": name, "ecosystem": "PyPI"}, "versions": ["2.4.6"], "ranges": []}
            hole = {
                "id": "PYSEC-2026-1",
                "summary": "a hole",
                "modified": "2026-01-01T00:00:00Z",
                "affected": [package],
            }
            content = json.dumps({"vulns": [hole]} if name in holes else {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    recipe = re.search(r"^audit:.*\n\t\$\(PY\) (.*)", MAKEFILE, re.MULTILINE)
    assert recipe
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        asked = f"-s osv --osv-url http://127.0.0.1:{server.server_port}/query"
        words = recipe[1].replace("$(AUDIT_ARGS)", asked).split()
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        server.shutdown()
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stderr[-500:]


def test_the_bill_of_materials_is_cyclonedx() -> None:
    written = subprocess.run(
        [sys.executable, "docs/licences.py", "--sbom"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written) is None
    named = {each["name"].lower() for each in json.loads(written)["components"]}
    assert {"torch", "monai", "numpy", "pydicom"} <= named


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def test_every_dependency_is_imported() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "monai_fp4").rglob("*.py"))
    called = {"pytorch-ignite": "ignite", "pillow": "PIL"}
    by_others = {"einops", "tensorboard"}  # MONAI's networks, torch.utils.tensorboard
    declared = {re.split(r"[<>=]", each)[0] for each in PROJECT["project"]["dependencies"]} - by_others
    names = [name for name in declared if not re.search(rf"^ *(import|from) {called.get(name, name)}\b", code, re.M)]
    assert names == [], "used or gone"


def test_readme_shows_the_two_commands_first() -> None:
    assert readme_commands()[:2] == ["make demo", "make test"]


def test_readme_names_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    assert (
        set(re.findall(r"\bmake ([a-z]+)", "\n".join([*readme_commands(), *re.findall("`(make .*?)`", README)])))
        <= targets
    )


def test_readme_names_files_that_exist() -> None:
    linked = re.findall(r"\]\(((?!http)[^)#]+)", README)
    named = [
        word for command in readme_commands() for word in command.split() if word.startswith(("bundles/", "data_"))
    ]
    assert linked and named
    assert [name for name in [*linked, *named] if not (ROOT / name).exists()] == []


def test_readme_bundle_commands_give_options_that_the_bundle_has() -> None:
    for command in readme_commands():
        if match := re.search(r"--config_file (\S+\.json)", command):
            known = json.loads((ROOT / match[1]).read_text(encoding="utf-8"))
            given = set(re.findall(r" --(\w+)", command)) - {"config_file", "nproc_per_node"}
            assert given <= set(known), command


@pytest.mark.parametrize(
    "command", sorted({" ".join(line.split()[:3]) for line in readme_commands() if line.startswith("monai-fp4 m")})
)
def test_readme_subcommands_exist(command: str) -> None:
    program = [sys.executable, "-c", "import sys; from monai_fp4.cli import main; sys.exit(main())"]
    shown = subprocess.run([*program, *command.split()[1:], "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    for option in {
        option for line in readme_commands() if line.startswith(command) for option in re.findall(r" (--\w+)", line)
    }:
        assert option in shown.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"], ["sweep", "--dry_run", "--archs", "unet"]])
def test_commands_that_compute_nothing_start_quickly(tmp_path: Path, arguments: list[str]) -> None:
    if "--dry_run" in arguments:
        arguments = [*arguments, "--manifest", "phantom", "--output_dir", str(tmp_path / "study")]
    program = "import sys; from monai_fp4.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    program += "print('loaded:', sorted({'torch', 'monai', 'ignite'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    counted = "['torch']" if "--dry_run" in arguments else "[]"  # torch tells how many GPUs there are
    assert done.stdout.rstrip().endswith(f"loaded: {counted}"), done.stdout + done.stderr


def test_the_public_names_are_there_whatever_was_imported_before() -> None:
    program = """
import monai_fp4.quantization.conversion
from monai_fp4.quantization.conversion import unconvert
import monai_fp4
assert set(monai_fp4.__all__) <= set(dir(monai_fp4))
for name in monai_fp4.__all__:
    value = getattr(monai_fp4, name)
    assert type(value).__name__ != "module", name
import monai_fp4.quantization.conversion
assert monai_fp4.convert.__module__ == "monai_fp4.quantization.conversion" and callable(monai_fp4.convert)
from monai_fp4 import *
assert convert is monai_fp4.convert and RECIPES["sr"].name == "sr"
import monai_fp4.data, monai_fp4.networks
for package in (monai_fp4.data, monai_fp4.networks):
    assert all(hasattr(package, name) for name in package.__all__) and not hasattr(package, "nonsense")
try:
    monai_fp4.nonsense
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "No monai_fp4 attribute nonsense\n"
