"""The network of a finished run, built again from what its folder says.

A run folder is data, and may be a stranger's: nothing in it is evaluated. A network of the package's own is built from
the plain options in the folder. One of the user's own is whatever the folder's ``config.json`` says, which may be any
code, so that it takes ``trust_run_dir: true``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import inf, prod
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from monai_fp4.bundle.command_line import error_in_chain
from monai_fp4.bundle.files import protocol_config
from monai_fp4.bundle.options import RunOptions, flag
from monai_fp4.bundle.run_folder import RunFolder
from monai_fp4.bundle.session import pick_device
from monai_fp4.bundle.tensor_files import load_tensors, load_weights
from monai_fp4.data import PaperNormalization, load_manifest
from monai_fp4.data.image_size import check_size
from monai_fp4.errors import ConfigError
from monai_fp4.networks import build_network, to_channels_last
from monai_fp4.quantization.conversion import convert, set_active

__all__ = ["TrainedNetwork", "evaluate_network", "network_of_run"]

DTYPES = ("bfloat16", "float16")


class TrainedNetwork:
    """The network of a run with the weights that it chose.

    Args:
        run_dir: folder that a training bundle wrote.
        device: as the option of the training bundles.
        trust_run_dir: build the network by evaluating the folder's config, as MONAI does, whatever that runs.

    Attributes:
        folder: the run's folder.
        options: the run's options.
        network: the converted network with the run's best weights, in evaluation mode, on ``device``.
        image_size: the size that the network sees.
        normalization: what the run's validation did to intensities; None is the data set's default.
        autocast_dtype: what the run's validation was computed in, where it had autocast.
        threshold: the probability from which on a voxel is called tumour, chosen by the run on its validation patients.

    Raises:
        ConfigError: when the folder holds no finished epoch, or the weights are of another network.
    """

    def __init__(self, run_dir: str, device: str = "auto", trust_run_dir: bool | str = False) -> None:
        self._trusted = flag("trust_run_dir", trust_run_dir)
        self.folder = RunFolder(run_dir)
        self._config = self.folder.read_config()
        self._metrics = self.folder.read_json("metrics.json")
        self.options = RunOptions.of_run(self._config)
        self.image_size = self.options.image_size
        self.device = pick_device(device)
        threshold = self._metrics.get("threshold")
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not abs(threshold) < inf:
            raise ConfigError(
                f"{self.folder.metrics_path} must hold a 'threshold', but does not; let the run validate once"
            )
        self.threshold = float(threshold)
        self._seen = self._read_patients()

    def _read_patients(self) -> dict[str, Any]:
        """``patients.json``: lists of names, and of each patient's images where the run says so."""
        found = self.folder.read_json("patients.json")
        images = found.get("images") or {}
        lists = [found.get(part, []) for part in ("train", "val", "channels")]
        lists += list(images.values()) if isinstance(images, dict) else [None]
        if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
            raise ConfigError(
                f"{self.folder.path / 'patients.json'} must hold lists of names, but does not; restore it"
            )
        return found

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """The image channels that the run was trained on; an earlier version's run names them in its manifest alone."""
        known = self._seen.get("channels")
        return tuple(load_manifest(self.options.manifest).channels if known is None else known)

    @cached_property
    def normalization(self) -> PaperNormalization | None:
        """What the run's validation did to intensities, rebuilt from its name; None is the data set's default."""
        section: Any = self._config
        for name in ("validate", "dataset", "normalization"):
            section = section.get(name) if isinstance(section, Mapping) else None
        if section is None:
            return None
        if section == {"_target_": "monai_fp4.data.PaperNormalization"}:
            return PaperNormalization()
        if self._trusted:
            return ConfigParser(dict(self._config)).get_parsed_content("validate#dataset#normalization")  # type: ignore[no-any-return]
        raise ConfigError(
            f"a run folder is data, so its normalization must be the package's own, but {section!r} was found in"
            f" {self.folder.config_path}; read it, since it may run any code, and give --trust_run_dir True to do so"
        )

    @cached_property
    def autocast_dtype(self) -> str:
        """What the run's validation was computed in under autocast, such as ``float16`` of the paper's on a GPU.

        Raises:
            ConfigError: the run's config gives an expression, which is not evaluated, or something else.
        """
        section: Any = self._config.get("validate")
        step = section.get("step") if isinstance(section, Mapping) else None
        value = step.get("dtype", "bfloat16") if isinstance(step, Mapping) else "bfloat16"
        if value == "@autocast_dtype":
            value = self._config.get("autocast_dtype")
        if value == protocol_config("paper")["autocast_dtype"]:  # by the device that the run was trained on
            value = DTYPES[str(self.folder.read_json("environment.json").get("device")).startswith("cuda")]
        if value not in DTYPES:
            raise ConfigError(
                f"{self.folder.config_path} must say that autocast computes in one of {', '.join(DTYPES)}, but says"
                f" {value!r}; write there what the run was trained with"
            )
        return str(value)

    @cached_property
    def network(self) -> nn.Module:
        """Build, load and convert the network."""
        if "network_def" not in self._config:
            raise ConfigError(f"{self.folder.config_path} must hold a 'network_def', but does not; restore it")
        build = evaluate_network if self._trusted else network_of_run
        network = build(self._config, len(self.channels))
        path = self.folder.model_path
        load_weights(network, load_tensors(path), path)
        self.folder.check_model(self._metrics)
        # The backends agree in their numbers, so a run of one machine may be evaluated on another.
        network, _ = convert(network.to(self.device), self.options.recipe, dtype=self.options.compute_dtype)
        if self._metrics.get("fp4") is False:  # the schedule had switched to BF16 when these weights were chosen
            set_active(network, False)
        return to_channels_last(network, self.image_size).eval()


