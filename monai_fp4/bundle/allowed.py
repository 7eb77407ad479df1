"""The classes and functions that a stranger's config may name, and the object that a ``_target_`` really names.

MONAI calls whatever a config names. Here nothing is called, and nothing is imported but this package's own modules: a
name is followed through modules that are loaded already, to the object at its end. That object must be a class of one
of the kinds below, defined in one of the packages below; an alias such as ``monai.transforms.io.array.os.system`` ends
at what it is, and is refused.

Kinds, not packages, since MONAI and torch hold much that runs code or files itself: functions are refused but for a few
of this package, and so are the classes in `_EXCEPT`, which load a file, fetch one, or import what an argument names. A
test reads the source of every class that is left, for calls that do so.

>>> refusal_of("torch.nn.Conv2d") is None and refusal_of("SupervisedTrainer") is None
True
>>> refusal_of("torch.nn.modules.module.torch.load")
'torch.serialization.load is not a class that a config may name'
>>> refusal_of("subprocess.run")
'subprocess.run lies outside torch, monai and monai_fp4'
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any

__all__ = ["refusal_of"]

_MODULE, _OPTIMIZER, _SCHEDULER = "torch.nn.Module", "torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"
_KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "torch.nn": (_MODULE,),
        "torch.optim": (_OPTIMIZER, _SCHEDULER),
        "torch.utils.data": ("torch.utils.data.Dataset", "torch.utils.data.Sampler", "torch.utils.data.DataLoader"),
        "monai.networks.nets": (_MODULE,),
        "monai.networks.blocks": (_MODULE,),
        "monai.networks.layers": (_MODULE,),
        "monai.losses": (_MODULE,),
        "monai.transforms": ("monai.transforms.Transform",),
        "monai.inferers": ("monai.inferers.Inferer",),
        "monai.metrics": ("monai.metrics.Metric",),
        "monai.engines": ("ignite.engine.Engine",),
        "monai.optimizers": (_OPTIMIZER, _SCHEDULER),
        "monai_fp4.data.datasets": ("torch.utils.data.Dataset",),
        "monai_fp4.data.loader": ("torch.utils.data.DataLoader",),
        "monai_fp4.engines": ("builtins.object",),
        "monai_fp4.handlers": ("builtins.object",),
        "monai_fp4.inference": ("builtins.object",),
        "monai_fp4.data.paper_transforms": ("builtins.object",),
        "monai_fp4.losses": (_MODULE,),
        "monai_fp4.optimizers": (_OPTIMIZER,),
    }
)
"""Package -> the base classes of what it may give."""

_BY_NAME = frozenset(
    {
        "monai.data.dataloader.DataLoader", "monai.data.dataset.ArrayDataset", "monai.data.dataset.CacheDataset",
        "monai.data.dataset.Dataset", "monai.data.dataset.SmartCacheDataset", "monai.data.dataset.ZipDataset",
        "monai.data.samplers.DistributedSampler", "monai.data.thread_buffer.ThreadDataLoader",
        "monai.handlers.confusion_matrix.ConfusionMatrix", "monai.handlers.earlystop_handler.EarlyStopHandler",
        "monai.handlers.hausdorff_distance.HausdorffDistance", "monai.handlers.ignite_metric.IgniteMetricHandler",
        "monai.handlers.lr_schedule_handler.LrScheduleHandler", "monai.handlers.mean_dice.MeanDice",
        "monai.handlers.metric_logger.MetricLogger", "monai.handlers.roc_auc.ROCAUC",
        "monai.handlers.stats_handler.StatsHandler", "monai.handlers.surface_distance.SurfaceDistance",
        "monai.handlers.validation_handler.ValidationHandler",
        "monai_fp4.bundle.session.Session", "monai_fp4.bundle.session.summary_writer",
        "monai_fp4.bundle.trained.TrainedRun", "monai_fp4.data.datalist.load_datalist",
        "monai_fp4.engines.network.build_and_seed", "monai_fp4.engines.network.prepare_network",
        "monai_fp4.optimizers.paper_optimizer", "torch.amp.grad_scaler.GradScaler",
    }
)  # fmt: skip
"""Where a package holds readers and writers of files too, what is neither; and the functions."""

_EXCEPT = (
    "torch.utils.data.datapipes.",  # open files and archives, unpickle
    "monai.transforms.io.",  # read and write files; a reader may be any dotted name
    "monai.transforms.utility.array.CuCIM", "monai.transforms.utility.array.RandCuCIM",  # whatever CuCIM has
    "monai.transforms.utility.array.TorchIO", "monai.transforms.utility.array.RandTorchIO",
    "monai.transforms.utility.array.RandTorchVision", "monai.transforms.utility.array.TorchVision",
    "monai.transforms.utility.dictionary.CuCIM", "monai.transforms.utility.dictionary.RandCuCIM",
    "monai.transforms.utility.dictionary.RandTorchIO", "monai.transforms.utility.dictionary.TorchIO",
    "monai.transforms.utility.dictionary.TorchVision", "monai.transforms.utility.dictionary.RandTorchVision",
    "monai.transforms.post.", "monai.inferers.inferer.PatchInferer",  # a merger or filter may be any dotted name
    "monai.losses.perceptual.", "monai.networks.blocks.text_embedding.",  # fetch networks, or run them from a hub
    "monai.networks.blocks.fcn.", "monai.networks.nets.ahnet.",
    "monai.networks.nets.cell_sam_wrapper.", "monai.networks.nets.densenet.", "monai.networks.nets.efficientnet.",
    "monai.networks.nets.flexible_unet.", "monai.networks.nets.hovernet.", "monai.networks.nets.milmodel.",
    "monai.networks.nets.netadapter.", "monai.networks.nets.resnet.", "monai.networks.nets.senet.",
    "monai.networks.nets.torchvision_fc.", "monai.networks.nets.transchex.",
)  # fmt: skip
"""How the names of those begin that load, fetch or import by themselves."""


@cache
def _candidates() -> Mapping[str, list[Any]]:
    """MONAI's table of names without a dot: everything that loaded modules called ``monai...`` define."""
    table: dict[str, list[Any]] = {}
    for name in [name for name in sys.modules if name.startswith("monai")]:
        for key, value in vars(sys.modules[name]).items():
            if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == name:
                table.setdefault(key, []).append(value)
    return table


