"""The module under `compat.GRU`: parameters as torch.nn.GRU names them, and what torch's tools do with a GRU's module.

The parameters are read by name at every call, so parametrizations, `functional_call` and tensors swapped in by a
wrapper are always the ones used.
"""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from .tracing import TorchGRU

ASSIGNED = "_assigned_weights"  # where a layer has the tensors that were assigned to its `_flat_weights`


class NamedWeights(nn.RNNBase):
    """An RNNBase that keeps no second list of its weights, and can become a torch.nn.GRU."""

    # What a layer has that was pickled as a torch.nn.GRU and is loaded as a compat.GRU.
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    gradient_clip: float | None = None
    layer_norm: str | None = None
    heads: int = 1
    backend: str = "auto"

    def to_torch(self) -> nn.GRU:
        """Return a torch.nn.GRU that shares this layer's parameters, for code that knows a GRU by its exact type.

        Raises:
            ValueError: torch.nn.GRU lacks what the layer has (recurrent dropout, zoneout, a bound of the state's
                gradient, a norm, heads), `backend` names one that is not torch's own, or a weight is computed by a
                parametrization.
        """
        against = []
        for name, plain in (("recurrent_dropout", 0), ("zoneout", 0), ("gradient_clip", None)):
            if (value := getattr(self, name)) != plain:
                against.append(f"{name}={value}, which torch.nn.GRU has not: set it to {plain} first")
        for name, plain in (("layer_norm", None), ("heads", 1)):
            if (value := getattr(self, name)) != plain:
                against.append(f"{name}={value!r}, which torch.nn.GRU has not")
        if self.backend not in ("auto", "aten"):
            against.append(f'backend={self.backend!r}, which torch.nn.GRU has not: set it to "auto" first')
        for name in self._flat_weights_names:
            if not isinstance(getattr(self, name), nn.Parameter):
                against.append(f"{name} is computed, not a parameter: remove its parametrization first")
        if against:
            raise ValueError(f"this {type(self).__name__} cannot be a torch.nn.GRU: {'; '.join(against)}")
        made = TorchGRU(
            self.input_size, self.hidden_size, self.num_layers, self.bias, self.batch_first,
            bidirectional=self.bidirectional, device="meta",
        )  # fmt: skip
        made.dropout = self.dropout  # after the constructor, which would warn of it once more
        for name in self._flat_weights_names:
            setattr(made, name, getattr(self, name))
        if ASSIGNED in self.__dict__:
            made._init_flat_weights()  # else its first call would, for the parameters that it was made with
            made._flat_weights = self._flat_weights
        return made.train(self.training)

    def flatten_parameters(self) -> None:
        """Do nothing; kept for code written for torch.nn.GRU."""

    def __prepare_scriptable__(self) -> nn.GRU:
        """Return what `torch.jit.script` compiles in this layer's place."""
        return self.to_torch()

    @property
    def _flat_weights(self) -> list[Tensor]:
        """The weights in RNNBase's order, read at each use so that none is kept beside the parameters."""
        if ASSIGNED in self.__dict__:
            return list(self.__dict__[ASSIGNED].values())
        # nn.Module looks in three places before it gives up a parameter; this is asked three times a call.
        kept = self._parameters
        return [kept[name] if name in kept else getattr(self, name) for name in self._flat_weights_names]  # type: ignore[misc]

    @_flat_weights.setter
    def _flat_weights(self, values: list[Tensor]) -> None:
        names = self._flat_weights_names
        if len(values) != len(names):
            raise ValueError(f"`_flat_weights` must be the {len(names)} tensors {', '.join(names)}, got {len(values)}")
        self.__dict__.pop(ASSIGNED, None)
        if any(value is not getattr(self, name) for name, value in zip(names, values, strict=True)):
            # Beside the parameters, as in nn.GRU: they stay what their names and an optimizer find.
            self.__dict__[ASSIGNED] = dict(zip(names, values, strict=True))

    def _weight(self, name: str) -> Tensor:
        """Return what a call takes for a weight."""
        return self.__dict__[ASSIGNED][name] if ASSIGNED in self.__dict__ else getattr(self, name)

    def _init_flat_weights(self) -> None:
        # After `to` and the like, and where a weight is set by name, nn.GRU takes its parameters again.
        self.__dict__.pop(ASSIGNED, None)

    def _update_flat_weights(self) -> None:
        pass

    def __setattr__(self, name: str, value) -> None:
        if name == "qconfig":
            warnings.warn(
                "torch.ao.quantization knows torch.nn.GRU by its exact type and leaves a tritongru.compat.GRU as it "
                "is: put `layer.to_torch()` in its place before",
                stacklevel=3,
            )
        if name in self.__dict__.get("_flat_weights_names", ()):
            self._init_flat_weights()
        # RNNBase's own keeps a second list of the weights in step, which does not exist here.
        nn.Module.__setattr__(self, name, value)

    def __setstate__(self, state: dict) -> None:
        # A torch.nn.GRU's state has the list of weights that does not exist here.
        super().__setstate__({name: value for name, value in state.items() if name != "_flat_weights"})
        self._flat_weight_refs = []

    def _replicate_for_data_parallel(self):
        return nn.Module._replicate_for_data_parallel(self)
