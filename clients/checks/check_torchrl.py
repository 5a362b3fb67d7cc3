"""torchrl: GRUModule, step by step and over trajectories with resets."""

import torch

PACKAGE = "torchrl"


def make():
    from torchrl.modules import GRUModule

    return GRUModule(
        input_size=5,
        hidden_size=8,
        num_layers=2,
        in_keys=["x", "h"],
        out_keys=["y", ("next", "h")],
    )


def act():
    """GRUModule, acting step by step with resets"""
    from tensordict import TensorDict

    module, h, rows = make(), torch.zeros(6, 2, 8), []
    with torch.no_grad():
        for step in range(8):
            init = torch.rand(6, 1) < (0.3 if step else 2.0)
            data = module(TensorDict({"x": torch.randn(6, 5), "h": h, "is_init": init}, [6]))
            h = data["next", "h"]
            rows.append(data["y"])
    return {"y": torch.stack(rows), "h": h}


def learn():
    """GRUModule, learning over trajectories with resets"""
    from tensordict import TensorDict
    from torchrl.modules import set_recurrent_mode

    module, init = make(), torch.rand(6, 12, 1) < 0.2
    init[:, 0] = True
    data = TensorDict({"x": torch.randn(6, 12, 5), "h": torch.zeros(6, 12, 2, 8), "is_init": init}, [6, 12])
    optimizer, losses = torch.optim.Adam(module.parameters(), 0.01), []
    with set_recurrent_mode(True):
        for _ in range(5):
            y = module(data.clone())["y"]
            loss = (y - 0.3).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return {"losses": losses, "y": y, **{f"d{name}": p.grad for name, p in module.named_parameters()}}


def agree():
    """GRUModule, acting and learning give the same outputs"""
    from tensordict import TensorDict
    from torchrl.modules import set_recurrent_mode

    module, x, init = make(), torch.randn(4, 9, 5), torch.rand(4, 9, 1) < 0.3
    init[:, 0] = True
    h, rows = torch.zeros(4, 2, 8), []
    for step in range(9):
        data = module(TensorDict({"x": x[:, step], "h": h, "is_init": init[:, step]}, [4]))
        h = data["next", "h"]
        rows.append(data["y"])
    whole = TensorDict({"x": x, "h": torch.zeros(4, 9, 2, 8), "is_init": init}, [4, 9])
    with set_recurrent_mode(True):
        y = module(whole)["y"]
    torch.testing.assert_close(torch.stack(rows, 1), y, rtol=1e-5, atol=1e-5)
    return {"y": y}