def refusal_of(target: str) -> str | None:
    """Why a config may not name ``target``; None where it may.

    Args:
        target: what stands behind ``_target_``: a dotted name, or one of MONAI's without its module.
    """
    import monai.bundle  # noqa: F401 - loads MONAI's modules, which are looked through
    import torch.utils.data.distributed  # noqa: F401

    if "." not in target:
        # Where several modules have the name MONAI takes the first that was loaded; here all must be in order.
        found = _candidates().get(target, [])
        if not found:
            return f"{target} is no name of MONAI's"
    else:
        parts = [part for part in target.split(".") if part]
        if parts[:1] not in (["torch"], ["monai"], ["monai_fp4"]) or not all(part.isidentifier() for part in parts):
            return f"{'.'.join(parts)} lies outside torch, monai and monai_fp4"
        try:
            found = [_follow(parts)]
        except LookupError:
            return f"{target} names nothing that is known"
    return next((why for why in map(_refusal, found) if why), None)


def _follow(parts: list[str]) -> Any:
    """The object that a dotted name leads to; nothing is imported but modules of this package."""
    found: Any = None
    for number, part in enumerate(parts, 1):
        name = ".".join(parts[:number])
        if parts[0] == "monai_fp4" and part != "__main__" and isinstance(found, ModuleType | None):
            try:
                found = importlib.import_module(name)
                continue
            except ImportError:
                found = getattr(found, part, None)
        elif name in sys.modules:
            found = sys.modules[name]
        elif isinstance(found, ModuleType):
            found = vars(found).get(part)
        else:
            found = inspect.getattr_static(found, part, None)
        if found is None:
            raise LookupError(name)
    return found


def _refusal(found: Any) -> str | None:
    name = f"{getattr(found, '__module__', '?')}.{getattr(found, '__qualname__', type(found).__name__)}"
    if isinstance(found, ModuleType):
        return f"{found.__name__} is a module"
    if name in _BY_NAME:
        return None
    if not isinstance(found, type):
        return f"{name} is not a class that a config may name"
    if any(name.startswith(beginning) for beginning in _EXCEPT):
        return f"{name} loads, fetches or imports what its arguments name"
    for package, kinds in _KINDS.items():
        if name.startswith(f"{package}.") and issubclass(found, tuple(map(_class, kinds))):
            return None
    return f"{name} is not a class that a config may name"


@cache
def _class(name: str) -> type[Any]:
    module, _, attribute = name.rpartition(".")
    kind: type[Any] = getattr(importlib.import_module(module), attribute)
    return kind
