"""What the trials of a tuning came to, in words."""

from collections.abc import Mapping, Sequence


def trial_words(trials: Sequence[Mapping[str, float | None]], score: str) -> str:
    """Return what each learning rate came to."""
    return ", ".join(
        f"{t['learning_rate']:g}: " + ("diverged" if t[score] is None else f"{t[score]:.3f}")
        for t in trials
    )
