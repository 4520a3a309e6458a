"""Compare methods and write a report.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from benchmarks.arguments import (
    check_embeddings,
    check_methods,
    check_names,
    check_protocol,
    check_rewards,
    check_world,
    default_rows,
    leave_out,
    load_plugins,
    with_trials,
)
from benchmarks.errors import UserError, describe_error, is_users_mistake
from benchmarks.provenance import command, made_with, page_name
from benchmarks.reports.blocks import print_tables
from benchmarks.reports.markdown import write_markdown
from benchmarks.reports.page import write_report
from benchmarks.reports.summary import summarise
from benchmarks.runs.files import write_text
from benchmarks.runs.folder import (
    CHECKPOINTS,
    LOG,
    RESULTS,
    describe_machine,
    open_run_folder,
    stored_config,
    stored_settings,
)
from benchmarks.runs.launchers import LAUNCHERS
from benchmarks.runs.results import KEY, check_results, write_results
from benchmarks.runs.runner import TaskFailed, run_tasks
from benchmarks.suite import (
    EXTENDABLE,
    SUITES,
    Settings,
    Suite,
    load_suite,
    suite_summary,
)

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "trackio")
PIPED_WIDTH = 200
"""Columns of a table that goes to a file or pipe, where nothing needs to be folded."""


def _flag(metavar: str, default: str = "as the preset says") -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def _suites_help() -> str:
    lines = [f"{name}: {suite_summary(suite)}" for name, suite in SUITES.items()]
    return "What to compare.\n" + "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class RunArgs:
    """The command line. None means: as the preset says."""

    suite: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="SUITE", help=_suites_help(), help_behavior_hint="(default: alignment)"
        ),
    ] = "alignment"
    preset: Literal["smoke", "quick", "paper"] = "quick"
    """How much work: within a minute, within ten minutes, or full size, on 2 cores; `architecture`
    and `scaling` train a row five or six times at `quick`: about half an hour, and over an hour."""
    seeds: Annotated[int | None, _flag("N", "smoke 2, quick 3, paper 10")] = None
    """How many seeds. Each draws warm start and luck anew, and a synthetic world too."""
    first_seed: Annotated[int, _flag("N", "0")] = 0
    """The seeds are first-seed, first-seed + 1, ..."""
    methods: Annotated[tuple[str, ...] | None, _flag("NAME ...", "all")] = None
    """Methods to train, e.g. `--methods hepo ppo dpo grpo`. An unknown name lists them. One of your
    own is `package.module:name`, from a module that registers it."""
    without: Annotated[tuple[str, ...], _flag("NAME ...", "none")] = ()
    """Methods, markets or ablations to leave out: of all there are, or of a run that is resumed."""
    world: Annotated[str | None, _flag("NAME|DIR")] = None
    """tiny, small, standard, weak, journey, or a directory made by `python -m simulators.make` or,
    of a public log, by `python -m simulators.import_log`."""
    markets: Annotated[tuple[str, ...] | None, _flag("NAME ...")] = None
    """Markets to compare on beside the base one. An unknown name lists them."""
    ablate: Annotated[tuple[str, ...] | None, _flag("NAME ...")] = None
    """Ablations: rows with one change each. An unknown name lists them."""
    tune: Annotated[int | None, _flag("N")] = None
    """Settings tried per method on seeds of their own, before the comparison; 0: defaults."""
    reward: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="SPEC", help_behavior_hint="(default: final_value, GPR Eq. 5)"),
    ] = ()
    """A registered reward or `package.module:function`, weighted by `=0.5`. Repeat the flag for a
    weighted sum; weight 0 only logs."""
    embeddings: Annotated[Path | None, _flag("FILE", "none")] = None
    """Suite tokenizers: a matrix of your own (.npy, .safetensors, .parquet) beside the others."""
    protocol: Annotated[str | None, _flag("NAME", "time")] = None
    """Suite architecture: `time` trains on the logged days and tests on later ones;
    `leave-one-out` tests each user's last click or conversion and validates on the one before, with
    a history of up to 50 ads, `leave-one-out-20` of up to 20, as published comparisons do."""
    out: Annotated[Path | None, _flag("DIR", "runs/SUITE-PRESET")] = None
    """Folder of tables, figures, checkpoints and report."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in the folder, perhaps with more methods, seeds, markets or ablations.
    What is finished is not run again."""
    workers: Annotated[int, _flag("N", "2")] = 2
    """Processes, one thread each. The numbers don't depend on it."""
    launcher: Literal["local", "ray"] = "local"
    """Processes of this machine, or a Ray cluster (RAY_ADDRESS) that shares the folder."""
    logger: Annotated[str | None, _flag("csv|tensorboard|wandb|mlflow|trackio", "none")] = None
    """Training measures also go to this logger of TorchRL."""
    publish: Annotated[Path | None, _flag("DIR", "none")] = None
    """Also write the report as Markdown there, its figures and every seed's values beside it."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show tracebacks."""


