"""How large a model is and how much it sees: what loss and speed are set against."""

from torch import nn

from simulators.world.supervision import WindowBatches

_COUNTED_STEPS = 8


def examples_per_step(batches: WindowBatches) -> float:
    """Return how many supervised requests a step has, the mean of a few steps."""
    steps = range(_COUNTED_STEPS)
    return sum(int(batches.windows(step).valid[..., 0].sum()) for step in steps) / len(steps)


def non_embedding_parameters(module: nn.Module, *, critic: bool = False) -> int:
    """Return the trained numbers outside of tables that grow with codes, items or attributes.

    Those of an HHD's HTE count only with `critic`.
    """
    tables = ("embedding.table", "codes", "output", "item.weight", "ads", "shared.weight")
    return sum(
        p.numel()
        for name, p in module.named_parameters()
        if not name.endswith(tables) and (critic or not name.startswith("hte."))
    )
