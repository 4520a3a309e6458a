"""Fits one tokenizer on one catalogue and grades it; tuning gives each the same number of trials.

Dims: n items, L levels, V codes of a level.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.runs.results import applicable, tidy
from benchmarks.runs.trials import draw_trials, read_trials
from benchmarks.tokenizers.catalogues import Catalogue, load_catalogue
from benchmarks.tokenizers.presets import SUITE
from gpr_rl.tokenizers import UASID, quality
from gpr_rl.tokenizers.kinds import tokenizer_class

HOLDOUT = 0.2
SCORE = "collision_rate"
"""What tuning lowers, over all items of the tuning seeds' catalogues; ties by the reconstruction
error. It is the first column of the paper's table."""
UASID_SHAPES = ((4, 1, -4), (1, 1, 1), (-2, -4, 8), (-4, -4, 16), (-2, -8, 16))
"""Codes per level over V, a negative number dividing: all have V^3 paths. The first shrinks with
depth as GR4AD's does, the last ones leave more to the hash."""
_TRAINING: Mapping[str, tuple[Any, ...]] = {
    "learning_rate": (3e-4, 1e-3, 3e-3),
    "batch_size": (64, 128, 256),
    "hidden_dim": (128, 256),
    "commitment": (0.1, 0.25, 1.0),
    "num_epochs": (50, 100),
}
SPACES: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "rq_kmeans": {
        "num_iterations": (10, 25, 50, 100),
        "max_rows_per_code": (64, 256, 1_024),
    },
    "rq_vae": {**_TRAINING, "latent_dim": (16, 32, 64)},
    "rq_kmeans_plus": _TRAINING,
    "ua_sid": {"shape": UASID_SHAPES, "num_iterations": (10, 25, 50)},
}


def trial_settings(method: str, num_trials: int) -> list[dict[str, Any]]:
    """Return what every trial of a tokenizer sets: its defaults, then draws from its space."""
    return draw_trials(SPACES[method], num_trials)


def make_tokenizer(method: str, num_codes: int, seed: int, settings: Mapping[str, Any]) -> Any:
    """Return a tokenizer with three levels and V^3 paths, not fitted."""
    options = dict(settings)
    if method != "ua_sid":
        return tokenizer_class(method)(3, num_codes, seed, **options)
    shape = options.pop("shape", UASID_SHAPES[0])
    return UASID(3, shape_codes(shape, num_codes), seed, **options)


def shape_codes(shape: Sequence[int], num_codes: int) -> tuple[int, ...]:
    """Return the codes per level of a shape, e.g. (4, 1, -4) of 64: (256, 64, 16)."""
    return tuple(
        num_codes * factor if factor > 0 else max(1, num_codes // -factor) for factor in shape
    )


def measure(
    method: str, catalogue: Catalogue, seed: int, settings: Mapping[str, Any]
) -> dict[tuple[str, int], dict[str, float]]:
    """Fit on 80 % of the items and return the grades of `all`, `train` and `heldout` ones.

    Returns:
        By part and level, 0 for what all levels have together.
    """
    x, keys = catalogue.x, catalogue.keys
    order = np.random.default_rng(seed).permutation(len(x))
    held_out = np.zeros(len(x), dtype=bool)
    held_out[order[: round(HOLDOUT * len(x))]] = True
    tokenizer = make_tokenizer(method, catalogue.num_codes, seed, settings)
    started = time.perf_counter()
    tokenizer.fit(x[~held_out])
    fitted = time.perf_counter()
    codes = tokenizer.encode(x, keys) if isinstance(tokenizer, UASID) else tokenizer.encode(x)
    encoded = time.perf_counter()
    x_hat = tokenizer.decode(codes)
    grades: dict[tuple[str, int], dict[str, float]] = {}
    for name, mask in (("all", held_out | True), ("train", ~held_out), ("heldout", held_out)):
        rows = torch.from_numpy(np.flatnonzero(mask))
        found = quality(codes[rows], x[mask], tokenizer.num_codes, x_hat[rows])
        grades[name, 0] = {
            "collision_rate": found.collision_rate,
            "path_similarity": found.path_similarity,
            "reconstruction_error": found.reconstruction_error,
        }
        for level in range(tokenizer.num_levels):
            grades[name, level + 1] = {
                "code_usage": float(found.code_usage[level]),
                "entropy": float(found.entropy[level]),
            }
    twins = np.unique(x, axis=0, return_inverse=True, return_counts=True)
    grades["all", 0] |= {
        "num_items": float(len(x)),
        "num_paths": float(math.prod(tokenizer.num_codes)),
        "twins": float((twins[2][twins[1].ravel()] > 1).mean()),
        "variance": float(np.square(x - x.mean(0)).sum(1).mean()),
        "fit_s": fitted - started,
        "encoded_per_s": len(x) / (encoded - fitted),
    }
    return grades


def _frame(
    method: str, seed: int, grades: Mapping[tuple[str, int], Mapping[str, float]], **at: str | int
) -> pd.DataFrame:
    return pd.concat(  # no path shared: no similarity
        tidy(SUITE, method, seed, applicable(metrics), step=0, split=split, level=level, **at)
        for (split, level), metrics in grades.items()
    )


def run_trial(
    *, items: Mapping[str, Any], seed: int, method: str, trial: int, num_trials: int
) -> pd.DataFrame | None:
    """Grade one trial on one tuning seed; one that diverges has no score.

    `items` says of `load_catalogue` all but the seed, here and in `run_row`.
    """
    settings = trial_settings(method, num_trials)[trial]
    loaded = load_catalogue(**items, seed=seed)
    try:
        grades = measure(method, loaded, seed, settings)
    except ValueError:
        return None
    found = {("tuning", level): own for (part, level), own in grades.items() if part == "all"}
    return _frame(method, seed, found, catalogue=items["name"], trial=trial + 1)


def run_row(
    *, items: Mapping[str, Any], seed: int, method: str, tuned: Path | None
) -> pd.DataFrame:
    """Grade a tokenizer with its chosen settings on one seed."""
    settings = {} if tuned is None else read_trials(tuned)["chosen"]
    grades = measure(method, load_catalogue(**items, seed=seed), seed, settings)
    return _frame(method, seed, grades, catalogue=items["name"])
