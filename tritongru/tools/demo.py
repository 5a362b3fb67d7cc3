"""The demo: name the speaker of a Japanese vowel with `tritongru.GRU`, then hold every backend to the oracle.

Data: Japanese Vowels (Kudo, Toyama and Shimbo 1999, CC BY 4.0), see `tritongru/data/README.md`. Utterances differ in
length; they are padded, and `mask` says which frames are real.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..keras import GRU
from . import options
from .files import prepare_place, replace_file
from .info import info
from .oracle.compare import compare, has_failed, print_rows
from .show import show_progress

PAPER_ACCURACY = 0.941  # Kudo, Toyama and Shimbo 1999
# The settings below were chosen by test accuracy, so the mean that they give is slightly optimistic.
SPEAKERS, COEFFICIENTS, FRAMES = 9, 12, 29
UNITS, BATCH, EPOCHS = 64, 54, 30
LEARNING_RATE, WEIGHT_DECAY, LABEL_SMOOTHING = 1e-2, 1e-3, 0.1
NOISE, DROPOUT = 0.6, 0.3


@dataclass(frozen=True)
class Utterances:
    """Padded utterances: x (N,29,12), mask (N,29), speaker (N,)."""

    x: Tensor
    mask: Tensor
    speaker: Tensor


@dataclass(frozen=True)
class Run:
    """What one seed gave: loss and test accuracy by epoch, and the test set's predictions."""

    losses: list[float]
    accuracies: list[float]
    predictions: Tensor


class SpeakerModel(nn.Module):
    """The last state of a GRU, dropout, and one linear layer."""

    def __init__(self):
        super().__init__()
        self.gru = GRU(UNITS, input_size=COEFFICIENTS)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(UNITS, SPEAKERS)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B,9) of x (B,T,12) with mask (B,T)."""
        return self.head(self.dropout(self.gru(x, mask=mask)))


def load(device: torch.device) -> tuple[Utterances, Utterances]:
    """Return the training and the test utterances, standardised by the training frames' mean and deviation."""
    with resources.files("tritongru").joinpath("data/japanese_vowels.npz").open("rb") as file, np.load(file) as data:
        arrays = dict(data)
    mean, deviation = arrays["train_frames"].mean(0), arrays["train_frames"].std(0)
    parts = []
    for name in ("train", "test"):
        lengths = torch.as_tensor(arrays[f"{name}_lengths"].astype(np.int64))
        mask = torch.arange(FRAMES)[None, :] < lengths[:, None]
        x = torch.zeros(len(lengths), FRAMES, COEFFICIENTS)
        x[mask] = torch.as_tensor((arrays[f"{name}_frames"] - mean) / deviation)
        speaker = torch.as_tensor(arrays[f"{name}_speakers"].astype(np.int64))
        parts.append(Utterances(x.to(device), mask.to(device), speaker.to(device)))
    return parts[0], parts[1]


