"""Backends, the implementations of FP4 layers: one interface, one table, one function that chooses.

* ``emulated`` computes them with ordinary PyTorch, on any device, with Transformer Engine's numbers;
* ``transformer_engine`` hands linear layers, and convolutions that are matrix products, to ``te.Linear`` on a GPU with
  FP4 tensor cores, and is not yet run on one;
* ``transformer_engine_im2col`` makes matrix products of all other convolutions too, and is never chosen by ``"auto"``.

``"auto"`` takes the first backend of :data:`BACKENDS` that works here, and the last one works everywhere:

>>> select_backend("auto", torch.device("cpu")).name
'emulated'
>>> print(BACKENDS["transformer_engine"].check(torch.device("cpu")).reasons[0])
Transformer Engine computes on CUDA only, and the model is on cpu: move the model to the GPU before convert
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.quantization.backends.base import Availability, Backend
from monai_fp4.quantization.backends.emulated import EmulatedBackend
from monai_fp4.quantization.backends.transformer_engine import TransformerEngineBackend, TransformerEngineIm2colBackend

__all__ = ["AUTO", "BACKENDS", "Availability", "Backend", "EmulatedBackend", "select_backend"]

AUTO = "auto"
"""The name that lets `select_backend` choose."""

BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        backend.name: backend
        for backend in (TransformerEngineBackend(), TransformerEngineIm2colBackend(), EmulatedBackend())
    }
)
"""Every backend by name, in the order in which ``"auto"`` tries them (the second works only where the first does)."""


def select_backend(name: str, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Backend:
    """Find the backend to convert with.

    Args:
        name: a name of :data:`BACKENDS`, or ``"auto"`` for the first one that works.
        device: where the model is.
        dtype: what the layers will compute in: the autocast dtype, or the parameters'.

    Returns:
        The backend.

    Raises:
        ConfigError: the name is unknown, or the backend named does not work here (the sentence says why).
    """
    if name == AUTO:
        return next(backend for backend in BACKENDS.values() if backend.check(device, dtype).available)
    if not isinstance(name, str) or name not in BACKENDS:
        raise unknown_name("backend", name, [AUTO, *BACKENDS])
    backend = BACKENDS[name]
    availability = backend.check(device, dtype)
    if not availability.available:
        raise ConfigError(
            f"backend {name!r} was asked for but does not work here: {'; '.join(availability.reasons)};"
            f" or choose backend {AUTO!r}"
        )
    return backend
