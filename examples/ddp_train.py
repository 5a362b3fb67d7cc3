"""Data-parallel training of a GRU: every process takes its share of each batch, and all take the same step.

The task is the adding problem: of a sequence of numbers two are marked, and the answer is their sum. Sequences have
different lengths. Any number of processes gives the weights that one process gives, up to rounding.

    torchrun --nproc_per_node 2 examples/ddp_train.py --steps 200
    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_endpoint HOST:29500 examples/ddp_train.py

Source: Hochreiter and Schmidhuber 1997 (the adding problem); torch.nn.parallel.DistributedDataParallel.
"""

from __future__ import annotations

import argparse
import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tritongru.compat import GRU


class Adder(nn.Module):
    """A bidirectional GRU whose last states give one number."""

    def __init__(self, units: int):
        super().__init__()
        self.gru = GRU(2, units, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * units, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the answer (B,) to x (B,T,2) of lengths (B,)."""
        _, h_n = self.gru(x, lengths=lengths)
        return self.head(torch.cat((h_n[0], h_n[1]), dim=1)).squeeze(1)


def make_batch(step: int, batch: int, time: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (B,T,2), lengths (B,) and the answers (B,) of a step; the same in every process."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(time // 2, time + 1, (batch,), generator=generator)
    numbers = torch.rand(batch, time, generator=generator)
    within = torch.arange(time) < lengths[:, None]
    order = torch.rand(batch, time, generator=generator).masked_fill(~within, -1.0)
    marks = torch.zeros(batch, time).scatter_(1, order.topk(2, dim=1).indices, 1.0)
    return torch.stack((numbers, marks), dim=2), lengths, (numbers * marks).sum(1)


def train(steps: int, batch: int = 64, time: int = 20, units: int = 32, rate: float = 5e-3) -> tuple[nn.Module, float]:
    """Train in this process, together with the others of its group where there is one.

    Args:
        batch: sequences per step over all processes; a multiple of their number, so that every share weighs the same.

    Returns:
        The module (unwrapped) and the mean squared error of this process's last share.
    """
    grouped = dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
    if batch % world:
        raise ValueError(f"`batch` must be a multiple of the number of processes, {world}, got {batch}")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = Adder(units).to(device)
    wrapped = DistributedDataParallel(model) if grouped else model
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=rate)
    error = float("nan")
    for step in range(steps):
        share = [value.chunk(world)[rank].to(device) for value in make_batch(step, batch, time)]
        loss = (wrapped(*share[:2]) - share[2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        error = float(loss.detach())
        if rank == 0 and (step + 1) % 50 == 0:
            print(f"step {step + 1:4d}  mean squared error {error:.4f}", flush=True)
    return model, error


def main() -> None:
    """Read the command line, join the group that torchrun describes, train."""
    parser = argparse.ArgumentParser(description="data-parallel training; start it with torchrun, or alone")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64, help="sequences per step over all processes")
    parser.add_argument("--save", help="file for the trained state_dict")
    options = parser.parse_args()
    if "RANK" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    model, _ = train(options.steps, options.batch)
    if options.save and (not dist.is_initialized() or dist.get_rank() == 0):
        torch.save({name: value.cpu() for name, value in model.state_dict().items()}, options.save)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
    # A thread of Gloo may still wait for the interpreter's lock, to let go of its group, and is aborted if Python
    # finalizes meanwhile. Everything is saved and the group is left, so the process ends here.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
