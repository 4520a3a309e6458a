"""How the methods were run: their dials, what they share, and what is not equal."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from agents.methods import make_method, method_config, search_space
from benchmarks.alignment.distilled import DistilConfig
from benchmarks.alignment.presets import DISTILLED, AlignmentSettings
from benchmarks.reports.blocks import Bullets, Cell, Section, Table, key_values
from benchmarks.runs.trials import with_choice


def how_section(trained: Sequence[str], settings: AlignmentSettings, num_levels: int) -> Section:
    """Return every method's dials, what all methods share, and what differs."""
    facts = [
        *fairness_words(trained, settings),
        "`hepo` is as printed in GPR Eq. 8; `hepo_terminal` also carries the terminal reward to "
        "the coarse levels; `ppo` is TorchRL's ClipPPOLoss and GAE; `dpo` takes fresh pairs from "
        "every step's candidates, `dpo_offline` pairs of the warm start's candidates.",
        "Ads that share a path resolve to the one that earns most on average.",
        "The rankers were fitted on all logged days but the last, so most training requests lie in "
        "their training days; test requests lie after both.",
    ]
    return Section(
        "How the methods were run",
        [
            _hyper_parameters(trained, settings, num_levels),
            Bullets(facts),
            key_values("Training", asdict(settings.sizes.training)),
        ],
    )


def fairness_words(trained: Sequence[str], settings: AlignmentSettings) -> list[str]:
    """Return what the methods share, what tuning made different, and what the critic had before."""
    sizes = settings.sizes
    warm, training = sizes.warm_start, sizes.training
    budget = training.num_steps * training.num_requests * training.num_candidates
    chosen = [_config_of(method, settings) for method in trained]
    facts = [
        "One warm start per seed is shared by all methods. In RL each has as many steps and "
        f"{budget:,} ranker evaluations."
    ]
    if len({c.num_requests for c in chosen}) > 1:
        facts.append("Tuning gave some more candidates for fewer requests, at equal evaluations.")
    else:
        facts.append("They meet the same requests and random streams.")
    seen = warm.critic.num_steps * warm.num_requests * warm.num_candidates
    facts.append(
        f"The critic, which only HEPO and PPO use, is trained in the warm start on {seen:,} ranker "
        "evaluations. These come on top of their budget."
    )
    if training.critic_warmup_steps:
        facts.append(
            f"In the first {training.critic_warmup_steps} of {training.num_steps} steps they train "
            "it alone, so they have fewer policy updates."
        )
    updates = {c.num_steps * c.num_epochs for c in chosen}
    if len(updates) == 1 and not training.critic_warmup_steps:
        facts.append(
            f"All methods may make {updates.pop():,} policy updates; a step ends early where a "
            "policy has moved far (`kl_stop`)."
        )
    scored = DistilConfig().num_requests * sizes.distil_steps
    facts += [
        f"`{name}` imitates the rankers' best paths of {times * scored:,} requests, all of whose "
        "ads are scored: the architecture's upper bound at that budget, and no rival."
        for name, times in DISTILLED.items()
        if name in settings.methods
    ]
    return facts


def _config_of(method: str, settings: AlignmentSettings) -> Any:
    """Return what a method is trained with: its defaults, or what tuning chose."""
    plain = method_config(method, settings.sizes.training)
    return with_choice(plain, settings.tuned_file(method))


def _hyper_parameters(
    methods: Sequence[str], settings: AlignmentSettings, num_levels: int
) -> Table:
    sizes = settings.sizes
    rows: list[list[Cell]] = []
    for method in methods:
        config = _config_of(method, settings)
        built, rate = make_method(method, config, num_levels)
        own = [
            f"{name} {getattr(config, name):g}"
            for name in search_space(method)
            if name not in ("learning_rate", "kl_penalty", "clip")
        ]
        critic = "yes" if built.uses_critic else "no"
        leash = "its own" if built.uses_reference else f"{config.kl_penalty:g}"
        rows.append([method, f"{rate:g}", critic, f"{config.clip:g}", leash, ", ".join(own)])
    config = sizes.training
    budget = config.num_steps * config.num_requests * config.num_candidates
    return Table(
        "Hyper-parameters",
        ["method", "learning rate", "critic", "clip", "KL weight", "own"],
        rows,
        f"Unless said: {config.num_steps} steps of {config.num_requests} requests x "
        f"{config.num_candidates} candidates = {budget:,} ranker evaluations, "
        f"{config.num_epochs} epochs, Adam, gradients clipped at {config.max_grad_norm:g}. The KL "
        "penalty towards the warm start is no part of the published methods; all rows carry it "
        "whose loss has no reference of its own. clip: where the loss has one.",
    )
