"""A trained policy in one file: weights, architecture and vocabulary."""

from dataclasses import asdict
from pathlib import Path

from gpr_rl.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from gpr_rl.models import HHD, HHDConfig
from gpr_rl.schema import InputSpec, with_tuples


def save_policy(model: HHD, path: str | Path, **about: object) -> None:
    """Write policy and critic as safetensors with everything needed to build them again.

    `about` are JSON values kept beside the weights, for instance world, method and seed.
    """
    meta = {"config": asdict(model.config), "spec": asdict(model.spec), "about": about}
    save_checkpoint(path, dict(model.state_dict()), meta)


def load_policy(path: str | Path) -> HHD:
    """Return the policy that `save_policy` wrote, in evaluation mode.

    Raises:
        CheckpointError: The file is missing, damaged, or holds no policy; names the file.
    """
    tensors, meta = load_checkpoint(path)
    if "config" not in meta or "spec" not in meta:
        raise CheckpointError(path, "it holds no policy, its metadata has no model configuration")
    model = HHD(HHDConfig(**meta["config"]), InputSpec(**with_tuples(meta["spec"])))
    model.load_state_dict(tensors)
    return model.eval()
