"""``monai-fp4 run``: MONAI's ``run`` of a bundle that has been checked first, and a command line for it.

What runs is the very config that was checked, with the overrides of the command line merged into it, and the folder of
the bundle is not put on Python's path. With ``--trust`` MONAI runs the bundle as it does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fire  # type: ignore[import-untyped]
from monai.bundle import ConfigWorkflow, scripts
from monai.utils import ensure_tuple

from monai_fp4.bundle.command_line import check_options, error_in_chain, install_error_hook, listen_to_sigterm
from monai_fp4.bundle.foreign import check_config, read_config_file
from monai_fp4.bundle.logging_file import logging_problems
from monai_fp4.errors import ConfigError

__all__ = ["run", "run_command"]

TRUST = "--trust"


def run_command(words: Sequence[str]) -> None:
    """Run a bundle from the words of a command line: those of ``python -m monai.bundle run``, and ``--trust``."""
    install_error_hook()
    trusted = TRUST in words
    given = [word for word in words if word != TRUST]
    put_back = listen_to_sigterm()
    try:
        fire.Fire(scripts.run if trusted else run, command=given or ["--help"], name="monai-fp4 run")
    finally:
        put_back()


def run(
    run_id: str | None = None,
    init_id: str | None = None,
    final_id: str | None = None,
    meta_file: str | Sequence[str] | None = None,
    config_file: str | Sequence[str] | None = None,
    logging_file: str | None = None,
    tracking: str | dict[str, Any] | None = None,
    args_file: str | None = None,
    **override: Any,
) -> None:
    """Check a bundle and run it; arguments as `monai.bundle.run`.

    Raises:
        ConfigError: when something in it could run other code, or is no bundle.
    """
    given = {
        "run_id": run_id, "init_id": init_id, "final_id": final_id, "meta_file": meta_file, "config_file": config_file,
        "logging_file": logging_file, "tracking": tracking,
    }  # fmt: skip
    arguments = scripts.update_kwargs(read_config_file(Path(args_file)) if args_file else None, **given, **override)
    if not arguments.get("config_file") or arguments.get("tracking"):
        raise ConfigError(
            "'monai-fp4 run' needs a --config_file, and writes no --tracking, which may send what it tracks anywhere; "
            "give the bundle's config, or --trust to run it as MONAI does"
        )
    files = arguments.pop("config_file")
    if isinstance(files, str) and not Path(files).is_file():
        files = files.split(",")
    files = [str(file) for file in ensure_tuple(files)]
    configs = Path(files[0]).parent
    beside = configs / "metadata.json"
    arguments.setdefault("meta_file", str(beside) if beside.is_file() else None)
    for file in ensure_tuple(arguments["meta_file"] or ()):
        read_config_file(Path(file))
    known = {name: value for file in files for name, value in read_config_file(Path(file)).items()}
    overridden = {name: value for name, value in arguments.items() if name not in given}
    check_options(overridden, known)

    stated = arguments.pop("logging_file", None)
    logging = Path(str(stated)) if stated else configs / "logging.conf"
    if stated and not logging.is_file():
        raise ConfigError(f"expected a logging_file at {logging}, found none; correct the path, or leave it out")
    if logging.is_file():
        _refuse([f"{logging}: {problem}" for problem in logging_problems(logging)])
    with _one_sentence(files[0]):  # a logging file or metadata that lack what they should have
        workflow = ConfigWorkflow(
            config_file=files, logging_file=str(logging) if logging.is_file() else False, **arguments
        )
    folder = configs.parent if configs.name == "configs" else configs
    for _ in range(2):  # before MONAI takes other files in, and after
        config = dict(workflow.parser.config)
        if "trust_run_dir" in override:
            config["trust_run_dir"] = False  # said by whoever runs it, not in a file of the bundle
        _refuse(check_config(config, folder))
        with _one_sentence(files[0]):  # a macro that names nothing
            workflow.parser.resolve_macro_and_relative_ids()
    workflow.config_root_path = Path(os.devnull)  # which MONAI puts on Python's path when it runs
    with _one_sentence(files[0]):
        workflow.initialize()
        workflow.run()
        workflow.finalize()


@contextmanager
def _one_sentence(file: str) -> Iterator[None]:
    """Make one sentence of whatever ends a bundle."""
    try:
        yield
    except Exception as error:
        if own := error_in_chain(error):
            raise own from (None if own is error else error)
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ConfigError(
            f"{file} must run, but ended with {type(cause).__name__}: {str(cause).strip():.300}; correct it"
            " (MONAI_FP4_DEBUG=1 shows where)"
        ) from error


def _refuse(findings: Sequence[Any]) -> None:
    if findings:
        print(*map(str, findings), sep="\n", file=sys.stderr)
        raise ConfigError(
            f"a bundle must be harmless to be run, but {len(findings)} places in it could run other code, listed above;"
            " read them, and add --trust to run it all the same"
        )
