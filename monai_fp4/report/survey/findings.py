"""What is worth a look on a manifest's report, in sentences, the worst first."""

from __future__ import annotations

from monai_fp4.errors import listed
from monai_fp4.report.survey.manifest import Survey

__all__ = ["channels_alike", "findings", "reasons"]


def findings(found: Survey) -> list[tuple[str, str]]:
    """What is worth a look, the worst first: a sentence, and the part of the page that says more."""
    said = []
    ids = [each.patient.id for each in found.measured]
    if found.unreadable:
        said.append(
            (f"{_patients(len(found.unreadable))} could not be read or are not as the manifest says", "unreadable")
        )
    divided = [pair for pair in found.copies if found.divided(pair.one, pair.other)]
    if divided:
        said.append(
            (f"{_pairs(len(divided))} of patients in different folds or splits seem to show the same", "duplicates")
        )
    if len(found.copies) > len(divided):
        said.append(
            (f"{_pairs(len(found.copies) - len(divided))} of patients in one fold seem to show the same", "duplicates")
        )
    verdict = found.placement
    if verdict.common is not None:
        said.append((f"most masks fit better {verdict.common}", "mask-shifts"))
    elif verdict.suspects:
        said.append((f"the masks of {_patients(len(verdict.suspects))} seem to lie beside the lesion", "mask-shifts"))
    said += [(doubt, "masks") for doubt in found.doubts]
    for channels, numbers in sorted(channels_alike(found).items()):
        said.append((f"channels {channels} hold the same values in {listed([ids[n] for n in numbers])}", "masks"))
    if found.unusual:
        said.append((f"{_patients(len(found.unusual))} with unusual spacing or intensities", "intensities"))
    empty = [each for each in found.measured if not each.lesions]
    if empty:
        said.append((f"{_patients(len(empty))} without a lesion", "masks"))
    return said


def reasons(found: Survey) -> dict[str, list[str]]:
    """Why patients could not be read: the same sentence without their names, and whom it is about."""
    alike: dict[str, list[str]] = {}
    for patient, reason in found.unreadable.items():
        alike.setdefault(reason.replace(f" of patient {patient!r}", ""), []).append(patient)
    return alike


def channels_alike(found: Survey) -> dict[str, list[int]]:
    """Numbers of the patients in whom channels are the same, by the channels."""
    names = found.manifest.channels
    alike: dict[str, list[int]] = {}
    for number, each in enumerate(found.measured):
        for group in each.alike:
            said = ", ".join(f"'{names[channel]}'" for channel in group[:-1])
            alike.setdefault(f"{said} and '{names[group[-1]]}'", []).append(number)
    return alike


def _patients(count: int) -> str:
    return f"{count} patient" + ("" if count == 1 else "s")


def _pairs(count: int) -> str:
    return f"{count} pair" + ("" if count == 1 else "s")
