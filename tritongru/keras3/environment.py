"""Whether the Keras that is installed can hold this package's computation."""

from __future__ import annotations

import importlib

LEAST = (3, 5)


def check_keras() -> None:
    """Import Keras and check its version and backend.

    Raises:
        ImportError: Keras is not installed, older than 3.5, or runs on another backend than torch.
    """
    try:
        keras = importlib.import_module("keras")
    except ImportError as error:
        if error.name in ("tensorflow", "jax"):
            raise ImportError(refuse_backend(error.name)) from error
        raise ImportError(
            f"tritongru.keras3 needs Keras 3.5 or later, which cannot be imported ({error}): "
            "pip install tritongru[keras]"
        ) from error
    version = str(keras.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST:
        raise ImportError(f"tritongru.keras3 needs Keras 3.5 or later, and Keras {version} is installed")
    backend = keras.config.backend()
    if backend != "torch":
        raise ImportError(refuse_backend(backend))


def refuse_backend(backend: str) -> str:
    """Return what to do about a Keras on `backend`."""
    return (
        f"tritongru.keras3 needs Keras on its torch backend, and KERAS_BACKEND is {backend!r}: set the environment "
        "variable KERAS_BACKEND=torch before keras is imported the first time"
    )
