"""A finished run, taken up again to segment other patients: what ``evaluate.json`` begins with.

Which patients are evaluated matters more than any metric: a patient that the run was trained on says nothing about the
next one. ``split: auto`` takes the manifest's test patients or, where it names none, every patient that the run neither
trained on nor chose its weights with; who is left out is said.
"""

from __future__ import annotations

import sys
from pathlib import Path

from monai_fp4.bundle.command_line import check_command_line, install_error_hook
from monai_fp4.bundle.options import path_text
from monai_fp4.bundle.trained_network import TrainedNetwork
from monai_fp4.data import Manifest, load_manifest, prepare_data, unseen_patients
from monai_fp4.data.datalist import patient_record
from monai_fp4.data.identity import image_keys, same_images
from monai_fp4.data.pseudonyms import refuse_keys_within
from monai_fp4.errors import ConfigError, DataError, listed, printable, unknown_name

__all__ = ["TrainedRun"]

SPLITS = ("auto", "test", "val", "all")


class TrainedRun(TrainedNetwork):
    """The network of a run and the patients to evaluate it on.

    Args:
        run_dir: folder that a training bundle wrote.
        manifest: path or name of a manifest; it may be another than the run's.
        dataset_dir: folder of the manifest's scans.
        output_dir: folder that the evaluation writes; refused if it holds another run's files.
        split: ``auto`` (see the module), ``test``, ``val`` (the run's validation fold) or ``all`` (every patient of the
            manifest; refused while one of them was trained on).
        device: as the option of the training bundles.
        trust_run_dir: build the network by evaluating the folder's config, as MONAI does, whatever that runs.

    Attributes:
        datalist: one record a patient.
        source: run, manifest and split, for the record.

    Raises:
        ConfigError: when the folder holds no finished epoch, or the weights are of another network.
        DataError: when there is nobody to evaluate, or a patient was trained on.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        manifest: str,
        dataset_dir: str,
        output_dir: str,
        split: str = "auto",
        device: str = "auto",
        trust_run_dir: bool | str = False,
    ) -> None:
        install_error_hook()
        check_command_line(sys.argv)
        run_dir, manifest = path_text("run_dir", run_dir), path_text("manifest", manifest)
        dataset_dir, output_dir = path_text("dataset_dir", dataset_dir), path_text("output_dir", output_dir)
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if Path(output_dir).resolve() == Path(run_dir).resolve():
            raise ConfigError(
                f"output_dir must be another folder than run_dir, but both are {run_dir}; choose another output_dir"
            )
        if (Path(output_dir) / "config.json").exists():
            raise ConfigError(
                f"output_dir must be a new folder, but {output_dir} holds a config.json, as a training does; choose"
                " another output_dir"
            )
        super().__init__(run_dir, device, trust_run_dir)
        records = load_manifest(manifest)
        refuse_keys_within(output_dir, records)
        root = prepare_data(records, dataset_dir)
        channels = self.channels = self._channels(records)
        chosen = self._choose(records, split)
        self.datalist = [
            {**patient_record(records, patient, root), "select": list(channels)}
            for patient in records.patients
            if patient.id in chosen
        ]
        self.source = {"run_dir": run_dir, "manifest": records.name, "split": split, "patients": len(self.datalist)}
        self.network  # noqa: B018 - built now, so that weights of another network are refused before data is read

    def _channels(self, manifest: Manifest) -> tuple[str, ...]:
        """The channels that the run was trained on, in its order; an earlier version's run does not name them."""
        trained = self._seen.get("channels", manifest.channels)
        missing = [name for name in trained if name not in manifest.channels]
        if missing:
            raise DataError(
                f"the manifest '{manifest.name}' must have the channels {', '.join(trained)} that "
                f"{self.folder.path} was trained on, but has {', '.join(manifest.channels)}; give the files of "
                f"'{missing[0]}', or name channels alike with monai-fp4 manifest build --channels"
            )
        return tuple(trained)

    def _known(self, manifest: Manifest, part: str) -> set[str]:
        """Ids of the manifest's patients that were in a part of the run: by their images, else by their ids."""
        ids, images = set(self._seen.get(part, ())), self._seen.get("images")
        if images is None:
            return ids
        seen = [images[name] for name in ids if name in images]
        if part == "train":
            seen += self._trained_before
        found = {p.id for p in manifest.patients if any(same_images(image_keys(p), keys) for keys in seen)}
        others = sorted(ids & {p.id for p in manifest.patients} - found)
        if others:
            names = printable(listed(others))
            print(f"{len(others)} patients are called like some of '{part}' but have other images: {names}")
        return found

    @property
    def _trained_before(self) -> list[list[str]]:
        """The keys of the images that the weights had seen before the run began from them, a patient each."""
        if not (self.folder.path / "init_from.json").exists():
            return []
        known = self.folder.read_json("init_from.json").get("trained_on", {})  # earlier versions kept nothing
        lists = [keys for keys in known.values() if isinstance(keys, list)] if isinstance(known, dict) else []
        return [[key for key in keys if isinstance(key, str)] for keys in lists]

    def _choose(self, manifest: Manifest, split: str) -> list[str]:
        trained, validated = self._known(manifest, "train"), self._known(manifest, "val")
        own_split = str(self.options.fold) in manifest.splits or not manifest.splits
        held_out = [p.id for p in unseen_patients(manifest, self.options.fold if own_split else "all")]
        if split == "auto":
            chosen = held_out or [p.id for p in manifest.patients if p.id not in trained | validated]
        elif split == "test":
            chosen = held_out
        elif split == "val":
            chosen = [p.id for p in manifest.patients if p.id in validated]
        else:
            chosen = [p.id for p in manifest.patients]
        known = sorted(set(chosen) & trained)
        if known:
            raise DataError(
                f"no evaluated patient may have been trained on, but {len(known)} of {len(chosen)} were, {known[0]} the"
                " first; give another manifest, or split=auto"
            )
        if not chosen:
            raise DataError(
                f"the manifest '{manifest.name}' must hold patients to evaluate, but split '{split}' leaves none that "
                f"{self.folder.path} was not trained with; give another manifest{', or split=val' if validated else ''}"
            )
        left = [p.id for p in manifest.patients if p.id not in chosen]
        print(f"Evaluating {len(chosen)} patients (split: {split}); {len(left)} others of the manifest are left out.")
        if left:
            print(printable(f"Left out: {listed(left)}"))
        return chosen
