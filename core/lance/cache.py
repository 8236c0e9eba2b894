"""Keys and values of a context, in buffers that grow by doubling so that a decoded token copies nothing old."""

from __future__ import annotations

import torch


class LayerCache:
    """One layer's keys (after qk-norm and rotation) and values: [capacity, kv heads, head dim] each."""

    def __init__(self, owner: KVCache) -> None:
        self.owner = owner
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def extend(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write rows [n, kv heads, head dim] behind the kept ones; returns all rows up to and with them."""
        start, stop = self.owner.length, self.owner.length + k.shape[0]
        if self.keys is None or self.values is None or self.keys.shape[0] < stop:
            self._grow(stop, k)
        assert self.keys is not None and self.values is not None
        self.keys[start:stop] = k
        self.values[start:stop] = v
        return self.keys[:stop], self.values[:stop]

    def _grow(self, needed: int, like: torch.Tensor) -> None:
        capacity = max(needed, 2 * (self.keys.shape[0] if self.keys is not None else 0), self.owner.capacity)
        for name in ("keys", "values"):
            old: torch.Tensor | None = getattr(self, name)
            fresh = like.new_empty(capacity, *like.shape[1:])
            if old is not None:
                fresh[: self.owner.length] = old[: self.owner.length]
            setattr(self, name, fresh)


class KVCache:
    """The cache of all layers. ``length`` rows are kept; a call may write behind them without keeping its rows."""

    def __init__(self, num_layers: int, capacity: int = 0) -> None:
        self.length = 0
        self.capacity = capacity
        """Rows to allocate at first use; the buffers grow when this was too little."""
        self._layers = [LayerCache(self) for _ in range(num_layers)]

    def layer(self, index: int) -> LayerCache:
        """The cache of layer ``index``."""
        return self._layers[index]

    def advance(self, rows: int) -> None:
        """Keep the ``rows`` rows that the last call wrote in every layer."""
        self.length += rows
