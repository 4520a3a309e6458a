"""Fit a tokenizer, look at its report before a long training, encode a file.

python -m gpr_rl.tokenizers fit --embeddings X.npy --method rq_kmeans_plus --out DIR
python -m gpr_rl.tokenizers report DIR
python -m gpr_rl.tokenizers encode DIR --embeddings Y.parquet --out codes.parquet
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import tyro
from torch import Tensor

from gpr_rl.tokenizers.base import read_embeddings
from gpr_rl.tokenizers.files import load_matrix
from gpr_rl.tokenizers.kinds import open_tokenizer, tokenizer_class
from gpr_rl.tokenizers.report import Study, study_codes, write_page
from gpr_rl.tokenizers.streaming import encode_file
from gpr_rl.tokenizers.ua_sid import UASID

_FIT_FILE = "fit.json"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What `fit` is told."""

    embeddings: Path
    """Matrix [n, d]: `.npy`, `.safetensors`, or the columns of a `.parquet` table."""
    out: Path
    """Directory to write; must not exist yet or be empty."""
    method: str = "rq_kmeans_plus"
    """rq_kmeans, rq_vae, rq_kmeans_plus or ua_sid."""
    levels: int = 3
    """L."""
    codes: tuple[int, ...] = (256,)
    """V, one for all levels or one per level."""
    seed: int = 0
    """Root of everything random."""
    holdout: float = 0.2
    """Share of the rows, drawn at random, that the fit does not see, in [0, 1)."""
    column: str | None = None
    """Of a `.safetensors` or `.parquet` file, where several could be meant."""
    keys: Path | None = None
    """ua_sid: `.parquet` or `.csv` table of business keys, a row per item; its columns are hashed
    in the order of their names."""
    names: Path | None = None
    """What the items are called in the report: a text file with a line per item, or the first text
    column of a `.parquet` or `.csv` table."""
    set: tuple[str, ...] = ()
    """Further arguments of the method, each `name=value`, for instance `num_epochs=50`."""


def fit(args: Annotated[Fit, tyro.conf.arg(name="")]) -> Study:
    """Fit a tokenizer on embeddings and write it with a report."""
    if not 0.0 <= args.holdout < 1.0:
        raise ValueError(f"--holdout must lie in [0, 1), got {args.holdout}")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"--out {args.out} exists already and is not empty")
    codes = args.codes[0] if len(args.codes) == 1 else args.codes
    kind = tokenizer_class(args.method)
    tokenizer = kind(args.levels, codes, args.seed, **_options(kind, args.set))
    x = read_embeddings(load_matrix(args.embeddings, args.column))
    if args.keys is not None and not isinstance(tokenizer, UASID):
        raise ValueError(f"--keys is for ua_sid, not {args.method}")
    keys = None if args.keys is None else _read_table(args.keys)
    if keys is not None and len(keys) != len(x):
        raise ValueError(f"{args.keys} has {len(keys)} rows, there are {len(x)} items")
    held_out = _held_out(len(x), args.holdout, args.seed)
    started = time.monotonic()
    if isinstance(tokenizer, UASID):
        train, rest = (mask.nonzero()[:, 0].tolist() for mask in (~held_out, held_out))
        for rows, put in ((train, tokenizer.fit), (rest, tokenizer.add)):
            put(x[rows], None if keys is None else keys.iloc[rows], item_id=rows)
    else:
        tokenizer.fit(x[~held_out])
    seconds = time.monotonic() - started
    tokenizer.save(args.out)
    info = {
        "method": args.method,
        "embeddings": str(args.embeddings.resolve()),
        "column": args.column,
        "sha256": _digest(x),
        "rows": len(x),
        "width": x.shape[1],
        "holdout": args.holdout,
        "seed": args.seed,
        "keys": None if args.keys is None else str(args.keys.resolve()),
        "seconds": round(seconds, 2),
    }
    (args.out / _FIT_FILE).write_text(json.dumps(info, indent=2) + "\n")
    return report(args.out, names=args.names)


