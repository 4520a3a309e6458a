"""Rankers of one's own, here LightGBM, as reward simulator: `python examples/lightgbm_rankers.py`.

Half a minute on one core. Installed with `python -m pip install -e '.[lightgbm]'`.
"""

import gymnasium
import lightgbm
import numpy as np

from simulators.make import load_world
from simulators.rankers.cards import ranker_card
from simulators.rankers.custom import TabularFeatures, use_rankers
from simulators.world import World


class LightGBMRankers:
    """Boosted trees for clicks, and others for conversions of clicks."""

    def __init__(self, world: World, num_trees: int = 60) -> None:
        self.features = TabularFeatures(world)  # the first method; ready-made columns will do
        self.num_trees = num_trees

    def fit(self, x: np.ndarray, clicked: np.ndarray, converted: np.ndarray) -> None:
        """Learn clicks from all impressions, and conversions from clicks."""
        trial = clicked > 0
        self._boosters = [self._boost(x, clicked), self._boost(x[trial], converted[trial])]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return pCTR and pCVR, [n, 2]."""
        return np.stack([np.asarray(b.predict(x)) for b in self._boosters], axis=1)

    def _boost(self, x: np.ndarray, label: np.ndarray) -> lightgbm.Booster:
        settings = {
            "objective": "binary", "learning_rate": 0.05, "num_leaves": 8, "seed": 0,
            "min_data_in_leaf": max(5, min(100, len(x) // 20)), "lambda_l2": 10.0,
            "feature_fraction": 0.5, "deterministic": True, "num_threads": 1, "verbosity": -1,
        }  # fmt: skip
        return lightgbm.train(settings, lightgbm.Dataset(x, label), self.num_trees)


def main() -> None:
    """Grade both rankers, then play an episode that LightGBM rewards."""
    world = load_world("tiny", seed=0)
    mine = use_rankers(world, LightGBMRankers(world))
    cards = [ranker_card(w) for w in (world, mine)]
    print(f"{'held-out days':25} {'built-in':>9} {'LightGBM':>9} {'truth':>9}")
    for task, group in (("pctr", "overall"), ("pctr", "new ads"), ("pcvr", "overall")):
        for metric in ("auc", "log_loss", "ece", "ratio"):
            values = [card[task][group].get(metric, float("nan")) for card in cards]
            values.append(cards[0][task][group].get(f"{metric}_oracle", float("nan")))
            name = f"{task}, {group}: {metric}"
            print(f"{name:25}" + "".join(f" {value:9.4f}" for value in values))
    env = gymnasium.make("envs:gpr_rl/AdRequest-v0", world=mine)
    _, info = env.reset(seed=0)
    done = False
    while not done:
        legal = info["action_mask"].astype(bool)
        _, reward, done, _, info = env.step(np.flatnonzero(legal)[0])
    print(
        f"ad {info['ad_id']}: pCTR {info['pctr']:.4f}, pCVR {info['pcvr']:.4f}, reward {reward:.1f}"
    )


if __name__ == "__main__":
    main()
