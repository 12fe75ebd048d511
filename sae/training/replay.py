"""A function of a batch that runs as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from sae.training.step import Rows

_EAGER = 2  # calls before a recording, in which libraries and kernels get ready


class Replay:
    """Calls a function of rows [n, d] on a device; on CUDA from the third call on as one graph, without the host.

    The function must not read from the device, and numbers that change between calls must lie there. The arguments are
    what a graph depends on besides: for other ones, and for another number of rows, another graph is recorded.
    """

    def __init__(self, function: Callable[[torch.Tensor], None], device: torch.device):
        self._function, self._device = function, device
        self._calls: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def __call__(self, raw: torch.Tensor | Rows, *facts: Hashable) -> None:
        if self._device.type != "cuda":
            self._function(raw[:].to(self._device))
            return
        dtype = raw.matrix.dtype if isinstance(raw, Rows) else raw.dtype
        key = (len(raw), dtype, *facts)
        self._calls[key] = self._calls.get(key, 0) + 1
        if self._calls[key] <= _EAGER:
            self._eager(raw[:].to(self._device))
            return
        if key not in self._graphs:
            rows = raw[:].to(self._device, copy=True)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may go on pinning memory for the next batches.
            with torch.cuda.device(self._device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._function(rows)
            self._graphs[key] = graph, rows
        graph, rows = self._graphs[key]
        if isinstance(raw, Rows):
            torch.index_select(raw.matrix, 0, raw.numbers, out=rows)
        else:
            rows.copy_(raw)
        graph.replay()

    def _eager(self, raw: torch.Tensor) -> None:
        """Calls the function in a stream of its own, which torch requires before a recording."""
        ours, theirs = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        ours.wait_stream(theirs)
        with torch.cuda.stream(ours):
            self._function(raw)
        theirs.wait_stream(ours)
