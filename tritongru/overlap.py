"""Stacked layers at once on a GPU, each a chunk of steps behind the one below it, as cuDNN runs them.

    stream 0   | x 0 | x 1 | x 2 | x 3 |                     layer l runs chunk k once layer l-1 has run it,
    stream 1         | 0   | 1   | 2   | 3   |               and its own chunk k-1
    stream 2               | 0   | 1   | 2   | 3   |

L layers of T steps in chunks of c take as long as T + (L-1) c steps in place of L T. The streams begin where the
caller's stands, and it goes on where they end, so a CUDA graph captures them. autograd runs each node of the backward
pass on the stream of the forward pass, and so the layers overlap there too, the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

# Steps of a chunk for each layer: the host launches the chunks of all layers while the device runs one. An estimate:
# 120 us a chunk beside 2 us a step.
STEPS_A_LAYER = 60
LEAST_GAIN = 1.25

Result = TypeVar("Result")


def gain(steps: int, layers: int, chunk: int) -> float:
    """Return how many times as long the layers take one after another: L T / (T + (L-1) c).

    >>> gain(1000, 2, 100), gain(1000, 1, 1000)
    (1.8181818181818181, 1.0)
    """
    return layers * steps / (steps + (layers - 1) * chunk)


def choose_chunk(steps: int, layers: int) -> int:
    """Return the steps of a chunk: as few as the host can launch in time, and chunks of about the same length.

    >>> choose_chunk(1000, 2), choose_chunk(100, 2), choose_chunk(0, 2)
    (125, 100, 1)
    """
    chunks = max(steps // (STEPS_A_LAYER * layers), 1)
    return max(-(-steps // chunks), 1)


def reasons_against(steps: int, layers: int) -> list[str]:
    """Return why layers had better run one after another; empty: they overlap in chunks of `choose_chunk`."""
    chunk = choose_chunk(steps, layers)
    found = gain(steps, layers, chunk)
    return [] if found >= LEAST_GAIN else [f"chunks of {chunk} of {steps} steps would gain {found:.2f} times"]


def in_order(layers: int, chunks: int) -> Iterator[tuple[int, int]]:
    """Yield layer and chunk in an order in which the host may launch them: those that run at once side by side.

    >>> list(in_order(2, 2))
    [(0, 0), (1, 0), (0, 1), (1, 1)]
    """
    for turn in range(layers + chunks - 1):
        for layer in reversed(range(layers)):
            if 0 <= turn - layer < chunks:
                yield layer, turn - layer


class Lines(Protocol):
    """A line of work for each layer. What is on one line runs in order, lines wait for each other at events alone."""

    def begin(self) -> None:
        """Make all lines wait for what the caller has asked for by now; they may read nothing that it makes later."""
        ...

    def run(self, layer: int, work: Callable[[], Result]) -> Result:
        """Put `work` on a layer's line."""
        ...

    def record(self, layer: int) -> Any:
        """Return an event: all that is on the line by now."""
        ...

    def wait(self, layer: int, event: Any) -> None:
        """Hold back what is put on the line from now on until the event."""
        ...

    def lend(self, value: Any, layer: int) -> None:
        """Keep the memory of a value that another line has made until the layer's line is done with it."""
        ...

    def join(self, values: Sequence[Any]) -> None:
        """Make the caller wait for all lines, whose results `values` are."""
        ...


def run_in_chunks(
    step: Callable[[int, int, Any, Any], tuple[Any, Any]], rows: Sequence[Any], states: Sequence[Any], lines: Lines
) -> tuple[list[Any], list[Any]]:
    """Run every layer over every chunk.

    Args:
        step: of layer, chunk, what enters it and the state; returns what leaves it and the state after it.
        rows: the input's chunks. states: of each layer, the first. These, and what else `step` reads, the caller has
            made before.

    Returns:
        the chunks of the last layer, and the state of each layer after its last chunk.
    """
    rows, states, done = list(rows), list(states), [None] * len(rows)
    lines.begin()
    for layer, chunk in in_order(len(states), len(rows)):
        if layer > 0:
            lines.wait(layer, done[chunk])
        lines.lend(rows[chunk], layer)
        rows[chunk], states[layer] = lines.run(layer, lambda: step(layer, chunk, rows[chunk], states[layer]))  # noqa: B023
        done[chunk] = lines.record(layer)
    lines.join([*rows, *states])
    return rows, states


class _Gate(torch.autograd.Function):
    """Hands tensors on as they are, and their gradients back."""

    @staticmethod
    def forward(ctx, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx, *gradients):
        return gradients


def gate(values: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights of all layers, for lines to read, so that the caller's backward pass goes on after theirs.

    autograd runs a node on the stream of the forward pass, after all nodes that read its result and before those of
    calls made earlier. Where the input wants no gradient, nothing else on the caller's stream would wait for the
    layers, and the waiting programs of an earlier call would meet theirs on a device that has no room for both.
    """
    wanted = [torch.is_grad_enabled() and value.requires_grad for value in values]
    passed = iter(_Gate.apply(*(v for v, want in zip(values, wanted, strict=True) if want)) if any(wanted) else ())
    return [next(passed) if want else value for value, want in zip(values, wanted, strict=True)]


class Streams:
    """Lines on a GPU: a CUDA stream for each layer, kept for later calls."""

    _of_device: dict[torch.device, list[Any]] = {}

    def __init__(self, device: torch.device, layers: int):
        """Take streams for so many layers; the caller's is the device's current one."""
        kept = self._of_device.setdefault(device, [])
        kept += [torch.cuda.Stream(device) for _ in range(layers - len(kept))]
        self._caller, self._streams = torch.cuda.current_stream(device), kept[:layers]

    def begin(self) -> None:
        """Make all streams wait for the caller's, as it stands now."""
        for stream in self._streams:
            stream.wait_stream(self._caller)

    def run(self, layer: int, work: Callable[[], Result]) -> Result:
        """Launch on the layer's stream what `work` launches."""
        with torch.cuda.stream(self._streams[layer]):
            return work()

    def record(self, layer: int) -> torch.cuda.Event:
        """Return an event at the end of the layer's stream."""
        return self._streams[layer].record_event()

    def wait(self, layer: int, event: torch.cuda.Event) -> None:
        """Make the layer's stream wait for an event."""
        self._streams[layer].wait_event(event)

    def lend(self, value: Tensor, layer: int) -> None:
        """Have the allocator wait for the layer's stream before it gives the memory to another tensor."""
        value.record_stream(self._streams[layer])

    def join(self, values: Sequence[Tensor]) -> None:
        """Make the caller's stream wait for all streams, and the allocator for the caller's stream."""
        for stream in self._streams:
            self._caller.wait_stream(stream)
        for value in values:
            value.record_stream(self._caller)
