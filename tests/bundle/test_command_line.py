from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import BUNDLES

from monai_fp4.bundle import check_command_line, error_in_chain, install_error_hook, pick_device
from monai_fp4.errors import ConfigError, DataError

MONAI = "/site-packages/monai/bundle/__main__.py"
BUNDLE = str(BUNDLES / "unet_500k_bf16.json")


@pytest.mark.parametrize(
    "words",
    [
        ["--epochs", "3"],
        ["--epochs=3"],
        ["--train#trainer#max_epochs", "3"],
        ["--bundle_root", "."],
        ["--optimizer", "{}"],
        ["--tracking", "mlflow"],
        ["--image_size", "[64,64]"],
    ],
)
def test_command_lines_that_a_bundle_understands(words: list[str]) -> None:
    check_command_line([MONAI, "run", "--config_file", BUNDLE, *words])
    check_command_line([MONAI, "run", f"--config_file=['{BUNDLE}']", *words])


@pytest.mark.parametrize("bundle", [BUNDLE, "/nowhere.json"])
@pytest.mark.parametrize("word", ["--epoch", "--epoch=3", "--learningrate"])
def test_a_misspelt_option_is_refused(bundle: str, word: str) -> None:
    with pytest.raises(ConfigError, match=r"nearest names are '--(epochs|learning_rate)'"):
        check_command_line([MONAI, "run", "--config_file", bundle, word, "3"])


def test_an_option_of_another_bundle_is_refused() -> None:
    with pytest.raises(ConfigError, match="--epochs"):
        check_command_line([MONAI, "run", "--config_file", str(BUNDLES / "evaluate.json"), "--epochs", "3"])
    check_command_line([MONAI, "run", "--config_file", str(BUNDLES / "evaluate.json"), "--split", "val"])


def test_an_id_of_ones_own_is_an_option_too(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps(json.loads(Path(BUNDLE).read_text()) | {"my_weight": 0.5}))
    check_command_line([MONAI, "run", "--config_file", str(own), "--my_weight", "0.7"])
    check_command_line([MONAI, "run", "--config_file", f"['{BUNDLE}', '{own}']", "--my_weight", "0.7"])


def test_other_programs_have_other_options() -> None:
    check_command_line(["/usr/bin/pytest", "--epoch", "3"])
    check_command_line([])


def test_pick_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_our_error_is_found_behind_those_of_others() -> None:
    ours, wrapper, last = DataError("ours"), RuntimeError("MONAI's"), ValueError("another's")
    wrapper.__cause__, last.__context__ = ours, wrapper
    assert error_in_chain(last) is ours
    assert error_in_chain(ValueError("another's")) is None
    assert error_in_chain(None) is None


def _uncaught(error: BaseException) -> None:
    sys.excepthook(type(error), error, None)


def test_the_hook_says_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MONAI_FP4_DEBUG", raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    install_error_hook()
    install_error_hook()
    wrapped = RuntimeError("MONAI's")
    wrapped.__cause__ = DataError("expected this, found that")
    _uncaught(wrapped)
    assert capsys.readouterr().err == "error: expected this, found that\n"
    _uncaught(KeyboardInterrupt())
    assert "same command" in capsys.readouterr().err
    _uncaught(ZeroDivisionError("a defect"))
    assert "ZeroDivisionError: a defect" in capsys.readouterr().err
    monkeypatch.setenv("MONAI_FP4_DEBUG", "1")
    _uncaught(wrapped)
    assert "RuntimeError: MONAI's" in capsys.readouterr().err
