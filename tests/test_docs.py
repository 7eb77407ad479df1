"""Documentation that runs and that agrees with the package: examples, generated tables, and a page for every module."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import griffe
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import monai_fp4

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def examples(page: Path) -> str:
    """The ``pycon`` blocks of a page, as one session."""
    return "\n".join(re.findall(r"^```pycon\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=lambda page: page.stem)
def test_examples_of_a_page_give_what_it_says(page: Path) -> None:
    session = doctest.DocTestParser().get_doctest(examples(page), {}, page.name, str(page), 0)
    output: list[str] = []
    result = doctest.DocTestRunner(optionflags=OPTIONS).run(session, out=output.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(output)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gen_tables() -> ModuleType:
    return script("gen_tables")


def test_tables_are_what_the_package_says(gen_tables: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gen_tables.main(["--check"]) == 0, capsys.readouterr().err


def test_drift_of_a_table_is_seen_and_mended(gen_tables: ModuleType) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    drifted = page.replace("| `chain_rule` |", "| `chain` |")
    assert drifted != page
    assert gen_tables.fill(drifted) == page


def test_a_table_that_does_not_exist_is_refused(gen_tables: ModuleType) -> None:
    with pytest.raises(SystemExit, match="'recipe' is not known"):
        gen_tables.fill("<!-- table:recipe -->\n<!-- /table:recipe -->")


def test_the_picture_of_the_ways_passes_modules_that_exist() -> None:
    ways = script("ways_picture")
    names = {module for stations in ways.WAYS.values() for module, _ in stations}
    full = [name if name.startswith("torch.") else f"monai_fp4.{name}" for name in sorted(names)]
    assert [name for name in full if importlib.util.find_spec(name) is None] == []
    for theme in ways.THEMES:
        drawn = (ROOT / "docs" / "assets" / f"ways-{theme}.svg").read_text(encoding="utf-8")
        assert drawn == ways.draw(theme), "run python docs/ways_picture.py"


def test_examples_in_docstrings_are_fenced_for_the_reference() -> None:
    docstring = "One line, see :func:`~f`.\n\n>>> f([1])\n[2]\n\nThen:\n>>> f([])\n[]"
    fenced = "One line, see `f`.\n\n```pycon\n>>> f([1])\n[2]\n```\n\nThen:\n\n```pycon\n>>> f([])\n[]\n```"
    assert script("docstrings").to_markdown(docstring) == fenced
    assert script("docstrings").to_markdown(fenced) == fenced
    section = "One line.\n\nExample:\n    >>> f([1])\n    [2]"
    assert script("docstrings").to_markdown(section) == section.replace("Example:", "Examples:")


def test_every_module_has_its_place_in_the_reference() -> None:
    reference = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)$", reference, re.MULTILINE))
    packages = {info.name for info in pkgutil.walk_packages(monai_fp4.__path__, "monai_fp4.") if info.ispkg}
    modules = {info.name for info in pkgutil.walk_packages(monai_fp4.__path__, "monai_fp4.")}
    private = {name for name in modules if any(part.startswith("_") for part in name.split("."))}
    missing = sorted(modules - packages - private - documented)
    assert missing == [], "add `::: <module>` to a page in docs/reference"
    assert sorted(documented - modules - {"monai_fp4"}) == []


def without_entry(package: griffe.Module, documented: set[str]) -> list[str]:
    """Names of an `__all__` that the reference leaves out, which shows those with a docstring, where they are made."""
    missing = []
    for name in map(str, package.exports or ()):
        member = package.members.get(name)  # none: a name of several that are assigned together
        if member is None or not (
            member.is_alias or member.is_module or (member.has_docstring and package.path in documented)
        ):
            missing.append(f"{package.path}.{name}")
    below = [without_entry(module, documented) for module in package.modules.values() if not module.is_alias]
    return missing + [name for names in below for name in names]


def test_every_public_name_has_its_entry_in_the_reference(tmp_path: Path) -> None:
    reference = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)$", reference, re.MULTILINE))
    missing = without_entry(griffe.load("monai_fp4", search_paths=[str(ROOT)]), documented)
    assert missing == [], "give each a docstring, below it if it is a constant, or take it out of __all__"
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "__init__.py").write_text(
        '__all__ = ["A", "B", "C", "D"]\nA = B, C = 1, 2\nD = 3\n"""Three."""\n'
    )
    assert without_entry(griffe.load("odd", search_paths=[str(tmp_path)]), {"odd"}) == ["odd.A", "odd.B", "odd.C"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_bundles_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"bundles/[\w/]+\.json", page.read_text(encoding="utf-8")))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.stem)
def test_files_of_the_repository_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:monai_fp4|tests|benchmarks|docs)/[\w/.-]+\.(?:py|md|cpp|json)\b", text))
    new = set(re.findall(r'^```python title="([^"]+)"$', text, re.MULTILINE))  # files that a reader is to write
    assert sorted(name for name in named - new if not (ROOT / name).exists()) == []


def test_the_tags_that_the_tensorboard_page_names_are_in_a_run(finished_run: Path) -> None:
    named = set(
        re.findall(
            r"`((?:loss|metrics|predictions|training)/\w+)`",
            (ROOT / "docs" / "howto" / "tensorboard.md").read_text("utf-8"),
        )
    )
    events = EventAccumulator(str(finished_run))
    events.Reload()
    kinds = ("scalars", "images", "histograms", "tensors")
    written = {"/".join(tag.split("/")[:2]) for kind in kinds for tag in events.Tags()[kind]}
    assert len(named) > 10
    assert named - written == set()
