"""Make `tritongru/data/japanese_vowels.npz` from the public text files of the Japanese Vowels recordings.

    python scripts/make_japanese_vowels.py JapaneseVowels_TRAIN.ts JapaneseVowels_TEST.ts

The text format is that of timeseriesclassification.com (`.ts`): one utterance a line, its channels separated by colons,
the frames of a channel by commas, and the speaker's label last. The result holds, for "train" and "test",
`*_frames (total frames,12) float32`, `*_lengths (utterances,) uint8` and `*_speakers (utterances,) uint8` from 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def read_ts(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frames (total,12), lengths and speakers (from 0) of one `.ts` file."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().lower() == "@data") + 1
    frames, speakers = [], []
    for line in filter(str.strip, lines[start:]):
        *channels, speaker = line.split(":")
        values = np.array([channel.split(",") for channel in channels], dtype=np.float64).T
        frames.append(values[~np.isnan(values).any(axis=1)])
        speakers.append(int(speaker) - 1)
    lengths = np.array([len(utterance) for utterance in frames], dtype=np.uint8)
    return np.concatenate(frames).astype(np.float32), lengths, np.array(speakers, dtype=np.uint8)


def main() -> None:
    """Read both files and write the archive."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    default = Path(__file__).parent.parent / "tritongru" / "data" / "japanese_vowels.npz"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    arrays = {}
    for part in ("train", "test"):
        frames, lengths, speakers = read_ts(getattr(arguments, part))
        arrays |= {f"{part}_frames": frames, f"{part}_lengths": lengths, f"{part}_speakers": speakers}
        spread = f"{lengths.min()}-{lengths.max()} frames, {len(set(speakers))} speakers"
        print(f"{part}: {len(lengths)} utterances of {spread}")
    np.savez_compressed(arguments.output, **arrays)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