def network_of_run(config: Mapping[str, Any], in_channels: int) -> nn.Module:
    """Build the unconverted network that a run's ``config.json`` describes, evaluating nothing of it.

    Args:
        config: the run's whole config. Its ``network_def`` must be the package's own, with plain options.
        in_channels: image channels, which a run takes from its manifest.

    Raises:
        ConfigError: when ``network_def`` is anything else, or there is no such network.
    """
    section = config["network_def"]
    target = section.get("_target_") if isinstance(section, Mapping) else section
    if target != "monai_fp4.engines.build_and_seed":
        raise ConfigError(
            f"a run folder is data, so its network must be one of the package's own, but 'network_def' is {target!r};"
            " read its config.json, which may run any code, and give --trust_run_dir True to do so"
        )
    known = {"arch", "scale", "out_channels", "image_size"}
    given = {name: _plain(value, config, in_channels) for name, value in section.items() if name in known}
    if missing := sorted(known - set(given)):
        raise ConfigError(f"a run's 'network_def' must set {missing[0]!r}, but does not; restore its config.json")
    image_size = check_size(given["image_size"])
    channels = (given["out_channels"], _plain(section.get("in_channels", in_channels), config, in_channels))
    if not all(isinstance(number, int) and 1 <= number <= 1024 for number in channels) or prod(image_size) > 2**28:
        raise ConfigError(
            f"a run's 'network_def' must have 1 to 1024 channels and an image that fits into memory, but {channels}"
            f" and {image_size} were found; restore its config.json"
        )
    return build_network(
        str(given["arch"]), str(given["scale"]), channels[1], channels[0], image_size, spatial_dims=len(image_size)
    )


def _plain(value: Any, config: Mapping[str, Any], in_channels: int) -> Any:
    """A value of ``network_def``: itself, or the option at the config's top that it refers to."""
    if value == "$@session.in_channels":
        return in_channels
    if isinstance(value, str) and value.startswith("@"):
        value = config.get(value[1:])
    if isinstance(value, Mapping) or (isinstance(value, str) and value[:1] in ("$", "@", "%")):
        raise ConfigError(
            f"a run folder is data, so its 'network_def' must hold plain options, but {value!r} was found; read its"
            " config.json, which may run any code, and give --trust_run_dir True to do so"
        )
    return value


def evaluate_network(config: Mapping[str, Any], in_channels: int) -> nn.Module:
    """Build the unconverted network of a run by evaluating its config, whatever that runs.

    Args:
        config: the run's whole config, of a folder that is trusted like code.
        in_channels: as `network_of_run`.

    Raises:
        ConfigError: when it names what is not there, such as a module of the user's own that is not on the path.
    """
    session = {"_target_": "types.SimpleNamespace", "in_channels": in_channels}
    try:
        return ConfigParser({**config, "session": session}).get_parsed_content("network_def")
    except Exception as error:
        if own := error_in_chain(error):
            raise own from error
        reason = str(error.__cause__ or error).splitlines()[:1]
        raise ConfigError(
            f"a run's 'network_def' must be buildable, but it is not ({''.join(reason) or type(error).__name__});"
            " put the modules that it names on the path, in the version that the run was trained with"
        ) from error
