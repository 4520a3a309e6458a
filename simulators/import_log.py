"""Make a world from a public log: `python -m simulators.import_log SOURCE --format F --out WORLD`.

Every format goes the same way. Its reader (`imported.formats`) yields rows, which are checked
(`imported.readers.checks`), turned into requests (`imported.requests`) and written as a world.
What the log does not say is simulated and named in `world.json`: reports show it. Everything that
is fitted (choice of items, embeddings, bids, rankers, calibration) knows the log days only, with
the outcomes of their exposures within the attribution window. One thing looks ahead: an ad's last
day is the last one on which it occurs, as in a campaign calendar.

Dims: N ads, M organic items.
"""

import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import tyro

import simulators.imported.formats  # noqa: F401  (registers the formats)
from gpr_rl.schema import Action
from simulators.building import Draft, build_world
from simulators.imported.ads import make_ads
from simulators.imported.config import ImportConfig
from simulators.imported.days import split_days
from simulators.imported.items import embed_items, group_columns
from simulators.imported.labels import make_users
from simulators.imported.readers.errors import LogFormatError
from simulators.imported.readers.log import LogSource, open_log
from simulators.imported.requests import Requests, make_requests
from simulators.imported.rows import Log, read_log
from simulators.progress import Progress, WorldArgs, run_command, to_stderr
from simulators.rankers.network import RankerConfig
from simulators.rankers.training import RankerTraining
from simulators.world import World
from simulators.world.info import WorldInfo

NUM_HOURS = 24


def import_log(
    source: LogSource,
    config: ImportConfig,
    directory: str | Path,
    progress: Progress,
    *,
    seed: int = 0,
    name: str | None = None,
) -> World:
    """Make a world in `directory`, which must not exist yet.

    Bad and duplicate rows are listed in its `rejected.parquet`, or in `DIRECTORY-rejected.parquet`
    if the log is refused for too many bad ones. `progress` is called with one line per stage. The
    world's name is its directory's by default.

    Raises:
        ValueError: A log that can't become a world; the message says why.
    """
    directory = Path(directory)
    if directory.exists():
        raise ValueError(f"{directory} exists already; a world is never overwritten")
    directory.parent.mkdir(parents=True, exist_ok=True)
    rejected = directory.with_name(f"{directory.name}-rejected.parquet")
    try:
        draft = _make_draft(source, config, seed, rejected, name or directory.name, progress)
        return build_world(directory, draft, progress)
    except LogFormatError:
        raise
    except BaseException:
        rejected.unlink(missing_ok=True)
        raise


def _make_draft(
    source: LogSource,
    config: ImportConfig,
    seed: int,
    rejected: Path,
    name: str,
    progress: Progress,
) -> Draft:
    rng = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2)]
    progress(f"reading {source.title}")
    items = source.items()
    log = read_log(
        source, pd.Index(items.frame["item_id"]), rejected, config, seed=seed, progress=progress
    )
    counts = log.counts
    progress(
        f"{counts.num_rows:,} rows read: {counts.num_bad:,} bad and {counts.num_duplicates:,} "
        f"duplicate ones left out; {len(log.rows):,} kept, of {len(log.source_user):,} of "
        f"{log.num_users:,} users"
    )
    days = split_days(np.bincount(log.day, minlength=log.num_days), config)
    progress(f"requests of {len(log.source_user):,} users over {days.num_days:,} days")
    requests = make_requests(source, items.frame, log, days, config, seed, rng[0])
    ads, simulated = make_ads(items.frame, log, days, requests, config, rng[1])
    chosen = requests.chosen
    progress(f"embeddings of {len(chosen.ad):,} ads and {len(chosen.organic):,} organic items")
    embedding = embed_items(items, chosen, log.rows[log.day < days.num_log_days], config)
    groups = group_columns(items.frame.iloc[chosen.both], config)
    users, user_sizes = make_users(source.users(), log, days, config.num_labels)
    context = (requests.num_scenes, 1, NUM_HOURS, user_sizes.get("device", 1))
    ranker_config = RankerConfig(
        user_cardinalities=tuple(user_sizes.values()),
        context_cardinalities=context,
        num_items=len(embedding),
        embedding_dim=embedding.shape[1],
        num_groups=sum(int(group.max()) + 1 for group in groups.values()),
        use_repeats=requests.repeat_share >= config.repeat_share,
    )
    info = WorldInfo(
        name=name,
        seed=seed,
        source=source.title,
        config=asdict(config) | _figures(log, requests),
        num_codes=config.num_codes,
        num_levels=config.num_levels,
        num_log_days=days.num_log_days,
        num_train_days=days.num_train_days,
        num_validation_days=days.num_validation_days,
        num_days=days.num_days,
        has_clicks=Action.CLICK in log.actions,
        has_conversions=Action.CONVERSION in log.actions,
        has_truth=False,
        context_cardinalities=context,
        user_cardinalities=ranker_config.user_cardinalities,
        user_columns=tuple(user_sizes),
        ranker_config=asdict(ranker_config),
        simulated=(*source.simulated, *requests.simulated, *simulated),
        notes=(*source.notes, *_notes(log, requests)),
        impression_share=config.impression_share,
    )
    organic = {
        "item_id": np.arange(len(chosen.organic)),
        "product_id": items.frame["item_id"].iloc[chosen.organic].to_numpy(),
        **{name: group[len(chosen.ad) :] for name, group in groups.items()},
    }
    availability = requests.availability
    return Draft(
        info=info,
        users=users,
        ads=ads.assign(**{k: group[: len(chosen.ad)] for k, group in groups.items()}),
        organic=pd.DataFrame(organic).rename(columns={"advertiser": "creator"}),
        events=requests.events,
        item_embedding=embedding,
        availability=None if availability is None else torch.from_numpy(availability),
        side_files={"rejected.parquet": rejected},
        training=RankerTraining(
            num_calibration_days=days.num_calibration_days, max_rows=config.num_ranker_rows
        ),
        tokenizer=config.tokenizer,
        resolve=config.resolve,
    )


