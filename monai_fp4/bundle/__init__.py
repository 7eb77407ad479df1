"""A run of a bundle: its options, its session, its folder, and the files of ``bundles/``.

================  ================================================================================
`options`         what stands at the top of every bundle: one table, validated once
`running_config`  the whole config that a component is part of
`run_folder`      the files of a run
`earlier`         configs of earlier versions, in today's names
`session`         one process of one run: checks everything before a minute of training is spent
`trained`         a finished run, taken up again
`template`        one training bundle, stamped out of ``templates/train.json``
`files`           everything in ``bundles/``
================  ================================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from monai_fp4.bundle.earlier import brought_up_to_date
    from monai_fp4.bundle.files import bundle_files, check_bundles, write_bundles
    from monai_fp4.bundle.options import OPTIONS, RunOptions, defaults, differences
    from monai_fp4.bundle.run_folder import RunFolder
    from monai_fp4.bundle.session import (
        Session,
        check_command_line,
        error_in_chain,
        install_error_hook,
        pick_device,
        summary_writer,
    )
    from monai_fp4.bundle.template import augmentation, bundle_name, training_config
    from monai_fp4.bundle.trained import TrainedRun, network_of_run

__all__ = [
    "OPTIONS",
    "RunFolder",
    "RunOptions",
    "Session",
    "TrainedRun",
    "augmentation",
    "bundle_files",
    "bundle_name",
    "brought_up_to_date",
    "check_bundles",
    "check_command_line",
    "defaults",
    "differences",
    "error_in_chain",
    "install_error_hook",
    "network_of_run",
    "pick_device",
    "summary_writer",
    "training_config",
    "write_bundles",
]

# Loaded when first asked for: a session needs torch and MONAI, which writing bundles or planning a sweep do not.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "earlier": ["brought_up_to_date"],
        "files": ["bundle_files", "check_bundles", "write_bundles"],
        "options": ["OPTIONS", "RunOptions", "defaults", "differences"],
        "run_folder": ["RunFolder"],
        "session": [
            "Session",
            "check_command_line",
            "error_in_chain",
            "install_error_hook",
            "pick_device",
            "summary_writer",
        ],
        "template": ["augmentation", "bundle_name", "training_config"],
        "trained": ["TrainedRun", "network_of_run"],
    },
)
