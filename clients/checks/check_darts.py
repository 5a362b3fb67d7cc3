"""darts: RNNModel and BlockRNNModel."""

import tempfile
from pathlib import Path

import numpy as np

PACKAGE = "darts"
QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "enable_model_summary": False, "logger": False}


def make_series():
    from darts import TimeSeries

    return TimeSeries.from_values(np.sin(np.arange(90) / 6).astype("float32"))


def rnn_model():
    """RNNModel("GRU"), two epochs of fit, then predict"""
    from darts.models import RNNModel

    model = RNNModel(
        model="GRU", input_chunk_length=12, training_length=16, hidden_dim=10, n_rnn_layers=2, dropout=0.1, n_epochs=2,
        random_state=1, pl_trainer_kwargs=QUIET,
    )  # fmt: skip
    model.fit(make_series())
    return {"forecast": model.predict(8).values()}


def make_block_model():
    from darts.models import BlockRNNModel

    model = BlockRNNModel(
        model="GRU", input_chunk_length=12, output_chunk_length=4, hidden_dim=10, n_rnn_layers=2, n_epochs=2,
        random_state=1, pl_trainer_kwargs=QUIET,
    )  # fmt: skip
    model.fit(make_series())
    return model


def block_model():
    """BlockRNNModel("GRU"), two epochs of fit, then predict"""
    return {"forecast": make_block_model().predict(8).values()}


def to_onnx():
    """BlockRNNModel("GRU").to_onnx, run by onnxruntime"""
    import onnxruntime
    from darts.utils.onnx import run_onnx_prediction

    model = make_block_model()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        model.to_onnx(path)
        session = onnxruntime.InferenceSession(path)
    series = make_series()
    found = run_onnx_prediction(n=8, session=session, series=series).values()
    np.testing.assert_allclose(found, model.predict(8).values(), rtol=1e-4, atol=1e-4)
    return {"forecast": found}
