"""Did RL help, who was best, and how sure is that: in words, computed."""

from collections.abc import Mapping, Sequence

import pandas as pd

from benchmarks.alignment.page.tables import WARM_START
from benchmarks.reports.reading import MIN_SEEDS, Difference, compare, count


def answer(
    final: pd.DataFrame,
    differences: Sequence[Difference],
    methods: Sequence[str],
    measures: Mapping[str, str],
) -> str:
    """Return in words whether RL helped, who was best, and how sure that is.

    Methods with fewer seeds than the others are left out, and named.

    Args:
        final: The results.
        differences: All declared comparisons, corrected for their number (`adjust`).
        methods: What was trained by RL.
        measures: Metric to its words in `differences`. The first answers the question, the others
            follow it.
    """
    said: list[str] = []
    fewer: list[str] = []
    for metric, words in measures.items():
        of_measure = (d for d in differences if (d.measure, d.baseline) == (words, WARM_START))
        declared = [d for d in of_measure if d.method in methods]
        if not declared:
            continue
        seeds = max(d.num_seeds for d in declared)
        found = [d for d in declared if d.num_seeds == seeds]
        fewer += [f"`{d.method}`" for d in declared if d.num_seeds < seeds]
        if any(not d.has_seeds for d in found):
            few = count(seeds, "seed")
            return f"Did RL help? With {few} this run cannot tell: {MIN_SEEDS} are needed."
        said.append(_verdict_words(found, words, with_answer=not said))
        said.append(_best_words(final, found, metric, words))
    if fewer:
        said.append(f"Not counted here, for fewer seeds: {', '.join(dict.fromkeys(fewer))}.")
    return " ".join(said)


def _verdict_words(found: Sequence[Difference], words: str, *, with_answer: bool) -> str:
    """Return which methods raised and lowered a measure, with a word for all before it."""
    names = {
        verdict: ", ".join(f"`{d.method}`" for d in found if d.verdict == verdict)
        for verdict in ("improves", "lowers", "no clear difference")
    }
    raised, lowered, unclear = names.values()
    parts = [f"{verb} with {of}" for verb, of in (("raised", raised), ("lowered", lowered)) if of]
    parts += [f"not clearly changed with {unclear}"] if unclear else []
    text = f"{words} was {'; '.join(parts)}."
    if not with_answer:
        return text[:1].upper() + text[1:]
    word = "In part" if raised and lowered else "Yes" if raised else "No" if lowered else ""
    word = "Not clearly" if not raised and unclear else word
    return f"Did RL help? {word}: {text}"


def _best_words(final: pd.DataFrame, found: Sequence[Difference], metric: str, words: str) -> str:
    """Return who was highest, by how much, and whether its lead over the next is clear."""
    best, *others = sorted(found, key=lambda d: -d.interval.value)

    def size(d: Difference) -> str:
        return f"{d.interval.value:+.2f} [{d.interval.low:.2f}, {d.interval.high:.2f}]"

    text = f"Highest was `{best.method}`, {size(best)} of the gain against the warm start"
    if not others:
        return f"{text}."
    (lead,) = compare(final, metric, words, [best.method], others[0].method)
    sure = "is clear" if lead.verdict == "improves" else "is not clear"
    return f"{text}; its lead over the next, `{lead.baseline}`, {sure} ({size(lead)})."
