"""A recurrent actor-critic on a task that needs memory, with episodes that begin and end inside the training sequences.

The task: a cue of +1 or -1 is shown once, noise follows for a random number of steps, then a question is asked and the
action must name the cue. A policy without memory earns nothing on average. Episodes end at different times in every
row, so a rollout holds several episodes; `resets` marks where one begins, and one call over the whole rollout gives
what stepping the environment gave.

    python examples/recurrent_rl.py --updates 300

Source: Hausknecht and Stone 2015, Deep Recurrent Q-Learning (arXiv 1507.06527); Mnih et al. 2016 (arXiv 1602.01783).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tritongru.compat import GRU


class Recall:
    """Many copies of the task, stepped together.

    An observation is (cue, noise, question): the cue is nonzero at an episode's first step only, the question is 1 at
    its last one.
    """

    features, actions = 3, 2

    def __init__(self, copies: int, delay: tuple[int, int], seed: int = 0):
        self.copies, self.delay = copies, delay
        self.generator = torch.Generator().manual_seed(seed)
        self.cue = torch.zeros(copies)
        self.left = torch.zeros(copies, dtype=torch.long)
        self.fresh = torch.ones(copies, dtype=torch.bool)
        self._begin(self.fresh)

    def _begin(self, rows: Tensor) -> None:
        low, high = self.delay
        cue = torch.randint(0, 2, (self.copies,), generator=self.generator) * 2.0 - 1
        delay = torch.randint(low, high + 1, (self.copies,), generator=self.generator)
        self.cue, self.left = torch.where(rows, cue, self.cue), torch.where(rows, delay, self.left)

    def observe(self) -> tuple[Tensor, Tensor]:
        """Return the observation (B,3) and where it is an episode's first, (B,) bool."""
        noise = torch.randn(self.copies, generator=self.generator)
        observation = torch.stack((self.cue * self.fresh, noise, (self.left == 0).float()), dim=1)
        return observation, self.fresh.clone()

    def act(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Take action (B,) and return the reward (B,) and where the episode ended, (B,) bool."""
        ended = self.left == 0
        right = (action * 2 - 1) == self.cue
        self.left = self.left - 1
        self.fresh = ended
        self._begin(ended)
        return torch.where(ended, right * 2.0 - 1, torch.zeros(())), ended


class Agent(nn.Module):
    """A GRU with a policy head and a value head."""

    def __init__(self, features: int, actions: int, units: int, backend: str = "auto"):
        super().__init__()
        self.gru = GRU(features, units, backend=backend)
        self.policy = nn.Linear(units, actions)
        self.value = nn.Linear(units, 1)

    def forward(self, x: Tensor, state: Tensor | None, resets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (T,B,A), values (T,B) and the state (1,B,U) of x (T,B,I) with resets (T,B)."""
        output, state = self.gru(x, state, resets=resets)
        return self.policy(output), self.value(output).squeeze(-1), state


@dataclass
class Rollout:
    """What happened over T steps in B copies; `state` (1,B,U) is the state before the first of them."""

    x: Tensor
    resets: Tensor
    actions: Tensor
    rewards: Tensor
    ended: Tensor
    logits: Tensor
    state: Tensor


@torch.no_grad()
def play(agent: Agent, task: Recall, state: Tensor, steps: int) -> tuple[Rollout, Tensor]:
    """Step the task with the agent, one call per step; returns what happened and the state after it."""
    records, first = [], state
    for _ in range(steps):
        x, fresh = task.observe()
        logits, _, state = agent(x[None].to(state.dtype), state, fresh[None])
        action = torch.distributions.Categorical(logits=logits[0]).sample()
        reward, ended = task.act(action)
        records.append((x.to(state.dtype), fresh, action, reward, ended, logits[0]))
    return Rollout(*(torch.stack(values) for values in zip(*records, strict=True)), first), state


def returns_of(r: Rollout, values: Tensor, discount: float) -> Tensor:
    """Return the discounted rewards to the end of each episode, (T,B).

    What follows the rollout counts as the value of its last step where the episode goes on.
    """
    total, out = values[-1].detach(), []
    for reward, ended in zip(r.rewards.flip(0), r.ended.flip(0), strict=True):
        total = reward + discount * total * ~ended
        out.append(total)
    return torch.stack(out[::-1])


def update(agent: Agent, optimizer: torch.optim.Optimizer, r: Rollout, discount: float, entropy: float) -> Tensor:
    """Do one actor-critic step on a rollout, in one call of the GRU, and return the logits of that call."""
    logits, values, _ = agent(r.x, r.state, r.resets)
    policy = torch.distributions.Categorical(logits=logits)
    target = returns_of(r, values, discount).to(values.dtype)
    advantage = (target - values).detach()
    loss = -(policy.log_prob(r.actions) * advantage).mean() + 0.5 * (target - values).square().mean()
    loss = loss - entropy * policy.entropy().mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(agent.parameters(), 1.0)
    optimizer.step()
    return logits.detach()


def train(
    updates: int = 300,
    copies: int = 64,
    steps: int = 24,
    units: int = 32,
    delay: tuple[int, int] = (2, 6),
    rate: float = 1e-2,
    seed: int = 0,
    goal: float = 0.95,
    quiet: bool = True,
) -> dict[str, float]:
    """Train until the mean answer over the last 20 rollouts reaches `goal` (1 is perfect, 0 is chance).

    Returns:
        "answer" (mean reward per question), "updates", "seconds", and "difference": the largest difference between
        the logits of stepping and those of the one call over the rollout, before any update of it.
    """
    torch.manual_seed(seed)
    task = Recall(copies, delay, seed)
    agent = Agent(task.features, task.actions, units)
    optimizer = torch.optim.Adam(agent.parameters(), lr=rate)
    state = torch.zeros(1, copies, units)
    began, difference, recent = time.perf_counter(), 0.0, []
    answer, count = 0.0, 0
    for count in range(1, updates + 1):
        rollout, state = play(agent, task, state, steps)
        logits = update(agent, optimizer, rollout, discount=0.7, entropy=0.01)
        difference = max(difference, float((logits - rollout.logits).abs().max()))
        recent = [*recent[-19:], float(rollout.rewards.sum() / rollout.ended.sum().clamp(min=1))]
        answer = sum(recent) / len(recent)
        if not quiet and count % 20 == 0:
            print(f"update {count:4d}  mean answer {answer:+.3f}  stepping against one call {difference:.1e}")
        if len(recent) == 20 and answer >= goal:
            break
    return {
        "answer": answer,
        "updates": count,
        "seconds": time.perf_counter() - began,
        "difference": difference,
    }


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="a recurrent actor-critic with resets inside sequences")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = train(options.updates, units=options.units, seed=options.seed, quiet=False)
    print("  ".join(f"{name} {value:.4g}" for name, value in result.items()))


if __name__ == "__main__":
    main()