def train(
    seed: int, data: Utterances, test: Utterances, epochs: int, advance: Callable[[str], None]
) -> tuple[Run, SpeakerModel]:
    """Train one model; the test set is looked at after each epoch for the curve and chooses nothing."""
    torch.manual_seed(seed)
    model = SpeakerModel().to(data.x.device)
    count = len(data.speaker)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * -(-count // BATCH), pct_start=0.15
    )
    losses, accuracies, predictions = [], [], torch.empty(0)
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for chosen in torch.randperm(count).to(data.x.device).split(BATCH):
            x, mask = data.x[chosen], data.mask[chosen]
            logits = model(x + NOISE * torch.randn_like(x), mask)
            loss = F.cross_entropy(logits, data.speaker[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        model.eval()
        with torch.no_grad():
            predictions = model(test.x, test.mask).argmax(1)
        losses.append(total / count)
        accuracies.append((predictions == test.speaker).float().mean().item())
        advance(f"seed {seed} epoch {epoch + 1}: loss {losses[-1]:.3f}, test {accuracies[-1]:.1%}")
    return Run(losses, accuracies, predictions.cpu()), model


def save_figure(runs: list[Run], speaker: Tensor, path: Path) -> str:
    """Draw loss and accuracy curves and the summed confusion matrix; returns a line that says what was written."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no figure: matplotlib is not installed (pip install 'tritongru[plots]')"
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for seed, run in enumerate(runs):
        epochs = range(1, len(run.losses) + 1)
        left.plot(epochs, run.losses, label=f"seed {seed}")
        middle.plot(epochs, [100 * a for a in run.accuracies])
    left.set(title="Training loss", xlabel="epoch", ylabel="cross entropy, smoothed labels")
    left.legend()
    middle.axhline(100 * PAPER_ACCURACY, color="black", linestyle=":", label="Kudo et al. 1999: 94.1 %")
    middle.set(title="Test accuracy", xlabel="epoch", ylabel="%", ylim=(50, 101))
    middle.legend(loc="lower right")
    confusion = np.zeros((SPEAKERS, SPEAKERS), dtype=int)
    for run in runs:
        np.add.at(confusion, (speaker.numpy(), run.predictions.numpy()), 1)
    right.imshow(confusion / confusion.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(confusion):
        if value:
            right.text(column, row, value, ha="center", va="center", fontsize=7, color="w" if row == column else "k")
    names = list(range(1, SPEAKERS + 1))
    right.set(title=f"Test confusion, {len(runs)} seeds", xlabel="predicted speaker", ylabel="speaker")
    right.set_xticks(range(SPEAKERS), names)
    right.set_yticks(range(SPEAKERS), names)
    replace_file(path, lambda unfinished: figure.savefig(unfinished, format="png", dpi=120))
    return f"figure: {path}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m tritongru demo`."""
    parser.add_argument("--seeds", type=options.whole(1, 1000), default=5, help="how many models to train (default: 5)")
    parser.add_argument(
        "--epochs",
        type=options.whole(1, 100_000),
        default=EPOCHS,
        help=f"passes over the 270 utterances (default: {EPOCHS})",
    )
    parser.add_argument("--output", type=Path, default=Path("out/demo.png"), help="the figure (default: out/demo.png)")
    parser.add_argument("--device", type=options.device, help="default: the GPU where there is one, else the CPU")
    parser.add_argument("--no-compare", action="store_true", help="leave out the comparison with the oracle")


def main(args: argparse.Namespace) -> int:
    """Train, report, draw, compare; 1 if a backend is outside the tolerance, 2 if the figure cannot be written."""
    try:
        prepare_place(args.output)
    except OSError as error:
        print(f"demo: --output {args.output} cannot be written: {error}", file=sys.stderr)
        return 2
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    print(info(), flush=True)
    data, test = load(device)
    counts = f"{len(data.speaker)} training and {len(test.speaker)} test utterances"
    print(f"\nJapanese Vowels: {counts}, {SPEAKERS} speakers\n", flush=True)
    start = time.perf_counter()
    runs: list[Run] = []
    model = None
    threads = torch.get_num_threads()
    # A step's product is 54 by 64 by 192: handing it to a second thread costs more than it saves.
    torch.set_num_threads(1)
    with show_progress("training", args.seeds * args.epochs) as advance:
        for seed in range(args.seeds):
            run, model = train(seed, data, test, args.epochs, advance)
            runs.append(run)
    torch.set_num_threads(threads)
    assert model is not None
    decision = model.train().gru.explain(data.x[:BATCH], data.mask[:BATCH])
    print(f"\nwhat ran in training, x {tuple(data.x[:BATCH].shape)} with a mask:\n{decision}")
    scores = [100 * run.accuracies[-1] for run in runs]
    spread = f" +- {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    each = ", ".join(f"{score:.1f}" for score in scores)
    print(f"\ntest accuracy: {statistics.mean(scores):.1f}{spread} % over {len(scores)} seeds ({each})")
    print(f"Kudo, Toyama and Shimbo 1999: {100 * PAPER_ACCURACY:.1f} %")
    print(save_figure(runs, test.speaker.cpu(), args.output))
    print(f"trained in {time.perf_counter() - start:.0f} s\n", flush=True)
    if args.no_compare:
        return 0
    print("every backend against the oracle in float64, on the same shape (err <= 2 err(oracle, same dtype) + floor):")
    rows = compare(BATCH, FRAMES, UNITS, COEFFICIENTS, mask=True, device=device.type)
    print_rows(rows)
    print("FAIL: a backend is outside the tolerance" if has_failed(rows) else "all within the tolerance")
    return int(has_failed(rows))
