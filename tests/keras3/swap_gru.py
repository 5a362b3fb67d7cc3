"""A pytest plugin: Keras's own test files see our class where they say `layers.GRU`."""

import keras.src.layers

import tritongru.keras3

keras.src.layers.GRU = tritongru.keras3.GRU


def pytest_configure(config):
    config.addinivalue_line("markers", "requires_trainable_backend: of Keras's tests")
