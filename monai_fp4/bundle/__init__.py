"""A run of a bundle: its options, its session, its folder, and the files of ``bundles/``.

================  ================================================================================
`options`         what stands at the top of every bundle: one table, validated once
`running_config`  the whole config that a component is part of
`run_folder`      the files of a run, among them `tensor_files` and `event_files`
`checkpoint`      whether a loaded checkpoint is one of this run, and its tensors fit into its `state`
`earlier`         configs of earlier versions, in today's names
`command_line`    what a command that runs a bundle does about its words, its errors and its signals
`session`         one process of one run: checks everything before a minute of training is spent
`trained_network` the network of a finished run, of a folder that is data
`trained`         a finished run, taken up again for other patients
`foreign`         whether a stranger's bundle may be run: `allowed` names, `expressions` and `logging_file`
`checked_run`     ``monai-fp4 run``: checked, then run
`template`        one training bundle, stamped out of ``templates/train.json``
`files`           everything in ``bundles/``
================  ================================================================================
"""

import lazy_loader

# Names are listed once, in the stub beside this file, and loaded when first asked for (PEP 562): torch and MONAI take
# seconds, which commands that compute nothing do not need.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
