"""``monai-fp4``: everything that is not a training run, which is ``python -m monai.bundle run``'s work.

Each command is one function; errors that the user can cause end in one sentence on stderr and exit code 1. What takes
long is announced: rooms log what they begin at level INFO, and a line of it goes to standard output, in a log too.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from monai_fp4.errors import MonaiFP4Error, printable

__all__ = ["build_parser", "main"]

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Every command and its arguments."""
    from monai_fp4 import __version__
    from monai_fp4.data.cli import add_parser as add_manifest_parser
    from monai_fp4.report.cli import add_manifest_report
    from monai_fp4.report.cli import add_parser as add_report_parser
    from monai_fp4.study.cli import add_parser as add_sweep_parser

    parser = argparse.ArgumentParser(
        prog="monai-fp4",
        description="Manifests, bundles, studies and this machine. One training is 'python -m monai.bundle run'.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_manifest_report(add_manifest_parser(commands))
    _add_bundles(commands)
    _add_foreign(commands)
    add_sweep_parser(commands)
    add_report_parser(commands)
    doctor = commands.add_parser("doctor", help="what this machine is, which backend would run, and why not the others")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of a table")
    doctor.set_defaults(func=_doctor)
    return parser


def _add_bundles(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bundles = commands.add_parser("bundles", help="write the bundle files, or check that none has drifted")
    actions = bundles.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (("write", "write every bundle from the template"), ("check", "fail if a file differs from it")):
        action = actions.add_parser(name, help=text)
        action.add_argument("--output_dir", default="bundles", help="folder of the bundles (default: %(default)s)")
        action.set_defaults(func=_write_bundles if name == "write" else _check_bundles)


def _add_foreign(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser("check", help="list what in a bundle could run code, without running any of it")
    check.add_argument("bundle", metavar="BUNDLE", help="a config file, or the folder of a bundle")
    check.set_defaults(func=_check_foreign)
    run = commands.add_parser(
        "run",
        help="check a bundle, then run it: arguments of 'monai.bundle run', and --trust",
        usage="monai-fp4 run --config_file BUNDLE [--trust] [--OPTION VALUE ...]",
        epilog="Options are the names at the top of the bundle, such as --epochs 3, and those of 'monai.bundle run'.",
    )
    run.add_argument("--trust", action="store_true", help="run it unchecked, as MONAI does: it may hold any code")
    run.set_defaults(func=_run_checked)


def _check_foreign(args: argparse.Namespace) -> int:
    logger.info("looking up all that %s names ...", args.bundle)
    from monai_fp4.bundle.foreign import check_bundle

    findings = check_bundle(args.bundle)
    print(*map(str, findings), sep="\n") if findings else print(f"{args.bundle}: nothing in it runs other code")
    return 1 if findings else 0


def _run_checked(args: argparse.Namespace) -> int:
    from monai_fp4.bundle.checked_run import run_command

    run_command(args.words)
    return 0


def _write_bundles(args: argparse.Namespace) -> int:
    from monai_fp4.bundle.files import bundle_files, write_bundles

    changed = write_bundles(args.output_dir)
    print(f"{len(bundle_files())} files in {args.output_dir}, {changed} of them changed")
    return 0


def _check_bundles(args: argparse.Namespace) -> int:
    from monai_fp4.bundle.files import bundle_files, check_bundles

    check_bundles(args.output_dir)
    print(f"{args.output_dir}: all {len(bundle_files())} files are as the template writes them")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    if not args.json:
        logger.info("looking at this machine, and trying backends and kernels ...")
    from monai_fp4.doctor import diagnose, render

    diagnosis = diagnose()
    if args.json:
        print(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        render(diagnosis)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: the command line without the program's name; None takes ``sys.argv``.
    """
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        # What follows 'run' are the arguments of MONAI's command and ids of the bundle, which argparse cannot know.
        unknown = words[:1] == ["run"] and not {"-h", "--help"} & set(words)
        args = build_parser().parse_args(words[:1] if unknown else words)
        args.words = words[1:]
        with nullcontext() if unknown else _announced():  # a bundle that runs configures logging itself
            code = args.func(args)
        sys.stdout.flush()  # here, where a reader that has gone is not an error
        return int(code or 0)
    except MonaiFP4Error as error:
        if os.environ.get("MONAI_FP4_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _reader_has_gone():
            raise  # another pipe than that of the output
        # `... | head` has read enough. Python flushes once more when it ends, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Announcements(logging.Handler):
    """Prints what is logged, warnings to standard error; unlike a `StreamHandler` it lets a broken pipe end all."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno <= logging.INFO else sys.stderr
        print(printable(record.getMessage()), file=stream, flush=True)


@contextmanager
def _announced() -> Iterator[None]:
    """Print what the package's rooms say that they begin."""
    rooms, printer = logging.getLogger("monai_fp4"), _Announcements()
    level = rooms.level
    rooms.setLevel(logging.INFO)
    rooms.addHandler(printer)
    try:
        yield
    finally:
        rooms.removeHandler(printer)
        rooms.setLevel(level)


def _reader_has_gone() -> bool:
    """Whether nobody reads what is printed any more."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
