"""Compare methods and write a report.

Without the name of a suite it is alignment. A suite's flags: python -m benchmarks.run SUITE --help

Examples:
  python -m benchmarks.run                              HEPO and its rivals; about ten minutes
  python -m benchmarks.run --preset smoke               the same in under a minute, numbers rough
  python -m benchmarks.run --methods hepo ppo --seeds 5 --workers 4 --out runs/mine
  python -m benchmarks.run --reward ecpm --reward my_rewards:diversity=0.1
  python -m benchmarks.run --out runs/mine --resume ... go on after Ctrl-C, with the same flags
  python -m benchmarks.run --out runs/mine --resume --seeds 10 --ablate kl_0   add to what is there
  python -m benchmarks.run --out runs/mine --resume --without ppo   without a row that fails
"""

import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from rich.console import Console
from tyro.extras import subcommand_cli_from_dict

from benchmarks.errors import describe_error, is_users_mistake
from benchmarks.flags import Flags
from benchmarks.provenance import command, made_with, page_name
from benchmarks.reports.blocks import print_tables
from benchmarks.reports.lookup import summarise
from benchmarks.reports.markdown import write_markdown
from benchmarks.reports.page import write_report
from benchmarks.runs.files import write_text
from benchmarks.runs.folder import (
    CHECKPOINTS,
    LOG,
    RESULTS,
    describe_machine,
    open_run_folder,
    stored_config,
)
from benchmarks.runs.results import KEY, check_results, published, write_results
from benchmarks.runs.runner import TaskFailed, run_tasks
from benchmarks.suite import SUITES, Suite, Suites, load_suite, make_settings, suite_flags

PIPED_WIDTH = 200
"""Columns of a table that goes to a file or pipe, where nothing needs to be folded."""


def read(argv: Sequence[str], suites: Suites = SUITES) -> tuple[Suite, Flags]:
    """Return the suite that a command line names, the first of all where it names none, and flags.

    Raises:
        UserError: The first word is neither a flag nor a suite.
        SystemExit: What tyro can't read; 0 after `--help`.
    """
    default = next(iter(suites))
    words = list(argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, default)
    suite = None if words[0].startswith("-") else load_suite(words[0], suites)
    commands: dict[str, Callable[..., Flags]] = {
        name: suite_flags(found) for name, found in suites.items()
    }
    flags = subcommand_cli_from_dict(
        commands, args=words, prog="python -m benchmarks.run", description=__doc__
    )
    assert suite is not None  # after --help nothing comes
    return suite, flags


def run(suite: Suite, args: Flags, suites: Suites) -> None:
    """Do what the command line says.

    Raises:
        UserError: A user's mistake.
        TaskFailed: Any other error of a task.
    """
    settings = make_settings(suite, args, suites)
    out = settings.out
    open_run_folder(out, settings.to_json(), resume=args.resume, extendable=args.EXTENDABLE)
    results = run_tasks(
        suite.make_tasks(settings),
        num_workers=args.workers,
        log=out / LOG,
        checkpoints=out / CHECKPOINTS,
        launcher=args.launcher,
    )
    results = check_results(results, f"suite {suite.name!r}").sort_values(KEY, ignore_index=True)
    write_results(out / RESULTS, results)
    write_text(out / "summary.csv", summarise(results).to_csv(index=False))
    report = suite.finish(settings, results)
    path = write_report(out, report, settings.to_json(), describe_machine())
    if args.publish is not None:
        made = made_with(stored_config(out))
        name = page_name(suite, settings)
        page = write_markdown(args.publish, name, report, command(suite, settings), made)
        write_results(args.publish / name / RESULTS, published(results))
        print(f"published: {page}", file=sys.stderr)
    is_terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout, force_terminal=is_terminal, width=None if is_terminal else PIPED_WIDTH
    )
    if report.answer:
        console.print(report.answer, highlight=False, markup=False)
    print_tables(report.tables, console)
    print(f"report: {path}", file=sys.stderr)


def main(argv: Sequence[str] | None = None, suites: Suites = SUITES) -> int:
    """Run the command line.

    Returns:
        0; 1 where something failed; 2 on a user's mistake; 130 after Ctrl-C.
    """
    debug = False
    try:
        suite, flags = read(sys.argv[1:] if argv is None else argv, suites)
        debug = flags.debug
        run(suite, flags, suites)
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            print(getattr(error, "details", "") or traceback.format_exc(), file=sys.stderr)
        message = str(error) if isinstance(error, TaskFailed) else describe_error(error)
        hint = "" if debug or is_users_mistake(error) else " (--debug shows where)"
        print(f"error: {message}{hint}", file=sys.stderr)
        return 2 if is_users_mistake(error) else 1
    return 0


if __name__ == "__main__":
    # A script's background jobs start with SIGINT ignored; `kill -INT` must stop them as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
