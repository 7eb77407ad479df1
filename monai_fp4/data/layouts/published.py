"""The layouts of nnU-Net, of the Medical Segmentation Decathlon and of BIDS derivatives.

nnU-Net: ``imagesTr/anna_0000.nii.gz``, a file a channel, with ``labelsTr/anna.nii.gz``; ``dataset.json`` names the
channels. The Decathlon: the same folders with one file of all channels a patient, listed in ``dataset.json``. BIDS: a
folder a person and session, masks beside the images or below ``derivatives``::

    sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz
    derivatives/lesions/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from monai_fp4.atomic import parse_json
from monai_fp4.data.layouts.layout import FoundPatient, Layout, check_pairs, check_same_channels, one_per_name, stem
from monai_fp4.data.layouts.listing import Listing
from monai_fp4.data.readers.limits import check_file
from monai_fp4.errors import DataError, listed

__all__ = ["BIDS", "DECATHLON", "NNUNET"]

_DESCRIPTION = "dataset.json"
_CHANNEL = re.compile(r"(.+)_(\d{4})$")
_BIDS_PERSON = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)(?:/(ses-[A-Za-z0-9]+))?/")
_BIDS_MASKS = ("mask", "dseg", "roi")


def _description(listing: Listing) -> dict[str, Any]:
    """``dataset.json``, or nothing."""
    path = listing.root / _DESCRIPTION
    if _DESCRIPTION not in listing.files:
        return {}
    check_file(path)
    try:
        found = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"expected JSON in {path}, found what cannot be read ({error}); correct it") from error
    if not isinstance(found, dict):
        raise DataError(f"expected a JSON object in {path}, found a {type(found).__name__}; correct it")
    return found


def _channel_names(listing: Listing, description: dict[str, Any]) -> dict[int, str]:
    named = description.get("channel_names") or description.get("modality") or {}
    names = {number: str(name) for number, name in named.items()} if isinstance(named, dict) else {}
    if not all(re.fullmatch(r"\d{1,4}", number) for number in names):
        raise DataError(
            f'expected channels called by their numbers, as in "0": "T1", in {listing.root / _DESCRIPTION}, found '
            f"{listed(names)}; correct it"
        )
    return {int(number): name for number, name in names.items()}


def _find_nnunet(listing: Listing) -> list[FoundPatient]:
    masks = one_per_name(listing.below("labelsTr"), stem)
    channels: dict[str, dict[str, str]] = defaultdict(dict)
    for name, path in one_per_name(listing.below("imagesTr"), stem).items():
        match = _CHANNEL.fullmatch(name)
        if match is None:
            raise DataError(
                f"expected names that end in a channel of four digits in {listing.root / 'imagesTr'}, found {path}; "
                "rename it, or say --format msd"
            )
        channels[match[1]][match[2]] = path
    check_pairs({patient: next(iter(files.values())) for patient, files in channels.items()}, masks, listing.root)
    described = tuple({_DESCRIPTION} & {*listing.files})
    known = _channel_names(listing, _description(listing))
    patients = []
    for patient, files in channels.items():
        names = tuple(known.get(int(number), f"channel_{number}") for number in sorted(files))
        pairs = tuple((files[number], masks[patient]) for number in sorted(files))
        patients.append(FoundPatient(patient, pairs, names, person=listing.patient_of(patient), files=described))
    return check_same_channels(patients, listing.root)


def _find_decathlon(listing: Listing) -> list[FoundPatient]:
    description = _description(listing)
    training = description.get("training")
    if not isinstance(training, list) or not all(isinstance(each, dict) for each in training):
        raise DataError(
            f"expected a list 'training' of image and label in {listing.root / _DESCRIPTION}, found none; choose "
            "another --format"
        )
    names = _channel_names(listing, description)
    channels = tuple(names[number] for number in sorted(names)) or None
    patients = []
    for entry in training:
        image, mask = (str(entry.get(key, "")).removeprefix("./") for key in ("image", "label"))
        for path in (image, mask):
            if path not in listing.files:
                raise DataError(f"expected the file {path!r} of dataset.json in {listing.root}, found none; add it")
        patient = stem(image) or image
        person = listing.patient_of(patient)
        patients.append(FoundPatient(patient, ((image, mask),), channels, person=person, files=(_DESCRIPTION,)))
    return patients


def _find_bids(listing: Listing) -> list[FoundPatient]:
    images: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    masks: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in listing.files:
        match, name = _BIDS_PERSON.search(path), stem(path)
        if match is None or name is None:
            continue
        who, suffix = (match[1], match[2] or ""), name.rpartition("_")[2]
        if suffix in _BIDS_MASKS:
            masks[who].append(path)
        elif not path.startswith("derivatives/"):
            entities = [part for part in name.split("_")[:-1] if not part.startswith(("sub-", "ses-"))]
            channel = "_".join([*entities, suffix])
            if images[who].setdefault(channel, path) != path:
                raise DataError(
                    f"expected one {channel} of {'/'.join(filter(None, who))} in {listing.root}, found "
                    f"{images[who][channel]} and {path}; remove one"
                )
    patients = []
    for who in sorted(images):
        name = "_".join(filter(None, who))
        if len(masks[who]) != 1:
            raise DataError(
                f"expected one mask (..._mask, _dseg or _roi) of {name} in {listing.root}, found "
                f"{listed(masks[who])}; add it below derivatives, or keep one"
            )
        pairs = tuple((path, masks[who][0]) for _, path in sorted(images[who].items()))
        patients.append(FoundPatient(name, pairs, tuple(sorted(images[who])), person=who[0]))
    return check_same_channels(patients, listing.root)


NNUNET = Layout(summary="nnU-Net: `imagesTr/<patient>_0000` with `labelsTr/<patient>`", find=_find_nnunet)
"""The raw data sets of nnU-Net."""
DECATHLON = Layout(
    summary="Medical Segmentation Decathlon: `dataset.json` lists image and label of each patient", find=_find_decathlon
)
"""The Medical Segmentation Decathlon."""
BIDS = Layout(
    summary="BIDS: `sub-<person>/ses-<session>/anat`, masks `_mask`, `_dseg` or `_roi`, also below `derivatives`",
    find=_find_bids,
)
"""The Brain Imaging Data Structure."""
