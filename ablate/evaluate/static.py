"""Decoding a token a call with shapes that do not change, so that a GPU can replay it as one graph.

Of a model of a few billion parameters nearly all the time of a token goes into starting kernels. A
recorded graph starts them all at once: keys, values and masks lie at places that stay, and where
the next token is written is a number on the device. Where the rows or the room change the graph is
recorded anew; where it cannot be recorded the same calls are made one by one.

Shapes: B rows, L length of the memory, D size of a head.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicLayer

from ablate.evaluate.shapes import cache_name, inner
from ablate.results.log import say

ROOM = 128  # tokens by which the memory grows
WORTH = 8  # tokens for which a recording pays: it costs two or three


class StaticLayer(DynamicLayer):
    """A cache layer with memory for more tokens than were read, all of which attention sees."""

    def __init__(self, at_1: Tensor, room: int) -> None:
        """Take where the next token is written, on the device, and the tokens of memory."""
        super().__init__()
        self._at_1, self.room = at_1, room
        self.memory: tuple[Tensor, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the states (B, heads, tokens, D); return those of the prompt, or all memory."""
        states = (key_states, value_states)
        if not self.memory:
            self.lazy_initialization(key_states, value_states)
            self.memory = tuple(
                each.new_zeros((*each.shape[:2], self.room, each.shape[3])) for each in states
            )
            for memory, each in zip(self.memory, states, strict=True):
                memory[:, :, : each.shape[2]] = each
            self.keys, self.values = states
            return states
        for memory, each in zip(self.memory, states, strict=True):
            memory.index_copy_(2, self._at_1, each)
        self.keys, self.values = self.memory
        return self.keys, self.values


class StaticDecoding:
    """Left-padded prompts and what was generated behind them; `next` generates a token of each."""

    def __init__(self, model: nn.Module, ids_BL: Tensor, mask_BL: Tensor, max_new: int) -> None:
        """Take prompts, and how many tokens will be generated at most."""
        self._model, self._left = model, max_new
        self._room = ids_BL.shape[1] + min(max_new, ROOM)
        self._at_1 = torch.full((1,), ids_BL.shape[1] - 1, device=ids_BL.device)
        layers = inner(model).config.get_text_config().num_hidden_layers
        self._layers = [StaticLayer(self._at_1, self._room) for _ in range(layers)]
        self._cache = {cache_name(model): Cache(layers=list(self._layers))}
        self._free = min(max_new, ROOM)  # places of the memory that nothing is written to
        self._bias_B11L = self._hidden(mask_BL, self._room)
        positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
        self._tokens_B1 = self._read(ids_BL, mask_BL, positions_BL)
        self._positions_B1 = positions_BL[:, -1:].clone()
        self._read_prompts = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._fresh = True  # whether shapes are new since the last token

    def next(self) -> Tensor:
        """Return the most likely next token of every row (B,), which is then read too."""
        if not self._read_prompts:
            self._read_prompts = True
            return self._tokens_B1[:, 0].clone()
        if not self._free:
            self._grow()
        self._free -= 1
        self._left -= 1
        if self._graph is not None:
            self._graph.replay()
        else:
            self._step()  # the first one also makes what a recording needs to find ready
            if self._fresh and min(self._left, self._free) > WORTH:
                self._graph = _recorded(self._step, self._tokens_B1.device)
            self._fresh = False
        return self._tokens_B1[:, 0].clone()

    def keep(self, rows: Tensor) -> None:
        """Go on with the rows of these numbers alone."""
        for layer in self._layers:
            layer.memory = tuple(memory[rows] for memory in layer.memory)
        self._tokens_B1, self._positions_B1 = self._tokens_B1[rows], self._positions_B1[rows]
        self._bias_B11L = self._bias_B11L[rows]
        self._graph, self._fresh = None, True

    def _grow(self) -> None:
        """Make room for more tokens."""
        more = min(ROOM, self._left)
        for layer in self._layers:
            layer.memory = tuple(nn.functional.pad(m, (0, 0, 0, more)) for m in layer.memory)
        blocked = torch.finfo(self._bias_B11L.dtype).min
        self._bias_B11L = nn.functional.pad(self._bias_B11L, (0, more), value=blocked)
        self._free = more
        self._graph, self._fresh = None, True

    def _hidden(self, mask_BL: Tensor, room: int) -> Tensor:
        """Return what is added to attention scores: 0 where a token is, else the lowest number."""
        dtype = next(self._model.parameters()).dtype
        seen_BL = nn.functional.pad(mask_BL, (0, room - mask_BL.shape[1]))
        return (1 - seen_BL[:, None, None].to(dtype)) * torch.finfo(dtype).min

    def _step(self) -> None:
        """Read the tokens, and put the next ones in their place."""
        self._at_1.add_(1)
        self._positions_B1.add_(1)
        self._bias_B11L.index_fill_(3, self._at_1, 0)
        # transformers asks the device whether a 2-D mask hides anything; one of 4 it takes.
        made_B1 = self._read(self._tokens_B1, self._bias_B11L, self._positions_B1)
        self._tokens_B1.copy_(made_B1)

    def _read(self, ids_BL: Tensor, mask: Tensor, positions_BL: Tensor) -> Tensor:
        output = self._model(
            input_ids=ids_BL,
            attention_mask=mask,
            position_ids=positions_BL,
            use_cache=True,
            logits_to_keep=1,
            **self._cache,
        )
        found_B1: Tensor = output.logits[:, -1].argmax(-1, keepdim=True)
        return found_B1


_unrecorded: set[str] = set()  # why graphs could not be recorded; one reason ends the attempts


def _recorded(step: Any, device: torch.device) -> torch.cuda.CUDAGraph | None:
    """Return a graph that does what `step` does, without doing it; None where there can be none."""
    if device.type != "cuda" or _unrecorded:
        return None
    graph, dtype = torch.cuda.CUDAGraph(), torch.get_autocast_dtype("cuda")
    cast = torch.autocast(
        "cuda", dtype, enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False
    )  # what a recording casts must not be taken for what was cast
    stream = _stream(device)
    torch.cuda.synchronize(device)
    try:
        # As torch.cuda.graph has it, without its collection of garbage, which costs many tokens.
        with cast, torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                step()
            finally:
                graph.capture_end()
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        causes = (error, error.__context__)
        if not any(isinstance(cause, torch.OutOfMemoryError) for cause in causes):
            _unrecorded.add(str(error))
            say(f"decoding goes on without a graph: {str(error).splitlines()[0]}")
        return None
    return graph


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which graphs are recorded: each stream has a workspace that stays."""
    return torch.cuda.Stream(device)
