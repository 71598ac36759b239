"""The no-repeat n-gram guard, for both of vLLM's model runners.

DeepSeek-OCR is decoded greedily, with a guard against loops: a token is banned if it would complete an n-gram that
already occurs in the last `window_size` output tokens. Table cells repeat naturally, so `<td>` and `</td>` are exempt.
The published settings for single pictures are n = 30 and window = 90.

The settings that a request can choose are in `guard.py`.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsContext,
    LogitsProcRequestState,
)
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsProcessor as LogitsProcessorV2,
)

from deepseek_ocr.guard import MAX_WHITELIST, MAX_WINDOW_SIZE, Guard

if TYPE_CHECKING:
    from vllm.config import VllmConfig

EXEMPT_TOKENS = ("<td>", "</td>")
WIDTHS = (128, 1024, MAX_WINDOW_SIZE)
"""Numbers of searched places for which rows are processed together. Each row pays for the least that is enough."""
MAX_PLACES = 1 << 18
"""Number of places that are processed at a time on runner V2. They take about 12 MB, less than the runner's own copy of
the logits, which vLLM measures when it starts."""
UNKNOWN = -2
"""Stands for the length of a sequence whose matches are not known."""
NO_TOKEN = -1


def guard_for(vllm_config: VllmConfig) -> str:
    """Return the guard's class for the model runner of this configuration, as `module:class`."""
    runner_class = NoRepeatNGramV2 if vllm_config.use_v2_model_runner else NoRepeatNGramV1
    return f"{__name__}:{runner_class.__name__}"


class Window:
    """The n-grams in the window of an output, updated as the output grows. A step costs the same for any window size.

    Let the prefix be the last n − 1 tokens. For each i in [max(0, L − window), L − n], if output[i : i + n − 1]
    equals the prefix, then output[i + n − 1] is banned.
    """

    def __init__(self, guard: Guard, exempt: frozenset[int]) -> None:
        """Args:
        guard: Settings with `ngram_size` > 0.
        exempt: Tokens that are never banned.
        """
        self._n = guard.ngram_size
        self._most = guard.window_size - self._n + 1
        """Number of n-grams that fit in the window."""
        self._exempt = exempt
        self._length = 0
        """Length of the output at the last call."""
        self._prefixes: deque[bytes] = deque()
        """Digests of all but the last token of each n-gram in the window, oldest first."""
        self._last: dict[bytes, list[int]] = {}
        """Digest of a prefix → the tokens that followed it, oldest first."""

    def banned(self, output: Sequence[int]) -> set[int]:
        """Return the tokens that must not follow `output`, which must continue the output of the last call."""
        n, length = self._n, len(output)
        for last in range(max(self._length, length - self._most, n - 1), length):
            prefix = _digest(output[last - n + 1 : last])
            self._prefixes.append(prefix)
            self._last.setdefault(prefix, []).append(output[last])
            if len(self._prefixes) > self._most:
                self._forget(self._prefixes.popleft())
        self._length = length
        found = self._last.get(_digest(output[length - n + 1 :])) if length >= n else None
        return set(found) - self._exempt if found else set()

    def _forget(self, prefix: bytes) -> None:
        followers = self._last[prefix]
        del followers[0]
        if not followers:
            del self._last[prefix]


def _digest(tokens: Sequence[int]) -> bytes:
    """Return a hash of `tokens` that is as good as the tokens, but needs the same memory for any number of them."""
    return blake2b(array("i", tokens).tobytes(), digest_size=16).digest()


