"""The page "Adding a ...": each of its changes is applied to a copy of the package, and what was added is used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from monai_fp4.errors import MonaiFP4Error

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "howto" / "adding.md"
USE_IT = "use it"


@dataclass(frozen=True)
class Block:
    """A fenced block with a title: a new file, the diff of a file, or code that uses what was added."""

    language: str
    title: str
    text: str


def sections() -> dict[str, str]:
    return dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


def blocks(section: str) -> list[Block]:
    found = re.findall(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', section, re.DOTALL | re.MULTILINE)
    return [Block(*groups) for groups in found]


def apply_diff(text: str, diff: str) -> str:
    """Apply hunks, which ``@@`` lines part; each must fit at exactly one place."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] or line for line in lines if not line.startswith("+"))
        after = "".join(line[1:] or line for line in lines if not line.startswith("-"))
        assert text.count(before) == 1, f"{text.count(before)} places in the file read:\n{before}"
        text = text.replace(before, after)
    return text


@pytest.mark.parametrize("name", sections())
def test_what_the_page_adds_can_be_used(name: str, tmp_path: Path) -> None:
    for folder in ("monai_fp4", "data_manifests", "bundles"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    changes = [block for block in blocks(sections()[name]) if block.title != USE_IT]
    (use,) = [block for block in blocks(sections()[name]) if block.title == USE_IT]
    assert changes
    for block in changes:
        path = tmp_path / block.title
        assert path.exists() == (block.language == "diff"), f"{block.title} must be new, or a diff"
        if block.language == "diff":
            path.write_text(apply_diff(path.read_text(encoding="utf-8"), block.text), encoding="utf-8")
        else:
            path.write_text(block.text, encoding="utf-8")
            assert f"`{block.title.removesuffix('.py').replace('/', '.')}`" in sections()[name]
    checked = f"import monai_fp4\nassert monai_fp4.__file__.startswith({str(tmp_path)!r})\n{use.text}"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", checked], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_what_is_used_does_not_work_without_the_change() -> None:
    """Else a block *use it* could pass whatever the page adds."""
    for name, section in sections().items():
        (use,) = [block for block in blocks(section) if block.title == USE_IT]
        with pytest.raises((MonaiFP4Error, ImportError, KeyError, AttributeError)):
            exec(compile(use.text, name, "exec"), {})


def test_the_diffs_of_the_page_pass_the_linter(tmp_path: Path) -> None:
    for name, section in sections().items():
        for number, block in enumerate(blocks(section)):
            if block.language == "python":
                (tmp_path / f"{name.replace(' ', '_')}_{number}.py").write_text(block.text, encoding="utf-8")
    for words in (["check", "--ignore", "D100", "--config", str(ROOT / "pyproject.toml")], ["format", "--check"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--line-length", "120", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout
