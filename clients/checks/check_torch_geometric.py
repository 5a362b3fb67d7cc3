"""torch_geometric: GRUAggregation."""

import torch

PACKAGE = "torch_geometric"


def aggregate():
    """GRUAggregation of nodes into graphs, forward and backward"""
    from torch_geometric.nn.aggr import GRUAggregation

    layer = GRUAggregation(5, 7, num_layers=2)
    x = torch.randn(40, 5, requires_grad=True)
    index = torch.randint(0, 6, (40,)).sort().values
    y = layer(x, index)
    y.square().sum().backward()
    return {"y": y, "dx": x.grad, **{f"d{name}": p.grad for name, p in layer.named_parameters()}}


def train():
    """a graph network with it, ten steps of Adam"""
    from torch_geometric.nn import GraphConv
    from torch_geometric.nn.aggr import GRUAggregation
    from torch_geometric.utils import sort_edge_index

    conv = GraphConv(4, 8, aggr=GRUAggregation(4, 4))
    edges = sort_edge_index(torch.randint(0, 20, (2, 60)), sort_by_row=False)
    x, optimizer, losses = torch.randn(20, 4), torch.optim.Adam(conv.parameters(), 0.01), []
    for _ in range(10):
        loss = (conv(x, edges) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses}
