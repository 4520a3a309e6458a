"""Turns tables into a finished world: semantic IDs, trained and graded rankers, files.

Synthetic worlds and imported logs both end here.

Dims: N ads, M organic items.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from simulators.progress import Progress
from simulators.rankers.cards import overall_card
from simulators.rankers.frozen import FrozenRankers, build_rankers, ranker_tensors
from simulators.rankers.scores import (
    attach_scored,
    calibrate,
    first_row,
    labels,
    logged_scores,
    num_fitted_rows,
)
from simulators.rankers.training import LoggedRows, RankerTraining, fit_rankers
from simulators.rewards import final_value
from simulators.synthetic.evaluator import TruthEvaluator
from simulators.world import World
from simulators.world.info import WorldInfo
from simulators.world.item_codes import make_ids


def build_world(
    directory: Path,
    info: WorldInfo,
    *,
    users: pd.DataFrame,
    ads: pd.DataFrame,
    organic: pd.DataFrame,
    events: pd.DataFrame,
    item_embedding: np.ndarray,
    hidden: dict[str, dict[str, Tensor]],
    extra: dict[str, Tensor],
    progress: Progress,
    training: RankerTraining | None = None,
    side_files: Mapping[str, Path] = MappingProxyType({}),
    tokenizer: str = "rq_kmeans",
    resolve: str = "highest_value",
) -> World:
    """Fit the tokenizer and the rankers, write everything, and return the world.

    Nothing is left at `directory` unless all of it is there: files are written beside it and
    renamed at the end.

    Args:
        directory: Where the world goes; must not exist yet.
        info: Head of `world.json`.
        users: Table in the format of `World`.
        ads: Likewise.
        organic: Likewise.
        events: Likewise.
        item_embedding: float32 [N + M, d].
        hidden: Name to tensors, files that only the evaluator reads.
        extra: Further tensors of `World` (for instance `availability`).
        progress: Called with one line per stage.
        training: How the rankers are fitted.
        side_files: Further files by the name that they get; they are moved.
        tokenizer: Of the semantic IDs, one of `gpr_rl.tokenizers.kinds.TOKENIZERS`.
        resolve: What a shared path stands for, see `gpr_rl.tokenizers.resolve_collisions`.
    """
    directory = Path(directory)
    if directory.exists():
        raise ValueError(f"{directory} exists already; a world is never overwritten")
    wrong = np.argwhere(~np.isfinite(item_embedding))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(
            f"item_embedding must be finite, row {row} has {item_embedding[row, column]} "
            f"in column {column}"
        )
    if not (events["kind"] == 1).any():
        raise ValueError("the log has no impression: no ad was ever shown to anybody")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        progress(f"semantic IDs of {len(item_embedding):,} items")
        fitted, codes = make_ids(
            item_embedding,
            ads,
            organic,
            tokenizer=tokenizer,
            resolve=resolve,
            num_levels=info.num_levels,
            num_codes=info.num_codes,
            seed=info.seed,
        )
        most = max(info.num_codes, int(codes.max()) + 1)  # levels differ, and a suffix counts on
        info = replace(info, num_levels=codes.shape[1], num_codes=most)
        embedding = torch.from_numpy(item_embedding)
        tensors = {"item_embedding": embedding, "item_codes": codes, **extra}
        fitted.save(temporary / "tokenizer")
        for name, frame in (
            ("users", users),
            ("ads", ads),
            ("organic", organic),
            ("events", events),
        ):
            frame.to_parquet(temporary / f"{name}.parquet", index=False)
        save_file(tensors, temporary / "embeddings.safetensors")
        for name, parts in hidden.items():
            save_file(parts, temporary / f"{name}.safetensors")
        world = World(info, users, ads, organic, events, tensors, directory=temporary)
        progress(f"rankers on {world.num_requests:,} logged impressions")
        frozen, scores, card = train_rankers(world, training or RankerTraining())
        attach_scored(world, frozen, scores, card)
        if info.has_truth and len(world.request_ids("test")):
            card["regime"] = grade_regime(world)
            if card["regime"]["regime"] == "hacking":
                progress(
                    "NOTE: reward-hacking regime: the ad that the rankers like best is truly worth "
                    "less than what the logging policy shows"
                )
        save_file(ranker_tensors(frozen), temporary / "rankers.safetensors")
        save_file({k: v.contiguous() for k, v in scores.items()}, temporary / "scores.safetensors")
        (temporary / "ranker_card.json").write_text(json.dumps(card, indent=2))
        (temporary / "world.json").write_text(json.dumps(asdict(info), indent=2))
        for name, path in side_files.items():
            shutil.move(path, temporary / name)
        _open_to_readers(temporary)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    world.directory = directory
    return world


def _open_to_readers(folder: Path) -> None:
    """Give a world the permissions that plain files would have; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def train_rankers(
    world: World, training: RankerTraining
) -> tuple[FrozenRankers, dict[str, Tensor], dict]:
    """Train on the earlier logged days, calibrate on the last, grade on the held-out days.

    Returns:
        The frozen rankers; the scores of the log (`ranker_scores.logged_scores`); and the card,
        one entry per task.
    """
    info = world.info
    clicked, converted = labels(world)
    generator = torch.Generator().manual_seed(info.seed)
    with torch.random.fork_rng():
        torch.manual_seed(info.seed)
        rankers = build_rankers(world)
    first = first_row(world, training)
    ids = torch.arange(first, world.num_requests)
    rows = LoggedRows.build(world.features, world.group, ids, world.request_ad[ids])
    fit_rankers(
        rankers,
        rows,
        clicked[ids],
        converted[ids],
        num_rows=num_fitted_rows(world, training) - first,
        has_clicks=info.has_clicks,
        config=training,
        generator=generator,
    )
    rankers.eval()
    logit = rows.all_logits(rankers)
    calibration = calibrate(world, logit, training)
    frozen = FrozenRankers(rankers, calibration, info.has_clicks, info.has_conversions)
    scores = logged_scores(world, frozen, frozen.calibration(logit))
    return frozen, scores, dict(overall_card(world, scores))


def grade_regime(world: World, num_requests: int = 300) -> dict[str, float | str]:
    """Say whether optimising the rankers helps under the truth.

    Returns:
        Mean true final value on held-out requests of the logging policy, of the ad that the
        rankers like best (`proxy_argmax`) and of the truly best ad; `share`, the position of the
        proxy-argmax between logging (0) and best (1); and `regime`: `good` when it beats logging,
        else `hacking`.
    """
    truth = TruthEvaluator(world)
    ids = world.request_ids("test")
    ids = ids[torch.linspace(0, len(ids) - 1, min(num_requests, len(ids))).long()]
    totals = torch.zeros(3, dtype=torch.float64)
    for part in ids.split(100):
        legal = world.eligible(part)
        true_value = final_value(truth.outcome_all(part))
        proxy = final_value(world.outcome_all(part)).masked_fill(~legal, -torch.inf)
        logging = (truth.logging_distribution(part) * true_value).sum(-1)
        argmax = true_value.gather(1, proxy.argmax(-1, keepdim=True))[:, 0]
        best = true_value.masked_fill(~legal, -torch.inf).amax(-1)
        totals += torch.stack([logging.sum(), argmax.sum(), best.sum()]).double()
    logging, argmax, best = (totals / len(ids)).tolist()
    return {
        "logging": logging,
        "proxy_argmax": argmax,
        "best": best,
        "share": (argmax - logging) / (best - logging) if best > logging else 0.0,
        "regime": "good" if argmax > logging or best <= logging else "hacking",
    }
