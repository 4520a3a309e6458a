"""Where things are: a model's device decides."""

from typing import Any

import torch

from agents.actor_critic import ActorCriticModel


def usable_device(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        ValueError: No such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{name} can't be used here: {reason}") from None
    return device


def device_of(model: ActorCriticModel) -> torch.device:
    """Return the device of a model's parameters."""
    return next(iter(model.policy_parameters())).device


def beside(world: Any, model: ActorCriticModel) -> Any:
    """Return a world that answers on the model's device (`World.to`); itself if it does already."""
    device = device_of(model)
    return world if getattr(world, "device", device) == device else world.to(device)