def _figures(log: Log, requests: Requests) -> dict[str, object]:
    """Return what the import found, for `world.json`."""
    counts = log.counts
    figures: dict[str, object] = {
        "num_rows": counts.num_rows,
        "num_rejected": counts.num_bad,
        "num_duplicates": counts.num_duplicates,
        "rejected": counts.bad,
        "num_log_users": log.num_users,
        "first_day": str(np.datetime64(log.first_day, "D")),
        "repeat_share_found": requests.repeat_share,
    }
    share = requests.unbought_share
    if share is not None:
        taken = requests.success_rate
        figures |= {
            "unbought_share": share,
            "logit_correction": math.log(share),
            "unsampled_rate": taken / (taken + (1 - taken) / share),
        }
    return figures


def _notes(log: Log, requests: Requests) -> tuple[str, ...]:
    """Return what a reader of results must know."""
    notes = []
    if len(log.source_user) < log.num_users:
        notes.append(f"A sample of {len(log.source_user):,} of the log's {log.num_users:,} users.")
    if requests.unbought_share is not None:
        notes += [
            "The log has no impressions: what could be shown in a visit and was not taken is a "
            f"sample, {requests.unbought_share:.2%} of it. {requests.success_rate:.0%} of the "
            "exposures here succeed. Values compare policies; they are no revenue.",
            "Exposures of one visit are put in a random order, and earlier ones are part of the "
            "history of later ones with their outcome.",
        ]
    if "ad split" in requests.simulated:
        notes.append(
            "Which items are ads was drawn; what users took of the other items are organic views."
        )
    return tuple(notes)


@dataclass(frozen=True, kw_only=True)
class ImportArgs(WorldArgs):
    """Make a world from a public log and write it to a directory."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder (or file) of the data set."""
    format: str = "generic"
    """Its format, a name that a reader in simulators/imported/formats has."""
    options: Annotated[ImportConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=ImportConfig
    )


def main() -> int:
    """Run the command line; 2 on a user's mistake."""
    return run_command(ImportArgs, (__doc__ or "").partition("Dims:")[0], _make, _report)


def _make(args: ImportArgs) -> World:
    source = open_log(args.source, args.format)
    return import_log(source, args.options, args.out, to_stderr, seed=args.seed)


def _report(world: World) -> str:
    found = world.info.config
    return (
        f"{found['num_rejected']:,} rejected and {found['num_duplicates']:,} duplicate rows, "
        f"listed in {world.directory}/rejected.parquet\n"
        f"simulated: {', '.join(world.info.simulated) or 'nothing'}"
    )


if __name__ == "__main__":
    sys.exit(main())
