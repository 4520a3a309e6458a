"""What a run was asked to do."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from benchmarks.runs.tasks import Task


class Preset(Protocol):
    """What every preset of every suite has; the rest is the suite's own dataclass."""

    @property
    def world(self) -> str:
        """Default of `--world`."""

    @property
    def num_seeds(self) -> int:
        """Default of `--seeds`."""


Sizes = TypeVar("Sizes", bound=Preset)


@dataclass(frozen=True, kw_only=True)
class Settings(Generic[Sizes]):
    """Everything that a run's numbers depend on, and where they go."""

    suite: str
    preset: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    world: str
    """A name or an absolute directory."""
    sizes: Sizes
    """The preset itself."""
    reward: tuple[str, ...] = ()
    """Specs for `simulators.rewards.RewardMix.from_specs`; empty means `final_value`."""
    markets: tuple[str, ...] = ()
    """Beside the base market; suites without markets have none."""
    ablations: tuple[str, ...] = ()
    """Rows with one change each; suites without ablations have none."""
    embeddings: Path | None = None
    """A file of the user's, for suites about embeddings."""
    protocol: str = ""
    """What is trained on and tested, in suites with a choice."""
    plugins: tuple[str, ...] = ()
    """Modules that register methods of the user's; every task that trains imports them."""
    out: Path
    resume: bool = False
    logger: str | None = None
    """A logger of torchrl that training also writes to."""
    device: str = "cpu"
    """Where models are trained and evaluated; the last bits of a run's numbers depend on it."""

    def task(
        self,
        name: str,
        function: str,
        *,
        needs: tuple[str, ...] = (),
        files: tuple[Path, ...] = (),
        cost: float = 1.0,
        **kwargs: object,
    ) -> Task:
        """Return a task of this run; `function` lacks `benchmarks.`, `kwargs` are its own."""
        return Task(
            name=name,
            function=f"benchmarks.{function}",
            kwargs=kwargs,
            needs=needs,
            out=self.out,
            files=files,
            cost=cost,
        )

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds that settings are chosen on and no test may use; none without tuning."""
        return getattr(self.sizes, "tuning_seeds", ())

    def tuned_file(self, row: str) -> Path | None:
        """Return where a row's choice is kept; None where a run does not tune."""
        return self.out / "tuning" / f"{row}.json" if self.tuning_seeds else None

    def to_json(self) -> dict[str, object]:
        """Return what `--resume` compares: all but where the run goes and how it is executed."""
        elsewhere = ("out", "resume", "logger")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in elsewhere}

    def extended(self, stored: Mapping[str, object], names: tuple[str, ...]) -> "Settings[Sizes]":
        """Return these settings with the rows of the run that they are added to.

        `stored` are its settings, empty for a new run; `names` says which may be added to.
        """
        merged = {}
        for name in names if stored else ():
            before = stored.get(name, [])
            assert isinstance(before, list)
            merged[name] = tuple(dict.fromkeys([*before, *getattr(self, name)]))
        if "seeds" in merged:
            merged["seeds"] = tuple(sorted(merged["seeds"]))
        return replace(self, **merged)  # type: ignore[arg-type]
