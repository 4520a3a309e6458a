"""Parts, targets and sizes of the decoding suite.

Dims: B requests, K candidates, N ads, L levels, V codes per level.
"""

from dataclasses import dataclass, field

from agents.warm_start import WarmStartConfig
from benchmarks.decoding.targets import LARGE
from gpr_rl.models import HHDConfig
from gpr_rl.pretraining.trainer import StageConfig

SUITE = "decoding"
PEERS, CATALOGUES, WIDTHS = "peers", "catalogues", "widths"
DECODERS, PRECISION, LOAD = "decoders", "precision", "load"
METHODS = (PEERS, CATALOGUES, WIDTHS, DECODERS, PRECISION, LOAD)
"""The parts of the suite."""
WITH_POLICY = (WIDTHS, PRECISION, LOAD)
"""Parts that search with a trained policy on a world."""


@dataclass(frozen=True, kw_only=True)
class PeerSizes:
    """TIGER as published (Rajput et al. 2023), and what is asked of it."""

    num_ads: int = 10_000
    """Random paths."""
    num_levels: int = 3
    num_codes: int = 256
    num_users: int = 2_000
    """Ids that users are hashed to."""
    num_items: int = 20
    """Past items that are read, L ids each."""
    dim: int = 128
    num_heads: int = 6
    head_dim: int = 64
    """Queries, keys and values are 6 * 64 = 384 wide, three times `dim`."""
    ffn_dim: int = 1_024
    num_layers: int = 4
    """Of the encoder, and again of the decoder."""
    num_beams: int = 40
    batches: tuple[int, ...] = (1, 8, 32)
    """B that speed is measured at."""
    num_compared: int = 32
    """Requests whose answers are compared."""

    @property
    def num_ids(self) -> int:
        """Padding, end, a row of codes per level, and users: 2,770 as published."""
        return 2 + self.num_levels * self.num_codes + self.num_users

    @property
    def num_inputs(self) -> int:
        """The user and the items' codes: 61 as published."""
        return 1 + self.num_items * self.num_levels

    @property
    def inner_dim(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class CatalogueSize:
    """One point of the scaling with the catalogue: N paths, uniform over V^L."""

    num_ads: int
    num_codes: int = 1_024
    num_levels: int = 3


def catalogues(*numbers: int) -> tuple[CatalogueSize, ...]:
    """Return catalogues of so many ads."""
    return tuple(CatalogueSize(num_ads=number) for number in numbers)


@dataclass(frozen=True, kw_only=True)
class CatalogueSizes:
    """The catalogues, and what is searched in them."""

    sizes: tuple[CatalogueSize, ...] = catalogues(10_000, 100_000, 1_000_000)
    first_round: tuple[CatalogueSize, ...] = ()
    """Measured in the first round alone: too large, or there is no time."""
    batch: int = 32
    """B of a step and of a search."""
    num_beams: int = 40
    num_signatures: int = 4
    """Kinds of requests; each may show half of the ads."""
    max_masked: int = 1_000_000
    """N up to which every request also has a row of eligible ads of its own."""
    num_updated: int = 1_000
    """Ads in an update."""


@dataclass(frozen=True, kw_only=True)
class WidthSizes:
    """Beams that are compared; a width is cut to the number of paths."""

    flat: int = 512
    growing: tuple[int, ...] = (128, 256, 512)
    """GR4AD's widths; the last goes for deeper levels too."""
    width_range: tuple[int, int] = (1, 32)
    """At least and at most so many children of one prefix, by its value; widths as above."""
    narrow: int = 40
    """Of the beam that a tree search with as many model steps is set against."""
    num_candidates: int = 40
    batch: int = 32
    num_requests: int = 64
    """Whose lists are compared with those of a beam as wide as the catalogue."""


@dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """A model without training on a random catalogue: its speed depends on the sizes alone."""

    num_ads: int = 10_000
    num_codes: int = 256
    num_levels: int = 3
    num_items: int = 20
    dim: int = 128
    num_layers: int = 3
    """L_d of the PTD. GR4AD gives no number."""
    num_lazy_layers: int = 2
    """K_d of LazyAR."""
    num_beams: int = 256
    batch: int = 8


@dataclass(frozen=True, kw_only=True)
class PrecisionSizes:
    """What is searched in every precision."""

    num_beams: int = 128
    num_candidates: int = 40
    batch: int = 32
    num_requests: int = 128
    """Whose lists are compared with those of float32."""


@dataclass(frozen=True, kw_only=True)
class LoadSizes:
    """A service under arrivals that do not wait for its answers."""

    loads: tuple[float, ...] = (0.1, 0.5, 0.8, 1.0, 1.2, 1.5)
    """Arrivals, as shares of the measured capacity."""
    phase_s: float = 4.0
    """How long each lasts."""
    rest_load: float = 0.5
    rest_s: float = 4.0
    """What follows the highest load, to see how long the service takes to recover."""
    soak_s: float = 0.0
    """How long the highest load is held once more, with memory before and after; 0: not."""
    max_batch: int = 64
    deadline_ms: float = 5.0
    num_candidates: int = 40
    width: int = 128
    min_width: int = 40
    """Of a full queue; not below K, so lists stay whole."""
    num_requests: int = 256
    """Requests that arrivals are drawn from. Answers are not cached."""
    num_checked: int = 32
    """Answers per load that are compared with a direct search."""


@dataclass(frozen=True, kw_only=True)
class DecodingPreset:
    """Sizes of one preset."""

    world: str = "small"
    """Default world of the parts with a trained policy."""
    num_seeds: int = 3
    """Rounds: each measures everything once, with other weights, paths and requests. World and
    trained policy are the first round's."""
    num_repeats: int = 3
    """Repeats of every figure within a round."""
    limit_s: float = 4.0
    """No further repeat of a figure begins after this; there is at least one."""
    peers: PeerSizes = field(default_factory=PeerSizes)
    catalogues: CatalogueSizes = field(default_factory=CatalogueSizes)
    widths: WidthSizes = field(default_factory=WidthSizes)
    decoders: DecoderSizes = field(default_factory=DecoderSizes)
    precision: PrecisionSizes = field(default_factory=PrecisionSizes)
    load: LoadSizes = field(default_factory=LoadSizes)
    warm_start: WarmStartConfig = field(
        default_factory=lambda: WarmStartConfig(
            mtp=StageConfig(num_steps=100),
            vaft=StageConfig(num_steps=40, learning_rate=1e-3),
            critic=StageConfig(num_steps=40, learning_rate=3e-3),
        )
    )
    """Of the policy; the model is that of the alignment suite."""


PRESETS = {
    "smoke": DecodingPreset(
        world="tiny",
        num_seeds=2,
        num_repeats=2,
        limit_s=0.2,
        peers=PeerSizes(
            num_ads=500, num_codes=32, num_users=100, num_items=5, dim=32, num_heads=2,
            head_dim=16, ffn_dim=64, num_layers=1, num_beams=8, batches=(1, 4), num_compared=8,
        ),
        catalogues=CatalogueSizes(
            sizes=(), first_round=catalogues(1_000, 10_000), num_updated=100
        ),
        widths=WidthSizes(
            flat=64, growing=(16, 32, 64), width_range=(1, 8), narrow=10, num_candidates=10,
            batch=8, num_requests=16,
        ),
        decoders=DecoderSizes(num_ads=500, num_codes=32, dim=32, num_beams=32, batch=4),
        precision=PrecisionSizes(num_beams=40, num_candidates=10, batch=8, num_requests=16),
        load=LoadSizes(
            loads=(0.1, 1.5), phase_s=0.6, rest_s=0.6, max_batch=16, num_candidates=10, width=32,
            min_width=10, num_requests=32, num_checked=4,
        ),
        warm_start=WarmStartConfig(
            model=HHDConfig(dim=32, num_hsd_layers=1),
            mtp=StageConfig(num_steps=30),
            vaft=StageConfig(num_steps=15, learning_rate=1e-3),
            critic=StageConfig(num_steps=10),
            num_windows=32,
        ),
    ),
    "quick": DecodingPreset(),
    "paper": DecodingPreset(
        world="medium",
        num_seeds=10,
        num_repeats=9,
        limit_s=20.0,
        peers=PeerSizes(batches=(1, 8, 32, 128), num_compared=128),
        catalogues=CatalogueSizes(
            sizes=catalogues(10_000, 100_000, 1_000_000, LARGE),
            first_round=(CatalogueSize(num_ads=100_000_000, num_levels=4),),
        ),
        widths=WidthSizes(num_requests=256),
        precision=PrecisionSizes(num_requests=512),
        load=LoadSizes(
            loads=(0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.2, 1.5), phase_s=30.0, rest_s=30.0,
            soak_s=600.0,
        ),
        warm_start=WarmStartConfig(),
    ),
}  # fmt: skip
