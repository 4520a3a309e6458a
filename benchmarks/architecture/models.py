"""The models of the architecture study behind one interface.

Dims: B requests, T tokens, N ads, M organic items, K list entries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from agents.warm_start import logged_critic_loss
from benchmarks.architecture.presets import BASE, GUIDED, RIVALS, ArchitecturePreset, row_config
from benchmarks.architecture.protocol import Protocol
from benchmarks.measure.sizes import non_embedding_parameters
from gpr_rl.decoding import CodeTrie, beam_search
from gpr_rl.models import HHD, HHDConfig, Unvalued
from gpr_rl.models.decoder import Context
from gpr_rl.models.knowledge.providers import Click, HistoryThoughts, InformedPolicy, embed_thoughts
from gpr_rl.models.knowledge.text_embedding import TfidfEmbedder
from gpr_rl.pretraining.auxiliary import AuxiliaryConfig, auxiliary_parts, depth_shares
from gpr_rl.pretraining.mtp import mtp_loss
from gpr_rl.schema import Action, Targets
from simulators.world.history import as_seen
from simulators.world.supervision import WindowBatches
from simulators.world.world import World

_ENTROPY_WEIGHT = 0.01
Rank = Callable[[Tensor], Tensor]
"""Request ids int64 [B] to ads int64 [B, K] of the whole catalogue, -1 where there are fewer."""


@dataclass(frozen=True)
class Studied:
    """A model with what training and evaluation ask of it."""

    module: nn.Module
    loss: Callable[[int], Tensor]
    """Step to loss."""
    rank: Rank
    statistics: Callable[[], dict[str, float]]
    """What shows whether a part has collapsed."""
    batches: WindowBatches
    """What a step learns from."""
    trie: CodeTrie | None
    """The paths that `rank` decodes, without eligibility; None where it scores every ad."""
    trains_critic: bool = False

    @property
    def groups(self) -> list[list[nn.Parameter]]:
        """What is trained, in groups whose gradients are clipped each by its own norm.

        Else the critic's loss would shrink the steps of a policy that learns beside it.
        """
        if not isinstance(self.module, HHD):
            return [list(self.module.parameters())]
        critic = [self.module.hte_parameters()] if self.trains_critic else []
        return [self.module.policy_parameters(), *critic]

    @property
    def num_parameters(self) -> int:
        """All trained numbers."""
        return sum(p.numel() for group in self.groups for p in group)

    @property
    def num_inner_parameters(self) -> int:
        """Those outside of tables."""
        return non_embedding_parameters(self.module, critic=self.trains_critic)


def build(row: str, protocol: Protocol, sizes: ArchitecturePreset, seed: int) -> Studied:
    """Return a row's model, untrained; its weights depend on the seed alone."""
    batches = WindowBatches(
        protocol.world,
        seed,
        sizes.num_windows,
        sizes.num_positions,
        row_config(row, sizes.model).num_mtp_heads,
        last_time=protocol.until,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make = _rival if row in RIVALS else _hhd
        return make(row, protocol, sizes, batches)


def _rival(
    row: str, protocol: Protocol, sizes: ArchitecturePreset, batches: WindowBatches
) -> Studied:
    world, module = protocol.world, _make_rival(row, protocol, sizes.model)

    def rank(request_id: Tensor) -> Tensor:
        ids = request_id.numpy()
        item = world.sequences.items(world.request_user[ids], world.request_time[ids])
        tokens = world.request(request_id).tokens
        return module.rank(tokens, torch.from_numpy(item), sizes.list_size)

    def loss(step: int) -> Tensor:
        return module.loss(batches.next_ads(step))

    return Studied(module, loss, rank, dict, batches, getattr(module, "trie", None))


def _make_rival(row: str, protocol: Protocol, model: HHDConfig) -> Any:
    from gpr_rl.models import rivals

    world = protocol.world
    layers = model.num_hsd_layers
    shape: dict[str, Any] = {"dim": model.dim, "num_heads": model.num_heads}
    if row == "popularity":
        return rivals.Popularity(protocol.training_ads().bincount(minlength=world.num_ads))
    if row == "sasrec":
        sasrec = rivals.SASRecConfig(**shape, num_layers=layers)
        return rivals.SASRec(sasrec, world.spec, world.num_ads, len(world.item_codes))
    if row == "hstu":
        hstu = rivals.HSTUConfig(**shape, num_layers=layers)
        return rivals.HSTU(hstu, world.spec, world.num_ads)
    shape["num_encoder_layers"] = layers
    if row == "onerec":
        onerec = rivals.OneRecConfig(**shape, num_decoder_layers=model.num_ptd_layers)
        return rivals.OneRec(onerec, world.spec, world.trie)
    assert row == "tiger", row
    # as deep a decoder as its encoder, as in TIGER
    return rivals.TIGER(
        rivals.TIGERConfig(**shape, num_decoder_layers=layers), world.spec, world.trie
    )


def _hhd(
    row: str, protocol: Protocol, sizes: ArchitecturePreset, batches: WindowBatches
) -> Studied:
    world, trie = protocol.world, protocol.world.trie
    control = row.removeprefix("control_")
    is_control = control != row
    config = matched_config(control, world, sizes) if is_control else row_config(row, sizes.model)
    model = HHD(config, world.spec)
    model.hte.reward_scale.fill_(world.reward_scale)
    guided = row in GUIDED
    known = _Knowledge(protocol, config.knowledge_dim) if config.knowledge_dim else None

    def window(step: int) -> tuple[Context, Targets]:
        windows = batches.windows(step)
        targets = batches.targets(windows)
        first = batches.first_requests(windows)
        knowledge = None if known is None else known.of_requests(first)
        return model.window(windows.tokens, targets.position, knowledge), targets

    def loss(step: int) -> Tensor:
        context, targets = window(step)
        logits = model.window_logits(context, targets.codes)
        total = mtp_loss(logits, targets, model.head_logits, _ENTROPY_WEIGHT)
        noise = torch.Generator().manual_seed(batches.seed * 1_000_003 + step)
        parts = auxiliary_parts(model, context, targets, noise)
        total = total + AuxiliaryConfig().total(parts)
        return total + logged_critic_loss(model, world, context, targets) if guided else total

    def rank(request_id: Tensor) -> Tensor:
        policy = model if known is None else InformedPolicy(model, known.provider, known.embed)
        return beam_search(
            policy if guided else Unvalued(policy),
            world.request(request_id),
            trie,
            sizes.list_size,
            value_weight=sizes.value_weight if guided else 0.0,
            renormalize=True,
        ).ad_id

    @torch.no_grad()
    def statistics() -> dict[str, float]:
        context, _ = window(0)
        found = {name: float(share) for name, share in depth_shares(context).items()}
        weights = model.head_logits.softmax(0).tolist()
        if len(weights) > 1:
            found |= {f"head_{number}": weight for number, weight in enumerate(weights, 1)}
        if context.thought is not None and model.refiner is not None:
            refined = model.refiner(context.thought).flatten(0, 1)
            found["refined_std"] = float(refined.std(0).mean())
        return found

    return Studied(model, loss, rank, statistics, batches, trie, guided)


class _Knowledge:
    """The template's texts, as vectors fitted on what may be learned from."""

    def __init__(self, protocol: Protocol, width: int) -> None:
        world = protocol.world
        events = as_seen(world.events)
        taken = events[events["action"] >= int(Action.CLICK)]
        of_kind = [  # organic items, then ads
            frame[["category", maker]].to_numpy()
            for frame, maker in ((world.organic, "creator"), (world.ads, "advertiser"))
        ]
        clicks = []
        columns = taken[["user_id", "timestamp", "kind", "item_id"]]
        for user, time, kind, item in columns.itertuples(index=False):
            category, maker = of_kind[kind][item]
            clicks.append(Click(user, time, f"category_{category}", f"maker_{maker}"))
        self.provider = HistoryThoughts(clicks)
        self._world = world
        users = torch.arange(len(world.users))
        end = torch.from_numpy(protocol.until)
        self.embed = TfidfEmbedder.fit(self.provider.thoughts(users, end), width)

    def of_requests(self, request_id: Tensor) -> Tensor:
        """Return float32 [B, k] of requests."""
        ids = request_id.numpy()
        user, time = self._world.request_user[ids], self._world.request_time[ids]
        return embed_thoughts(
            self.provider, self.embed, torch.from_numpy(user), torch.from_numpy(time)
        )


def matched_config(row: str, world: World, sizes: ArchitecturePreset) -> HHDConfig:
    """Return the base with the narrowest feed-forward networks that give it a row's parameters."""
    base = row_config(BASE, sizes.model)

    def count(multiple: float) -> int:
        return non_embedding_parameters(HHD(replace(base, ffn_multiple=multiple), world.spec))

    row_model = HHD(row_config(row, sizes.model), world.spec)
    wanted = non_embedding_parameters(row_model, critic=row in GUIDED)
    # the counted models draw weights: as many must be made for a control to start as it always did
    own, more, own_again = (count(base.ffn_multiple + extra) for extra in (0, 1, 0))
    wider = math.ceil((wanted - own) * base.dim / (more - own_again))
    return replace(base, ffn_multiple=base.ffn_multiple + wider / base.dim)
