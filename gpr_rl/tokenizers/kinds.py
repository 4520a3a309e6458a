"""The tokenizers by name, and reading whichever a directory holds."""

from pathlib import Path

from gpr_rl.tokenizers.base import Tokenizer, read_info
from gpr_rl.tokenizers.rq_kmeans import RQKMeans
from gpr_rl.tokenizers.rq_kmeans_plus import RQKMeansPlus
from gpr_rl.tokenizers.rq_vae import RQVAE
from gpr_rl.tokenizers.ua_sid import UASID

Kind = type[RQKMeans] | type[RQVAE] | type[UASID]
TOKENIZERS: dict[str, Kind] = {
    "rq_kmeans": RQKMeans,
    "rq_vae": RQVAE,
    "rq_kmeans_plus": RQKMeansPlus,
    "ua_sid": UASID,
}


def tokenizer_class(method: str) -> Kind:
    """Return the class of a name.

    Raises:
        ValueError: Unknown name.
    """
    if method not in TOKENIZERS:
        raise ValueError(f"tokenizer must be one of {', '.join(TOKENIZERS)}, got {method!r}")
    return TOKENIZERS[method]


def open_tokenizer(directory: str | Path) -> Tokenizer:
    """Return the tokenizer that some `save` wrote to `directory`.

    Raises:
        FileNotFoundError: No tokenizer there.
        ValueError: Its files are damaged, or it is of a kind that this version does not know.
    """
    kind, known = read_info(directory)["kind"], {k.__name__: k for k in TOKENIZERS.values()}
    if kind not in known:
        raise ValueError(f"{directory} holds a {kind!r}, which this version does not know")
    return known[kind].load(directory)
