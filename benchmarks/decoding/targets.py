"""What is asked of decoding, and what others report.

The targets are this toolkit's own, of one core with one thread: no paper gives figures for a
processor of general use. Figures of papers stand beside the measured ones without a verdict, as
machines and models differ.
"""

from dataclasses import dataclass

SMALL, MEDIUM, LARGE = 10_000, 1_000_000, 10_000_000
"""Catalogues, in ads, that the targets name."""

LARGE_BUILD_S, LARGE_MIB = 60.0, 1_536.0
"""A catalogue of a large platform is built within a minute, in 1.5 GiB."""
MEDIUM_BUILD_S, MEDIUM_MIB = 2.0, 50.0
"""One of a million ads in two seconds; its arrays take 50 MiB."""
STEP_MS = 0.2
"""One legal step at the last level, 32 requests of 40 beams, all ads eligible."""
SIGNATURE_STEP_MS = 0.4
"""The same where requests point at cached signatures."""
GROWTH = 1.5
"""How many times as long a search may take in the large catalogue as in the small one."""
UPDATE_MS = 50.0
"""A thousand ads added, retired or set active among a million."""

STATIC = "STATIC (arXiv 2602.22647): .033 ms a step over 20 million items on a TPU v6e"
GR4AD_WIDTHS = 1.45
"""Throughput with widths 128-256-512 over 512 flat, at -.15 % revenue (GR4AD)."""
GR4AD_LAZY = 2.0
"""LazyAR's throughput over an autoregressive decoder's, about (GR4AD)."""


@dataclass(frozen=True)
class Target:
    """A bound on one figure."""

    words: str
    metric: str
    most: float
    unit: str
    num_ads: int = 0
    """N of the catalogue; 0: the largest that has the figure."""
    mode: str = ""
    part: str = ""


def catalogue_targets() -> tuple[Target, ...]:
    """Return what is asked of catalogues of given sizes, growth aside."""
    updates = {"add": "added", "retire": "retired", "set_active": "set inactive"}
    return (
        Target("10 million ads are built", "build_s", LARGE_BUILD_S, "s", LARGE),
        Target("10 million ads, peak memory", "peak_mib", LARGE_MIB, "MiB", LARGE, "", "build"),
        Target("1 million ads are built", "build_s", MEDIUM_BUILD_S, "s", MEDIUM),
        Target("1 million ads, arrays", "array_mib", MEDIUM_MIB, "MiB", MEDIUM),
        Target("last level, all ads", "step_ms", STEP_MS, "ms", 0, "all"),
        Target("last level, signatures", "step_ms", SIGNATURE_STEP_MS, "ms", 0, "signature"),
        *(
            Target(f"ads {word} among 1 million", "update_ms", UPDATE_MS, "ms", MEDIUM, "", name)
            for name, word in updates.items()
        ),
    )
