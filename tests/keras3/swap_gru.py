"""A pytest plugin: Keras's own test files see our class where they say `layers.GRU`."""


def pytest_configure(config):
    # Here and not above: only where it is named as a plugin, not where this file is merely imported.
    import keras.src.layers

    import tritongru.keras3

    keras.src.layers.GRU = tritongru.keras3.GRU
    config.addinivalue_line("markers", "requires_trainable_backend: of Keras's tests")
