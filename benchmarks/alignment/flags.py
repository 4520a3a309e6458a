"""The alignment suite's flags."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import tyro

from benchmarks.errors import UserError
from benchmarks.flags import RewardFlags, Stored, default_rows, flag
from benchmarks.settings import Settings
from gpr_rl.dials import with_dials


@dataclass(frozen=True, kw_only=True)
class Flags(RewardFlags):
    """Tab. 3: does value alignment work? HEPO against PPO, DPO, RSPO and others, with ablations."""

    EXTENDABLE: ClassVar = ("methods", "seeds", "markets", "ablations", "plugins")

    methods: Annotated[tuple[str, ...] | None, flag("NAME ...", "all")] = None
    """Methods to train, e.g. `--methods hepo ppo dpo grpo`. An unknown name lists them. One of your
    own is `package.module:name`, from a module that registers it."""
    without: Annotated[tuple[str, ...], flag("NAME ...", "none")] = ()
    """Methods, markets or ablations to leave out: of all there are, or of a run that is resumed."""
    markets: Annotated[tuple[str, ...] | None, flag("NAME ...")] = None
    """Markets to compare on beside the base one. An unknown name lists them."""
    ablate: Annotated[tuple[str, ...] | None, flag("NAME ...")] = None
    """Ablations: rows with one change each. An unknown name lists them."""
    tune: Annotated[int | None, flag("N")] = None
    """Settings tried per method on seeds of their own, before the comparison; 0: defaults."""
    baseline: Annotated[Literal["none", "ad"] | None, flag("NAME", "none")] = None
    """What is taken off every reward before it is learned from: an ad's own running mean."""
    set: Annotated[tuple[str, ...], flag("FIELD=VALUE ...", "none")] = ()
    """Dials of training for all methods, e.g. `level_weight=1,1,2 num_steps=150`; the fields of
    `agents.train_config.TrainConfig`. Commas divide what is given level by level."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in the folder, perhaps with more methods, seeds, markets or ablations.
    What is finished is not run again."""
    logger: Literal["csv", "tensorboard", "wandb", "mlflow", "trackio"] | None = None
    """Training measures also go to this logger of TorchRL."""
    device: str = "cpu"
    """Where models are trained and evaluated: `cpu`, `cuda` or `cuda:N`; all workers share it."""
    precision: Literal["float32", "bf16"] | None = None
    """What the models of RL multiply in; losses are in float32 either way."""

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Return the markets and ablations."""
        from benchmarks.alignment.ablations import ABLATIONS
        from benchmarks.alignment.presets import MARKETS

        return {"markets": MARKETS, "ablations": tuple(ABLATIONS)}

    def complete(self, settings: Settings, before: Stored) -> Settings:
        """Return the settings with markets, ablations and what training needs."""
        settings = super().complete(settings, before)
        sizes = settings.sizes
        if self.tune is not None:
            if self.tune < 0:
                raise UserError(f"--tune must be at least 0, got {self.tune}")
            sizes = replace(sizes, tuning=replace(sizes.tuning, num_trials=self.tune))
        named = {"baseline": self.baseline, "precision": self.precision}
        dials = (*self.set, *(f"{name}={value}" for name, value in named.items() if value))
        try:
            sizes = replace(sizes, training=with_dials(sizes.training, dials))
            if dials:
                _check_methods(settings, sizes.training)
        except ValueError as error:
            raise UserError(f"--set: {error}") from error
        return replace(
            settings,
            sizes=sizes,
            logger=self.logger,
            device=self._device(),
            markets=self._rows("markets", self.markets, settings, before),
            ablations=self._rows("ablations", self.ablate, settings, before),
        )

    def _device(self) -> str:
        from agents.placing import usable_device

        try:
            return str(usable_device(self.device))
        except ValueError as error:
            raise UserError(f"--device {error}") from error

    def _rows(
        self, kind: str, names: tuple[str, ...] | None, settings: Settings, before: Stored
    ) -> tuple[str, ...]:
        """Return the markets or ablations that a flag names, each once."""
        from benchmarks.alignment.presets import SYNTHETIC_ONLY
        from simulators.synthetic.config import PRESETS

        missing = () if settings.world in PRESETS else SYNTHETIC_ONLY
        if names is None:
            usual = default_rows(settings.sizes, before, kind)
            return tuple(name for name in usual if name not in missing)
        choices = self.choices()[kind]
        flag = {"markets": "--markets", "ablations": "--ablate"}[kind]
        for name in names:
            if name not in choices:
                raise UserError(f"{flag}: unknown {name!r}, choose from {', '.join(choices)}")
            if name in missing:
                raise UserError(f"{flag}: {name!r} needs a synthetic world, got {settings.world!r}")
        return tuple(dict.fromkeys(names))

    def read_methods(self) -> tuple[tuple[str, ...] | None, tuple[str, ...], tuple[str, ...]]:
        """Import the modules of `module:name` methods."""
        parts = [name.rpartition(":") for name in self.methods or ()]
        modules = tuple(dict.fromkeys(module for module, colon, _ in parts if colon))
        if not modules:
            return super().read_methods()
        from benchmarks.plugins import import_methods

        own = tuple(name.lower() for _, colon, name in parts if colon)
        import_methods(modules, own)
        return tuple(name for *_, name in parts), modules, own


def _check_methods(settings: Settings, training: Any) -> None:
    """Raise ValueError where a method can't take the dials; the world is known by its name."""
    from agents.methods import make_method, method_names
    from simulators.synthetic.config import named_config

    world = named_config(settings.world)
    num_levels = world.num_levels if world else len(training.level_weight) or 3
    for name in set(settings.methods) & set(method_names()):
        make_method(name, training, num_levels)
