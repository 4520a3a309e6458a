"""TorchRL's GymWrapper and GymEnv around the Gymnasium environments, single and vector."""

import gymnasium
import pytest
import torch
from gymnasium.vector import AutoresetMode
from tensordict import TensorDictBase
from torchrl.envs import ActionMask, GymEnv, GymWrapper, TransformedEnv
from torchrl.envs.utils import check_env_specs

from envs import AdDayEnv, AdDayTorchEnv, AdRequestEnv, AdRequestTorchEnv, AdRequestVectorEnv
from simulators.world import World

ID = "envs:gpr_rl/AdRequest-v0"
DAY_ID = "envs:gpr_rl/AdDay-v0"


def wrapped(world: World, mode: AutoresetMode | str = "disabled", num_envs: int = 4) -> GymWrapper:
    env = AdRequestVectorEnv(num_envs, world, autoreset_mode=mode)
    return GymWrapper(env, categorical_action_encoding=True)


def first_legal(state: TensorDictBase) -> TensorDictBase:
    return state.set("action", state["action_mask"].long().argmax(-1))


def test_single_environments_keep_their_specs(world: World) -> None:
    for env in (
        GymWrapper(AdRequestEnv(world), categorical_action_encoding=True),
        GymWrapper(gymnasium.make(ID, world="tiny"), categorical_action_encoding=True),
        GymEnv(ID, world="tiny", categorical_action_encoding=True),
    ):
        check_env_specs(env, seed=0)
        env.set_seed(5)
        played = env.rollout(9, first_legal)
        assert played["next", "done"].flatten().tolist() == [False, False, True]
        assert played["next", "reward"][-1] > 0


def test_single_days_keep_their_specs_and_play_the_native_days(world: World) -> None:
    rules = {"num_requests": 4}
    native = AdDayTorchEnv(world, [1], **rules)
    native.set_seed(5)
    native.reset()  # GymWrapper seeds by a reset, which counts as an episode
    want = native.rollout(30, first_legal, break_when_any_done=False)[0]
    for env in (
        GymWrapper(AdDayEnv(world, **rules), categorical_action_encoding=True),
        GymWrapper(gymnasium.make(DAY_ID, world="tiny", **rules), categorical_action_encoding=True),
        GymEnv(DAY_ID, world="tiny", categorical_action_encoding=True, **rules),
    ):
        check_env_specs(env, seed=0)
        env.set_seed(5)
        played = env.rollout(30, first_legal, break_when_any_done=False)
        torch.testing.assert_close(played["next", "reward"], want["next", "reward"])
        for key in ("token_codes", "prefix", "level", ("next", "level"), ("next", "truncated")):
            assert torch.equal(played[key], want[key]), key
        assert played["next", "truncated"].sum() > 1
        assert not played["next", "terminated"].any()


def test_a_rule_that_days_do_not_have_is_named(world: World) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_request'; rules of"):
        AdDayEnv(world, num_request=4)


@pytest.mark.parametrize("mode", ["disabled", "same_step"])
def test_vector_environments_keep_their_specs(world: World, mode: str) -> None:
    check_env_specs(wrapped(world, mode), seed=0)


def test_another_mode_is_refused_by_torchrl(world: World) -> None:
    with pytest.raises(RuntimeError, match="must be one of SAME_STEP or DISABLED"):
        wrapped(world, "next_step")


def test_it_plays_what_the_native_environment_plays(world: World) -> None:
    # Not with SAME_STEP: TorchRL loses the last observation of a Dict space and, by one more
    # reset where all rows end together, an episode. With SyncVectorEnv it does the same.
    gym, native = wrapped(world), AdRequestTorchEnv(world, [4])
    native.set_seed(30)
    native.reset()  # GymWrapper seeds by a reset, which counts as an episode
    gym.set_seed(30)
    played = []
    for env in (gym, native):
        played.append(env.rollout(9, first_legal, break_when_any_done=False))
    torch.testing.assert_close(played[0]["next", "reward"], played[1]["next", "reward"])
    for key in ("token_codes", "prefix", "level", ("next", "level"), ("next", "done")):
        assert torch.equal(played[0][key], played[1][key]), key
    assert played[0]["next", "done"].sum() == 12
    # The last observation of an episode is its own, not the next one's first.
    assert (played[0]["next", "level"][:, 2::3] == 3).all()


def test_rows_that_end_early_are_reset_alone(world: World) -> None:
    env = wrapped(world, num_envs=8)
    env.set_seed(1)
    torch.manual_seed(0)
    played = env.rollout(12, break_when_any_done=False)  # the action spec knows no mask
    done, level = played["next", "done"].squeeze(-1), played["level"]
    assert (played["next", "reward"] == -1.0).any()
    assert not (done.any(0) == done.all(0)).all()
    assert (level[:, 1:] == torch.where(done[:, :-1], 0, level[:, :-1] + 1)).all()


def test_masks_and_infos_can_be_had(world: World) -> None:
    torch.manual_seed(0)
    masked = TransformedEnv(wrapped(world), ActionMask())
    reward = masked.rollout(6, break_when_any_done=False)["next", "reward"]
    assert (reward[:, 2::3] > 0).all()
    env = wrapped(world).auto_register_info_dict()
    env.set_seed(30)
    ids = env.rollout(2, first_legal)["request_id"]
    native = AdRequestVectorEnv(4, world)
    native.reset(seed=30)
    assert ids[:, 1].tolist() == native.reset()[1]["request_id"].tolist()