def report(
    directory: tyro.conf.Positional[Path],
    *,
    embeddings: Path | None = None,
    column: str | None = None,
    names: Path | None = None,
) -> Study:
    """Write the report of a fitted tokenizer: DIR/report.html.

    Args:
        directory: What `fit` wrote.
        embeddings: Other rows to judge it by; none of them counts as held out.
        column: Of that file.
        names: As for `fit`.
    """
    tokenizer = open_tokenizer(directory)
    path = directory / _FIT_FILE
    info = json.loads(path.read_text()) if path.is_file() else {}
    source = embeddings or (Path(info["embeddings"]) if info else None)
    if source is None:
        raise ValueError(f"{path} is missing: say --embeddings FILE")
    is_own = embeddings is None
    x = read_embeddings(load_matrix(source, info.get("column") if is_own else column))
    if is_own and _digest(x) != info["sha256"]:
        raise ValueError(f"{source} is not what it was at the fit: say --embeddings FILE")
    share = info["holdout"] if is_own else 0.0
    if isinstance(tokenizer, UASID) and is_own:
        codes = tokenizer.index.codes(range(len(x)))
    else:
        codes = tokenizer.encode(x)
    study = study_codes(
        codes,
        x,
        tokenizer.decode(codes),
        tokenizer.num_codes,
        _held_out(len(x), share, info.get("seed", 0)),
        None if names is None else _read_names(names),
    )
    title = f"Semantic IDs of {source.name}: {type(tokenizer).__name__}"
    page = directory / "report.html"
    write_page(page, title, study, {**info, **tokenizer.config, "judged on": source})
    for part, (number, found) in study.parts.items():
        print(
            f"{part}: {number:,} rows, collision rate {found.collision_rate:.4f}, "
            f"path similarity {found.path_similarity:.4f}, "
            f"reconstruction error {found.reconstruction_error:.4g}, code usage "
            + " ".join(f"{usage:.3f}" for usage in found.code_usage.tolist())
        )
    print("\n".join(study.verdict) or "Nothing wrong was found.")
    print(page)
    return study


def encode(
    directory: tyro.conf.Positional[Path],
    *,
    embeddings: Path,
    out: Path,
    column: str | None = None,
) -> int:
    """Encode a file of any size, a piece at a time.

    Args:
        directory: What `fit` wrote.
        embeddings: As for `fit`.
        out: Parquet table with columns code_1 to code_L.
        column: As for `fit`.

    Returns:
        The number of rows.
    """
    tokenizer = open_tokenizer(directory)
    started = time.monotonic()
    num_rows = encode_file(tokenizer, embeddings, out, column=column)
    seconds = time.monotonic() - started
    print(f"{out}: {num_rows:,} rows in {seconds:.1f} s")
    return num_rows


def _options(kind: type, settings: tuple[str, ...]) -> dict[str, Any]:
    """Return keyword arguments of a tokenizer from `name=value`, with the types of its defaults."""
    known = {
        name: parameter.default
        for name, parameter in signature(kind).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    options = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in known:
            raise ValueError(f"--set {setting}: {kind.__name__} takes {', '.join(known)}")
        number = type(known[name])
        try:
            options[name] = number(text)
        except ValueError as error:
            raise ValueError(f"--set {setting}: {name} is of type {number.__name__}") from error
    return options


def _held_out(num_rows: int, share: float, seed: int) -> Tensor:
    """Return which rows are held out, bool [n]."""
    order = np.random.default_rng(seed).permutation(num_rows)
    mask = torch.zeros(num_rows, dtype=torch.bool)
    mask[torch.from_numpy(order[: round(share * num_rows)])] = True
    return mask


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


def _read_table(path: Path) -> pd.DataFrame:
    readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv}
    if path.suffix not in readers:
        raise ValueError(f"{path}: tables are read from .parquet and .csv files")
    return readers[path.suffix](path)


def _read_names(path: Path) -> list[str]:
    if path.suffix in (".parquet", ".csv"):
        table = _read_table(path)
        text = [name for name in table if table[name].dtype in ("str", "object")]
        return table[text[0] if text else table.columns[0]].astype(str).tolist()
    return path.read_text(encoding="utf-8").splitlines()


def main() -> int:
    """Run the command line; 2 on a user's mistake."""
    commands: dict[str, Callable[..., Any]] = {"fit": fit, "report": report, "encode": encode}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
