"""What may be wrong with a data folder and cannot be refused, since somebody may mean it: one sentence each.

A second reader's mask among the channels, slices of one person under many names, a threshold that no mask reaches.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from monai_fp4.data.layouts import FoundPatient
from monai_fp4.data.readers import READERS, reader_of
from monai_fp4.data.records import Reading
from monai_fp4.errors import listed

if TYPE_CHECKING:
    from monai_fp4.data.examination import Examined

__all__ = ["doubts_of"]

_FEW_SESSIONS = 12
"""Names of one person's visits or slices that begin alike are rarely more; kinds of lesion are."""


def doubts_of(
    format: str,
    channels: Sequence[str],
    found: Sequence[FoundPatient],
    examined: Sequence[Examined],
    reading: Reading,
    named: bool = False,
) -> Iterator[str]:
    """Say what is doubtful; ``named``: the user's own table or pattern says who is who."""
    seen = {entry.id: each for entry, each in zip(found, examined, strict=True)}
    yield from _of_channels(channels, seen)
    yield from _of_masks(seen, reading)
    if not named:
        yield from _of_people(format, found, examined)
    groups = Counter(entry.group for entry in found if entry.group)
    if len(groups) > 2 and median(groups.values()) <= 2 and not any(entry.person for entry in found):
        yield (
            f"the {len(groups)} groups have {median(groups.values()):g} patients each, and groups are spread over "
            f"the folds: if they are persons, name the table's column person, which is kept together"
        )


def _of_channels(channels: Sequence[str], seen: Mapping[str, Examined]) -> Iterator[str]:
    for number, name in enumerate(channels):
        copies = [patient for patient, each in seen.items() if number in each.copies]
        values = {patient: each.few_valued.get(number, 0) for patient, each in seen.items()}
        if copies:
            yield (
                f"channel {name!r} equals the mask in {listed(copies)}, or nearly: a network that sees it learns "
                "nothing else; move the files out of the folder unless it is meant"
            )
        elif min(values.values()) > 1:
            most = max(values.values())
            yield (
                f"channel {name!r} holds {'two' if most == 2 else f'up to {most}'} values in every patient, as a mask "
                "does; move the files out of the folder unless they are meant as an input"
            )
        constant = [patient for patient, count in values.items() if count == 1]
        if constant:
            yield f"channel {name!r} holds one value alone in {listed(constant)}, so that there is nothing to see"


def _of_masks(seen: Mapping[str, Examined], reading: Reading) -> Iterator[str]:
    examined = seen.values()
    if not any(each.tumour_voxels for each in examined):
        yield "no mask holds a voxel of lesion, and no metric can be computed; see that these are the right masks"
    below = {patient: max(each.below_threshold) for patient, each in seen.items() if each.below_threshold}
    if below:
        yield (
            f"the masks of {listed(below)} hold values up to {max(below.values()):g}, all below --mask_threshold "
            f"{reading.mask_threshold:g}, and count as empty; lower it if that is not meant"
        )
    known = {value for each in examined for value in each.values}
    for option, labels in (("--labels", reading.labels), ("--ignore_label", reading.ignore_label)):
        absent = [str(label) for label in labels if label not in known] if reading.mask_threshold is None else []
        if absent:
            yield f"no mask holds {', '.join(absent)} of {option}; correct it unless other data will have it"
    shares = [each.share for each in examined if each.tumour_voxels]
    if shares and min(shares) > 0.5:
        yield (
            "the lesion fills more than half of every scan that has one, as a mask of the body, the brain or the field "
            "of view does; see that these are the masks of the lesion"
        )
    inverted = [patient for patient, each in seen.items() if each.inverted]
    if inverted and (len(inverted) < len(examined) or not reading.labels):
        yield (
            f"lesion fills most voxels and all corners in {listed(inverted)}, as if lesion and background were "
            "exchanged there; correct these masks unless it is so"
        )


def _of_people(format: str, found: Sequence[FoundPatient], examined: Sequence[Examined]) -> Iterator[str]:
    if any(entry.person for entry in found):
        return
    pictures = all(reader_of(entry.pairs[0][0]) is READERS["pictures"] for entry in found)
    one_slice = pictures and all(
        len({mask for _, mask in entry.pairs}) == each.slices == 1 for entry, each in zip(found, examined, strict=True)
    )
    stems = Counter(re.sub(r"\d+$", "", entry.id) for entry in found)
    alike, count = stems.most_common(1)[0]
    if one_slice and count > 1:
        yield (
            f"every patient has one picture, and {count} names {f'begin with {alike!r}' if alike else 'are numbers'}: "
            "if these are slices of one person, they must be in one fold; say who is who with --patient_pattern"
        )
        return
    sessions = Counter(re.sub(r"[ _.-]+[A-Za-z]*\d*$", "", entry.id) for entry in found)
    places = tuple({entry.group for entry in found if entry.group})  # institutions are no persons
    several = [
        stem for stem, count in sessions.items()
        if count > 1 and stem and not stem.endswith(places)
        and not any(other.startswith(stem) and other != stem for other in sessions)  # "sub", which all begin with
    ]  # fmt: skip
    if several and len(sessions) > 1 and max(sessions[stem] for stem in several) <= _FEW_SESSIONS:
        yield (
            f"names of several patients begin with {several[0]!r}{_others(several)}: if these are visits of one "
            "person, they must be in one fold; say who is who with --patient_pattern, or the column person of --groups"
        )
    sparse = [entry.id for entry in found if format == "png" and _far_apart([image for image, _ in entry.pairs])]
    if sparse:
        yield (
            f"the pictures of {listed(sparse)} have numbers far apart, as slices of one scan have not: if each picture "
            "is a patient of its own, say so with --patient_pattern, such as '([^/]+)[.]', or name each in --groups"
        )


def _others(names: Sequence[str]) -> str:
    return f", and so with {len(names) - 1} other names" if len(names) > 1 else ""


def _far_apart(images: Sequence[str]) -> bool:
    """Whether the numbers that pictures' names end in leave out more than three of four.

    >>> _far_apart(["a/p_1.png", "a/p_2.png", "a/p_4.png"]), _far_apart(["a/p_461.png", "a/p_743.png"])
    (False, True)
    """
    numbers = [int(found[1]) for image in images if (found := re.search(r"(\d+)\.\w+$", image))]
    return len(numbers) > 1 and max(numbers) - min(numbers) >= 4 * len(numbers)