class NoRepeatNGramV1(LogitsProcessor):
    """The guard for model runner V1 (used by the CPU build, and if Triton is missing)."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.default_exempt = _default_exempt(vllm_config)
        self.rows: dict[int, tuple[Window, list[int]]] = {}
        """Row of the batch → window and output of each request with a guard. vLLM appends to the output."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        _guard(sampling_params)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows, batch_update, self._row)

    def _row(
        self, params: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> tuple[Window, list[int]] | None:
        guard = _guard(params)
        if guard.ngram_size == 0:
            return None
        exempt = self.default_exempt if guard.whitelist_token_ids is None else guard.whitelist_token_ids
        return Window(guard, frozenset(exempt)), output

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        banned = [(row, token) for row, (window, output) in self.rows.items() for token in window.banned(output)]
        if banned:
            rows, tokens = zip(*banned, strict=True)
            logits[list(rows), list(tokens)] = -torch.inf
        return logits


class NoRepeatNGramV2(LogitsProcessorV2):
    """The guard for model runner V2. It processes many rows together on the device, without synchronising with it.

    For each place p of an output, `matches[p]` is the number of tokens before p that equal the last tokens of the
    output, up to n − 1. If it is n − 1, the token at p would complete an n-gram again. When a token is appended, the
    number of p is that of p − 1 before, plus one, if the token before p equals the new token, and 0 otherwise. So the
    cost of a step is one comparison for each token in the window, whatever n is. Rows with windows of a similar size
    are processed together, so that no row pays for the settings of another.
    """

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        if vllm_config.speculative_config is not None:
            raise ValueError("the no-repeat n-gram guard does not support speculative decoding")
        self.req_states = req_states
        self.default_exempt = _default_exempt(vllm_config)
        slots, device = req_states.max_num_reqs, req_states.device
        # The settings of each request slot: on the host for shapes, on the device for the arithmetic.
        self.sizes = np.zeros((slots, 2), dtype=np.int64)
        self.device_sizes = torch.zeros((slots, 2), dtype=torch.int64, device=device)
        self.exempt = torch.full((slots, MAX_WHITELIST), NO_TOKEN, dtype=torch.int64, device=device)
        self.matches = torch.zeros((slots, req_states.all_token_ids.gpu.shape[1]), dtype=torch.uint8, device=device)
        self.ends = np.full(slots, UNKNOWN, dtype=np.int64)
        """Length of the sequence in each slot to which its matches belong."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        _guard(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        guard = _guard(sampling_params)
        self.ends[req_idx] = UNKNOWN
        self.sizes[req_idx] = guard.ngram_size, guard.window_size
        self.device_sizes[req_idx, 0] = guard.ngram_size
        self.device_sizes[req_idx, 1] = guard.window_size
        wanted = self.default_exempt if guard.whitelist_token_ids is None else guard.whitelist_token_ids
        exempt = [token for token in wanted if token < self.req_states.vocab_size]
        self.exempt[req_idx] = exempt[0] if exempt else NO_TOKEN
        for place, token in enumerate(exempt):
            self.exempt[req_idx, place] = token
        return guard.ngram_size > 0

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        slots = ctx.idx_mapping_np
        n, window = self.sizes[slots].T
        ends = ctx.seq_lens_upper_bound_np[: len(slots)].astype(np.int64)
        outputs = ends - self.req_states.prompt_len.np[slots]
        # The matches are not known if the request was interrupted and begun anew. The first token has none.
        unknown = (outputs > 1) & (self.ends[slots] != ends - 1)
        self.ends[slots] = ends
        searched = np.where(n > 0, np.minimum(outputs, window), 0)
        widths = np.select([searched <= 0, *(searched <= width for width in WIDTHS)], [0, *WIDTHS], WIDTHS[-1])
        for width in np.unique(widths[widths > 0]):
            for again in (True, False):
                rows = np.flatnonzero((widths == width) & (unknown == again))
                for first in range(0, len(rows), MAX_PLACES // width):
                    some = rows[first : first + MAX_PLACES // width]
                    step = _Step(self, ctx, logits, _on_device(some, logits.device), int(width))
                    if again:
                        step.match_again(int(n[some].max()))
                    step.ban()
        return logits


class _Step:
    """A step for some rows of the batch, all with the same number of places that are searched."""

    def __init__(
        self, guard: NoRepeatNGramV2, ctx: LogitsContext, logits: torch.Tensor, rows: torch.Tensor, width: int
    ) -> None:
        """Args:
        guard: Its matches are updated.
        ctx: The batch.
        logits: Changed in place; [rows of the batch, vocabulary].
        rows: Indices of the rows.
        width: Number of places at the end of each row that are searched.
        """
        self.matches, self.tokens, self.logits = guard.matches, guard.req_states.all_token_ids.gpu, logits
        slots = ctx.expanded_idx_mapping[rows].long()
        self.slots = slots.unsqueeze(-1)
        self.n, self.window = guard.device_sizes[slots].unsqueeze(-1).unbind(1)  # [rows, 1] each, as all below
        self.exempt = guard.exempt[slots]
        self.prompt = guard.req_states.prompt_len.gpu[slots].long().unsqueeze(-1)
        self.end = (ctx.pos[rows].long() + 1).unsqueeze(-1)
        self.vocabulary = logits.shape[-1]
        self.first_logit = rows.unsqueeze(-1) * self.vocabulary
        self.columns = torch.arange(width, device=logits.device)

    def match_again(self, most_n: int) -> None:
        """Calculate the matches as they were before the last token. `most_n` is the largest n of the rows."""
        end, width = self.end - 1, len(self.columns)
        places = end - width + self.columns
        before = torch.arange(width + most_n, device=places.device) - width - most_n + end
        tokens = self.tokens[self.slots, before.clamp(min=0)]
        generated = before >= self.prompt
        equal = torch.ones_like(places, dtype=torch.bool)
        count = torch.zeros_like(places, dtype=torch.uint8)
        for back in range(1, most_n):
            these = slice(most_n - back, most_n - back + width)
            equal &= (tokens[:, these] == tokens[:, -back].unsqueeze(-1)) & generated[:, these]
            count += equal
        self._store(places, torch.minimum(count, (self.n - 1).clamp(min=0).to(torch.uint8)))

    def ban(self) -> None:
        """Update the matches, and ban the tokens that follow a match of n − 1 tokens."""
        places = self.end - len(self.columns) + self.columns
        before = self.tokens[self.slots, (places - 1).clamp(min=0)]
        tokens = self.tokens[self.slots, places.clamp(min=0)]
        longer = self.matches[self.slots, (places - 1).clamp(min=0)] + 1
        matches = torch.minimum(longer, (self.n - 1).to(torch.uint8))
        matches.masked_fill_((before != tokens[:, -1:]) | (places <= self.prompt), 0)
        self._store(places, matches)
        start = torch.maximum(self.prompt, self.end - self.window)
        banned = (matches >= self.n - 1) & (places >= start + self.n - 1)

        logits = self.logits.view(-1)
        exempt = self.first_logit + self.exempt.clamp(min=0)
        spared = logits[exempt]
        # Adding −inf or 0 gives the same result for equal tokens in any order, unlike assigning.
        values = torch.where(banned, -torch.inf, 0.0).to(logits.dtype)
        logits.scatter_add_(0, (self.first_logit + tokens).flatten(), values.flatten())
        spared = torch.where(self.exempt >= 0, spared, logits[exempt])
        logits.scatter_(0, exempt.flatten(), spared.flatten())

    def _store(self, places: torch.Tensor, matches: torch.Tensor) -> None:
        self.matches[self.slots, places.clamp(min=0)] = matches


def _on_device(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return `rows` on the device, without waiting for it."""
    tensor = torch.from_numpy(rows)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _guard(params: SamplingParams) -> Guard:
    """Return the guard that a request asks for. Raises ValueError if its settings are not allowed."""
    return Guard.from_args(params.extra_args or {})


def _default_exempt(vllm_config: VllmConfig) -> tuple[int, ...]:
    """Return the token ids of `EXEMPT_TOKENS`."""
    tokenizer: Any = cached_tokenizer_from_config(vllm_config.model_config)
    vocabulary = tokenizer.get_vocab()
    return tuple(vocabulary[token] for token in EXEMPT_TOKENS if token in vocabulary)
