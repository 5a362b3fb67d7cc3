"""Stay in Keras 3: words of many lengths, masked, read in both directions; train, save, load, accelerate.

A word has up to nine letters and ends where it ends: an `Embedding(mask_zero=True)` tells the GRU so. The task is
whether its last letter comes after its first in the alphabet. The model is Keras's; its GRU is computed by
tritongru, and its file is one that any Keras reads.

    KERAS_BACKEND=torch python examples/keras3_text.py --epochs 12
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

# Keras settles on a backend when it is imported.
os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np

from tritongru import keras3

LETTERS, LONGEST = 8, 9


def draw_words(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return words (number,LONGEST) of letters 1..LETTERS, zero after their end, and whether last > first."""
    numbers = np.random.default_rng(seed)
    words, answers = np.zeros((number, LONGEST), "int32"), np.zeros((number, 1), "float32")
    for i in range(number):
        word = numbers.integers(1, LETTERS + 1, size=numbers.integers(3, LONGEST + 1))
        words[i, : len(word)] = word
        answers[i] = word[-1] > word[0]
    return words, answers


def make_model(units: int) -> keras.Model:
    """Return the classifier, with the layer of this package."""
    return keras.Sequential(
        [
            keras.layers.Input((LONGEST,), dtype="int32"),
            keras.layers.Embedding(LETTERS + 1, 8, mask_zero=True),
            keras.layers.Bidirectional(keras3.GRU(units, return_sequences=True)),
            keras3.GRU(units, recurrent_dropout=0.1),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )


def predict(model: keras.Model, words: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the model's answers and the seconds they took, the first call apart."""
    model.predict(words, verbose=0)
    begin = time.perf_counter()
    return model.predict(words, verbose=0), time.perf_counter() - begin


def run(epochs: int = 12, words: int = 2000, units: int = 32, seed: int = 0) -> dict:
    """Train, save and load.

    Returns:
        accuracy: on words not seen. difference: the largest between answers before saving and after loading.
        faster: time of Keras's computation of the loaded model over that of ours. switched: what `accelerate` switched.
    """
    keras.utils.set_random_seed(seed)
    model = make_model(units)
    model.compile(keras.optimizers.Adam(5e-3), "binary_crossentropy", metrics=["accuracy"])
    model.fit(*draw_words(words, seed), epochs=epochs, batch_size=64, verbose=0)
    test, answers = draw_words(500, seed + 1)
    accuracy = float(((model.predict(test, verbose=0) > 0.5) == answers).mean())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "words.keras"
        model.save(path)
        loaded = keras.models.load_model(path)
    theirs, slow = predict(loaded, test)  # The file names Keras's class, and Keras computes.
    switched = [str(outcome) for outcome in keras3.accelerate(loaded)]
    ours, fast = predict(loaded, test)
    difference = max(float(np.abs(found - model.predict(test, verbose=0)).max()) for found in (theirs, ours))
    return {"accuracy": accuracy, "difference": difference, "faster": slow / fast, "switched": switched}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--words", type=int, default=2000)
    parser.add_argument("--units", type=int, default=32)
    options = parser.parse_args()
    result = run(options.epochs, options.words, options.units)
    print(f"accuracy on new words: {result['accuracy']:.3f}")
    print(f"saved and loaded, largest difference: {result['difference']:.1e}")
    print("\n".join(result["switched"]))
    print(f"predict, Keras's computation over ours: {result['faster']:.1f} times")


if __name__ == "__main__":
    main()
