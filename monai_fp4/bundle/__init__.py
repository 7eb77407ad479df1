"""A run of a bundle: its options, its session, its folder, and the files of ``bundles/``.

================  ================================================================================
`options`         what stands at the top of every bundle: one table, validated once
`running_config`  the whole config that a component is part of
`run_folder`      the files of a run
`session`         one process of one run: checks everything before a minute of training is spent
`trained`         a finished run, taken up again
`files`           everything in ``bundles/``
================  ================================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from monai_fp4.bundle.files import bundle_files, check_bundles, write_bundles
    from monai_fp4.bundle.options import OPTIONS, RunOptions, defaults
    from monai_fp4.bundle.run_folder import RunFolder
    from monai_fp4.bundle.session import Session, summary_writer
    from monai_fp4.bundle.trained import TrainedRun

__all__ = [
    "OPTIONS",
    "RunFolder",
    "RunOptions",
    "Session",
    "TrainedRun",
    "bundle_files",
    "check_bundles",
    "defaults",
    "summary_writer",
    "write_bundles",
]

# Loaded when first asked for: a session needs torch and MONAI, which writing bundles or planning a sweep do not.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "files": ["bundle_files", "check_bundles", "write_bundles"],
        "options": ["OPTIONS", "RunOptions", "defaults"],
        "run_folder": ["RunFolder"],
        "session": ["Session", "summary_writer"],
        "trained": ["TrainedRun"],
    },
)
