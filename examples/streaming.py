"""A causal GRU over frames as they arrive: speech-enhancement style, one step per frame, and the latency of a step.

A gain in 0..1 per frequency band is computed for each frame of a noisy spectrum from the frames so far. Stepping gives
what one call over the whole recording gives.

    python examples/streaming.py --units 256 --frames 300

Source: Valin 2018, A Hybrid DSP/Deep Learning Approach to Real-Time Full-Band Speech Enhancement (arXiv 1709.08243).
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

import tritongru
from tritongru.stream import Stream


class Enhancer(nn.Module):
    """A GRU over log spectra and a gain per band."""

    def __init__(self, bands: int, units: int):
        super().__init__()
        self.gru = tritongru.GRU(units, return_sequences=True, input_size=bands)
        self.gain = nn.Linear(units, bands)

    def forward(self, spectra: Tensor) -> Tensor:
        """Return the enhanced spectra (B,T,N) of spectra (B,T,N)."""
        return spectra * self.gain(self.gru(spectra.log1p())).sigmoid()


class LiveEnhancer:
    """An `Enhancer` one frame at a time; a caller that hangs up frees its row with `reset`."""

    def __init__(self, model: Enhancer):
        self.model, self.stream = model, Stream(model.gru)

    @torch.no_grad()
    def step(self, frame: Tensor) -> Tensor:
        """Return the enhanced frame (B,N) of a frame (B,N)."""
        return frame * self.model.gain(self.stream.step(frame.log1p())).sigmoid()


def run(bands: int = 32, units: int = 128, callers: int = 2, frames: int = 200) -> dict[str, float]:
    """Enhance a noisy chirp frame by frame.

    Returns:
        "difference" from one call over all frames, and the "median" and "slowest" step in milliseconds.
    """
    torch.manual_seed(0)
    model = Enhancer(bands, units).eval()
    place = torch.linspace(0, 3, frames)[:, None] - torch.linspace(0, 3, bands)
    spectra = (-8 * place.square()).exp() + 0.3 * torch.rand(callers, frames, bands)
    LiveEnhancer(model).step(spectra[:, 0])  # the first step of a process imports and chooses; it is not timed
    live, enhanced, took = LiveEnhancer(model), [], []
    for frame in spectra.unbind(1):
        began = time.perf_counter()
        enhanced.append(live.step(frame))
        took.append((time.perf_counter() - began) * 1e3)
    with torch.no_grad():
        difference = float((torch.stack(enhanced, 1) - model(spectra)).abs().max())
    return {"difference": difference, "median": sorted(took)[frames // 2], "slowest": max(took)}


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description="a causal GRU over frames, one step at a time")
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--callers", type=int, default=2, help="streams served together, the batch")
    parser.add_argument("--frames", type=int, default=200)
    options = parser.parse_args()
    result = run(units=options.units, callers=options.callers, frames=options.frames)
    print(f"step: median {result['median']:.3f} ms, slowest {result['slowest']:.3f} ms")
    print(f"largest difference from one call over all frames: {result['difference']:.1e}")


if __name__ == "__main__":
    main()
