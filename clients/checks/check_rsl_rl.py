"""rsl_rl: PPO with a recurrent actor and critic, and its exports."""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import torch

PACKAGE = "rsl-rl-lib"


def make_runner():
    from rsl_rl.env import VecEnv
    from rsl_rl.runners import OnPolicyRunner
    from tensordict import TensorDict

    class Env(VecEnv):
        """The observation of three steps ago is to be repeated; an episode ends at random."""

        num_envs, num_actions, max_episode_length, device, cfg = 8, 2, 20, "cpu", {}

        def __init__(self):
            self.episode_length_buf = torch.zeros(8, dtype=torch.long)
            self.past = [torch.randn(8, 2) for _ in range(3)]

        def get_observations(self):
            return TensorDict({"policy": self.past[-1]}, [8])

        def step(self, actions):
            reward = -(actions - self.past[0]).square().mean(1)
            self.past = [*self.past[1:], torch.randn(8, 2)]
            done = torch.rand(8) < 0.1
            return self.get_observations(), reward, done, {"time_outs": torch.zeros(8, dtype=torch.bool)}

    model = {
        "class_name": "RNNModel",
        "rnn_type": "gru",
        "rnn_hidden_dim": 16,
        "rnn_num_layers": 1,
        "hidden_dims": [16],
        "activation": "elu",
    }
    distribution = {"class_name": "GaussianDistribution", "init_std": 1.0}
    algorithm = {
        "class_name": "PPO", "num_learning_epochs": 2, "num_mini_batches": 2, "schedule": "fixed",
        "learning_rate": 1e-3, "rnd_cfg": None, "symmetry_cfg": None,
    }  # fmt: skip
    settings = {
        "num_steps_per_env": 12,
        "save_interval": 100,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": model | {"distribution_cfg": distribution},
        "critic": dict(model),
        "algorithm": algorithm,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        return OnPolicyRunner(Env(), settings, log_dir=None, device="cpu")


def ppo():
    """PPO with a GRU, three iterations of acting and learning"""
    runner, losses = make_runner(), []
    update = runner.alg.update

    def keep():
        losses.append(update())
        return losses[-1]

    runner.alg.update = keep
    with contextlib.redirect_stdout(io.StringIO()):
        runner.learn(3)
    policy = runner.alg.get_policy()
    names = sorted(losses[0])
    return {
        "losses": [[float(loss[name]) for name in names] for loss in losses],
        **{name: p for name, p in policy.named_parameters()},
    }


def export_jit():
    """export_policy_to_jit, loaded and run"""
    runner = make_runner()
    with tempfile.TemporaryDirectory() as folder:
        runner.export_policy_to_jit(folder)
        module = torch.jit.load(Path(folder) / "policy.pt")
    generator = torch.Generator().manual_seed(3)
    return {"actions": torch.stack([module(torch.randn(1, 2, generator=generator)) for _ in range(5)])}


def export_onnx():
    """export_policy_to_onnx, run by onnxruntime"""
    import onnxruntime

    runner = make_runner()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        runner.export_policy_to_onnx(folder)
        session = onnxruntime.InferenceSession(Path(folder) / "policy.onnx")
    h, rows, numbers = np.zeros((1, 1, 16), "float32"), [], np.random.default_rng(3)
    for _ in range(5):
        y, h = session.run(None, {"obs": numbers.normal(size=(1, 2)).astype("float32"), "h_in": h})
        rows.append(y)
    return {"actions": np.stack(rows)}
