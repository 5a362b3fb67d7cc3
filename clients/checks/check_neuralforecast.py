"""neuralforecast: its GRU model."""

import numpy as np

PACKAGE = "neuralforecast"


def forecast(**arguments):
    """NeuralForecast with GRU, ten steps of fit, then predict"""
    import pandas
    from neuralforecast import NeuralForecast
    from neuralforecast.models import GRU

    frame = pandas.DataFrame(
        {
            "unique_id": np.repeat(["a", "b", "c"], 80),
            "ds": np.tile(np.arange(80), 3),
            "y": np.concatenate([np.sin(np.arange(80) / 5 + i) for i in range(3)]),
        }
    )
    model = GRU(
        h=4, input_size=16, max_steps=10, encoder_n_layers=2, encoder_hidden_size=12, encoder_dropout=0.1,
        batch_size=3, random_seed=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **arguments,
    )  # fmt: skip
    library = NeuralForecast(models=[model], freq=1)
    library.fit(frame, val_size=8)
    found = library.predict()
    return {"forecast": found["GRU"].to_numpy(), "losses": [loss for _, loss in library.models[0].train_trajectories]}


def recurrent():
    """the same with recurrent=True, which feeds its own forecasts back"""
    return forecast(recurrent=True)
