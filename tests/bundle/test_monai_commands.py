"""MONAI's own commands on our bundles, run as a user runs them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, create_workflow
from tiny_runs import BUNDLES, TINY, Dataset, command, contents, metrics

META = str(BUNDLES / "metadata.json")
# What MONAI's published schema of metadata.json asks for.
SCHEMA = {
    "type": "object",
    "required": [
        "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
        "task", "description", "authors", "copyright", "network_data_format",
    ],
    "properties": {
        "required_packages_version": {"type": "object"},
        "changelog": {"type": "object"},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "additionalProperties": {
                "additionalProperties": {
                    "type": "object",
                    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
                    "properties": {
                        "value_range": {"type": "array", "items": {"type": "number"}},
                        "channel_def": {"type": "object"},
                    },
                }
            },
        },
    },
}  # fmt: skip


def test_verify_metadata(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))  # MONAI would download it, but takes one that is there
    done = command("verify_metadata", "--meta_file", META, "--filepath", "schema.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "metadata is verified with no error" in done.stdout + done.stderr
    metadata = json.loads(Path(META).read_text())
    assert metadata["schema"].endswith("/meta_schema_20240725.json")
    assert set(metadata["network_data_format"]["inputs"]["image"]["channel_def"]) == {"0", "1", "2"}


@pytest.mark.parametrize("network", ["network_def", "network"])
def test_verify_net_in_out_leaves_no_run(tmp_path: Path, network: str) -> None:
    """Under FP4 too, and without the data or a run folder."""
    bundle = str(BUNDLES / "vit_500k_sr.json")  # its positions fit one image size only
    arguments = ("--config_file", bundle, "--meta_file", META, "--device", "cpu")
    done = command("verify_net_in_out", network, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data shape of network is verified with no error" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ckpt_export_of_a_finished_run(finished_run: Path, tmp_path: Path) -> None:
    before = contents(finished_run)
    arguments = ["--filepath", "model.ts", "--ckpt_file", str(finished_run / "model.pt"), "--meta_file", META]
    arguments += ["--config_file", str(finished_run / "config.json")]
    done = command("ckpt_export", "network_def", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.ts"] and contents(finished_run) == before
    network = ConfigParser(json.loads((finished_run / "config.json").read_text())).get_parsed_content("network_def")
    network.load_state_dict(torch.load(finished_run / "model.pt", weights_only=True))
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.eval()(image)
        exported = torch.jit.load(tmp_path / "model.ts").eval()(image)
    assert torch.allclose(exported, expected, atol=1e-5)


def test_a_misspelt_argument_of_monai_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    arguments = ["--filepaht", "m.ts", "--ckpt_file", "model.pt", "--config_file", str(BUNDLES / "unet_500k_bf16.json")]
    done = command("ckpt_export", "network_def", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: option '--filepaht' is not known; the nearest names are '--filepath'"
    )


def test_run_workflow(tiny: Dataset, tmp_path: Path) -> None:
    options = TINY | tiny.options | {"output_dir": "run", "epochs": 1}
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    bundle = str(BUNDLES / "unet_500k_bf16.json")
    done = command("run_workflow", "--workflow_type", "train", "--config_file", bundle, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")["finished"] is True


def test_create_workflow_from_python(tiny: Dataset, tmp_path: Path) -> None:
    options = TINY | tiny.options | {"output_dir": str(tmp_path / "run"), "epochs": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns of every config that it reads
        flow = create_workflow(
            config_file=str(BUNDLES / "unet_500k_sr.json"), workflow_type="train", logging_file=False, **options
        )
    flow.run()
    flow.finalize()
    assert metrics(tmp_path / "run")["finished"] is True
    assert flow.parser.get_parsed_content("train#trainer").state.epoch == 1
