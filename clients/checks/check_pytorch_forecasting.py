"""pytorch_forecasting: its subclass of nn.GRU, which allows length 0, and the network built on it."""

import numpy as np
import torch

PACKAGE = "pytorch-forecasting"


def lengths():
    """its GRU with lengths, zero among them, forward and backward"""
    from pytorch_forecasting.models.nn import GRU

    layer = GRU(3, 6, num_layers=2, batch_first=True)
    x = torch.randn(4, 7, 3, requires_grad=True)
    h = torch.randn(2, 4, 6)
    y, state = layer(x, h, lengths=torch.tensor([7, 0, 3, 5]), enforce_sorted=False)
    (y.square().sum() + state.sum()).backward()
    whole, last = layer(x.detach(), h)
    return {
        "y": y,
        "state": state,
        "dx": x.grad,
        "whole": whole,
        "last": last,
        **{f"d{name}": p.grad for name, p in layer.named_parameters()},
    }


def network():
    """RecurrentNetwork(cell_type="GRU"), an epoch of fit and predict"""
    import lightning.pytorch as pl
    import pandas
    from pytorch_forecasting import RecurrentNetwork, TimeSeriesDataSet
    from pytorch_forecasting.metrics import MAE

    numbers = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "value": np.concatenate([np.sin(np.arange(60) / 4 + i) for i in range(4)]).astype("float32"),
            "time": np.tile(np.arange(60), 4),
            "series": np.repeat([str(i) for i in range(4)], 60),
            "known": numbers.normal(size=240).astype("float32"),
        }
    )
    data = TimeSeriesDataSet(
        frame, time_idx="time", target="value", group_ids=["series"], max_encoder_length=12, min_encoder_length=4,
        max_prediction_length=3, time_varying_unknown_reals=["value"], time_varying_known_reals=["known"],
    )  # fmt: skip
    loader = data.to_dataloader(train=False, batch_size=32, num_workers=0)
    # Without dropout: of packed rows, torch.nn.GRU draws its masks in another order.
    model = RecurrentNetwork.from_dataset(data, cell_type="GRU", hidden_size=8, rnn_layers=2, dropout=0.0, loss=MAE())
    trainer = pl.Trainer(
        max_epochs=1, limit_train_batches=5, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, loader)
    model.eval()
    x, _ = next(iter(loader))
    with torch.no_grad():
        prediction = model(x)["prediction"]
    return {"prediction": prediction, **{name: p for name, p in model.rnn.named_parameters()}}
