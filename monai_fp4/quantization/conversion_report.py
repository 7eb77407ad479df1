"""Report of what `convert` did to every layer, and why: a record to print, to log and to keep in the run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from monai_fp4.quantization.coverage import Coverage, Use

__all__ = ["Action", "ConversionReport", "LayerReport", "Use"]


class Action(StrEnum):
    """Outcome of a layer."""

    SWAPPED = "swapped"
    """Computes in FP4."""
    PADDED = "padded"
    """Computes in FP4, with its channels padded to whole blocks."""
    LEFT = "left"
    """Stays in high precision."""


@dataclass(frozen=True)
class LayerReport:
    """One module that holds parameters, or one attention block.

    Attributes:
        name: full module name, as in ``named_modules``; empty for the model itself.
        kind: class name before conversion.
        action: what became of it.
        reason: why, in words.
        in_channels: input channels or features, where the layer has such.
        out_channels: output channels or features, where the layer has such.
        parameters: number of scalar parameters that the module holds itself, without its children. Parameters shared
            by two modules are counted with the first.
        backend: which backend computes it; empty if it was left.
        use: what it did when the network ran, as far as that is known; see `ConversionReport.after`.
    """

    name: str
    kind: str
    action: Action
    reason: str
    in_channels: int | None = None
    out_channels: int | None = None
    parameters: int = 0
    backend: str = ""
    use: Use | None = None

    @property
    def quantized(self) -> bool:
        """Whether the layer computes in FP4: it was swapped, and was not seen to do otherwise."""
        return self.action is not Action.LEFT and self.use in (None, Use.FP4)


@dataclass(frozen=True)
class ConversionReport:
    """Outcome of a whole model, layer by layer.

    Attributes:
        recipe: name of the recipe.
        backend: the backend that was chosen.
        layers: every module that holds parameters, and every attention block, in module order.
        notes: what concerns no single layer.
        coverage: looks on while the network runs.
    """

    recipe: str
    backend: str
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()
    coverage: Coverage | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"coverage": None}  # a copy, or what a file holds, is a record: its network is another

    def after(self, forward: Callable[[], Any]) -> ConversionReport:
        """Run one forward pass, and report what every swapped layer did in it.

        Args:
            forward: runs the network once, as it will be used: ``lambda: network(images)``.

        Returns:
            The report with the `LayerReport.use` of every swapped layer; only those that ran in FP4 count as such.

        >>> import torch
        >>> from torch import nn
        >>> from monai_fp4.quantization import convert
        >>> model, report = convert(nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)]), "full", heads=[])
        >>> report = report.after(lambda: model[0](torch.ones(4, 32)))
        >>> [str(layer.use) for layer in report.layers], report.quantized_parameters
        (['ran in FP4', 'never ran'], 1056)
        """
        return self if self.coverage is None else self._with_uses(self.coverage.observe(forward))

    def so_far(self) -> ConversionReport:
        """Report which swapped layers have computed in FP4 since the conversion; after a step of training, say."""
        return self if self.coverage is None else self._with_uses(self.coverage.uses())

    def _with_uses(self, uses: Mapping[str, Use]) -> ConversionReport:
        return replace(self, layers=tuple(replace(layer, use=uses.get(layer.name)) for layer in self.layers))

    @property
    def parameters(self) -> int:
        """Number of scalar parameters of the model."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def quantized_parameters(self) -> int:
        """Number of scalar parameters of the layers that compute in FP4; those of attention blocks do not count."""
        return sum(layer.parameters for layer in self.layers if layer.quantized and layer.in_channels is not None)

    def count(self, action: Action) -> int:
        """Number of layers with that outcome."""
        return Counter(layer.action for layer in self.layers)[action]

    def summary(self) -> str:
        """One line: how many layers and which share of the parameters compute in FP4."""
        share = self.quantized_parameters / self.parameters if self.parameters else 0.0
        uses = Counter(layer.use for layer in self.layers if layer.use not in (None, Use.FP4))
        unused = "".join(f", {number} {use}" for use, number in uses.items())
        return (
            f"recipe {self.recipe}, backend {self.backend}: {self.count(Action.SWAPPED)} swapped,"
            f" {self.count(Action.PADDED)} padded, {self.count(Action.LEFT)} left{unused};"
            f" {self.quantized_parameters:,} of {self.parameters:,} parameters ({share:.1%}) in FP4 layers"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "recipe": self.recipe,
            "backend": self.backend,
            "summary": self.summary(),
            "notes": list(self.notes),
            "layers": [
                asdict(layer) | {"action": str(layer.action), "use": layer.use and str(layer.use)}
                for layer in self.layers
            ],
        }

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "kind", "in", "out", "parameters", "outcome", "why")]
        for layer in self.layers:
            channels = ("" if size is None else str(size) for size in (layer.in_channels, layer.out_channels))
            outcome = f"{layer.action}" + (f" ({layer.backend})" if layer.backend else "")
            outcome += f", {layer.use}" if layer.use else ""
            rows.append(
                (layer.name or "(model)", layer.kind, *channels, f"{layer.parameters:,}", outcome, layer.reason)
            )
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = ["  ".join([*map(str.ljust, row[:6], widths), row[6]]).rstrip() for row in rows]
        return "\n".join([self.summary(), *(f"note: {note}" for note in self.notes), "", *lines])
