"""The examples do what they say: each is run as a user runs it, or by its functions."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def load(name: str):
    """Import examples/`name`.py as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def start(*command: str) -> str:
    """Run a command from the repository and return what it printed."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")
    environment.pop("RANK", None)
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_recurrent_rl_solves_a_task_that_needs_memory():
    result = load("recurrent_rl").train(updates=300, seed=0)
    assert result["answer"] >= 0.95
    assert result["difference"] < 1e-5


def test_recurrent_rl_one_call_equals_a_loop_in_outputs_and_gradients():
    example = load("recurrent_rl")
    task = example.Recall(5, (1, 3))
    agent = example.Agent(task.features, task.actions, 7).double()
    rollout, last = example.play(agent, task, torch.randn(1, 5, 7, dtype=torch.float64), 12)
    assert rollout.resets[1:].any(), "no episode begins inside the sequence"

    def loop():
        state, rows = rollout.state, []
        for x, fresh in zip(rollout.x, rollout.resets, strict=True):
            state = torch.where(fresh[:, None], torch.zeros_like(state), state)
            output, state = agent.gru(x[None], state, backend="reference")
            rows.append(agent.policy(output)[0])
        return torch.stack(rows), state

    found, _, state = agent(rollout.x, rollout.state, rollout.resets)
    results = []
    for logits, h in ((found, state), loop()):
        agent.zero_grad()
        (logits.square().sum() + h.sum()).backward()
        results.append((logits.detach(), h.detach(), [p.grad.clone() for p in agent.gru.parameters()]))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(found, rollout.logits)
    torch.testing.assert_close(state, last)


@pytest.mark.slow
def test_ddp_two_processes_take_the_steps_of_one(tmp_path):
    alone, together = str(tmp_path / "one.pt"), str(tmp_path / "two.pt")
    script = ["examples/ddp_train.py", "--steps", "8", "--batch", "16", "--save"]
    start(*script, alone)
    start("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *script, together)
    one, two = torch.load(alone, weights_only=True), torch.load(together, weights_only=True)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_ddp_example_learns():
    model, error = load("ddp_train").train(120, time=8, rate=1e-2)
    assert error < 0.08  # answering the mean gives 1/6


def test_keras3_text_learns_saves_and_loads():
    pytest.importorskip("keras")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    result = load("keras3_text").run(epochs=8, words=1000, units=16)
    assert result["accuracy"] > 0.8  # answering always the same gives 0.56
    assert result["difference"] < 1e-5 and len(result["switched"]) == 3


def test_streaming_steps_equal_one_call():
    result = load("streaming").run(frames=50)
    assert result["difference"] < 1e-5
    assert 0 < result["median"] <= result["slowest"]


def test_streaming_runs_from_the_command_line():
    assert "largest difference" in start("examples/streaming.py", "--units", "16", "--frames", "20")


def test_forecast_beats_yesterday():
    result = load("forecast").run(seeds=2, steps=40)
    assert 1 < result["naive"] < 1.5
    # At 80 steps it is better by about a tenth.
    assert sum(result["gru"]) / 2 < 0.97 * result["naive"]


def test_forecast_cuts_at_gaps_and_sees_no_answer():
    example = load("forecast")
    training, test = example.load()
    lengths = torch.cat((training.lengths, test.lengths))
    assert lengths.min() > example.DAY and lengths.max() == example.LONGEST and len(lengths.unique()) > 10
    naive = example.forecast_as_yesterday(test)
    torch.testing.assert_close(naive[:, 20], test.temperature[:, 13:21])
    torch.testing.assert_close(test.target[:, 20], test.temperature[:, 21:29])
    model = example.Forecaster(test.inputs.shape[-1], 4)
    before = model(test)
    test.inputs[:, 21:] = 9.0
    test.temperature[:, 21:] = 9.0
    torch.testing.assert_close(model(test)[:, :21], before[:, :21])
    assert not test.known[test.lengths < 29, 20].all(1).any()