def make_settings(args: RunArgs, suites: Mapping[str, str | Suite]) -> tuple[Suite, Settings]:
    """Return the suite and the checked settings; nothing is written.

    Raises:
        UserError: The first mistake on the command line.
    """
    suite = load_suite(args.suite, suites)
    if args.preset not in suite.presets:
        raise UserError(
            f"suite {suite.name!r} has no preset {args.preset!r}: choose one of "
            f"{', '.join(suite.presets)}"
        )
    preset = suite.presets[args.preset]
    out = (args.out or Path("runs") / f"{suite.name}-{args.preset}").absolute()
    before = stored_settings(out) if args.resume and suite.is_extendable else None
    num_seeds = preset.num_seeds if args.seeds is None else args.seeds
    for flag, value, least in (
        ("--seeds", num_seeds, 1),
        ("--workers", args.workers, 1),
        ("--first-seed", args.first_seed, 0),
    ):
        if value < least:
            raise UserError(f"{flag} must be at least {least}, got {value}")
    if args.logger is not None and args.logger not in LOGGERS:
        raise UserError(f"--logger must be one of {', '.join(LOGGERS)}, got {args.logger!r}")
    if args.logger is not None and not suite.takes_logger:
        raise UserError(f"suite {suite.name!r} has no --logger")
    names, plugins, own = load_plugins(args.methods, suite)
    world = check_world(preset.world if args.world is None else args.world)
    settings = Settings(
        suite=suite.name,
        preset=args.preset,
        methods=check_methods(names, suite, suites, default_rows(preset, before, "methods"), own),
        plugins=plugins,
        markets=check_names(
            "--markets",
            args.markets,
            suite.markets,
            suite,
            world,
            default_rows(preset, before, "markets"),
        ),
        ablations=check_names(
            "--ablate",
            args.ablate,
            suite.ablations,
            suite,
            world,
            default_rows(preset, before, "ablations"),
        ),
        seeds=()
        if before is not None and args.seeds is None  # those of the run
        else tuple(range(args.first_seed, args.first_seed + num_seeds)),
        world=world,
        reward=check_rewards(args.reward, suite),
        embeddings=check_embeddings(args.embeddings, suite),
        protocol=check_protocol(args.protocol, suite),
        sizes=with_trials(preset, args.tune, suite),
        out=out,
        resume=args.resume,
        logger=args.logger,
    )
    if before is not None:
        settings = settings.extended(before)
    settings = leave_out(settings, args.without, suite)
    both = set(settings.seeds) & set(getattr(settings.sizes, "tuning_seeds", ()))
    if both:
        seeds = f"seeds are {min(settings.seeds)} to {max(settings.seeds)}"
        raise UserError(
            f"seed {min(both)} is one that settings are chosen on and can't be tested as well: "
            f"{seeds}; choose another --first-seed"
        )
    LAUNCHERS[args.launcher].check()
    return suite, settings


def run(args: RunArgs, suites: Mapping[str, str | Suite]) -> None:
    """Do what the command line says.

    Raises:
        UserError: A user's mistake.
        TaskFailed: Any other error of a task.
    """
    suite, settings = make_settings(args, suites)
    out = settings.out
    extendable = EXTENDABLE if suite.is_extendable else ()
    open_run_folder(out, settings.to_json(), resume=args.resume, extendable=extendable)
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
        measured = results[results["split"].isin(("test", "validation"))]
        write_results(args.publish / name / RESULTS, measured)
        print(f"published: {page}", file=sys.stderr)
    is_terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout, force_terminal=is_terminal, width=None if is_terminal else PIPED_WIDTH
    )
    print_tables(report.tables, console)
    print(f"report: {path}", file=sys.stderr)


def main(argv: Sequence[str] | None = None, suites: Mapping[str, str | Suite] = SUITES) -> int:
    """Run the command line.

    Returns:
        0; 1 where something failed; 2 on a user's mistake; 130 after Ctrl-C.
    """
    args = tyro.cli(RunArgs, args=argv, prog="python -m benchmarks.run", description=__doc__)
    try:
        run(args, suites)
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            print(getattr(error, "details", "") or traceback.format_exc(), file=sys.stderr)
        message = str(error) if isinstance(error, TaskFailed) else describe_error(error)
        hint = "" if args.debug or is_users_mistake(error) else " (--debug shows where)"
        print(f"error: {message}{hint}", file=sys.stderr)
        return 2 if is_users_mistake(error) else 1
    return 0


if __name__ == "__main__":
    # A script's background jobs start with SIGINT ignored; `kill -INT` must stop them as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
