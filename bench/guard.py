"""The cost of one step of the n-gram guard."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.worker.gpu.sample.logits_processor import interface as v2

from bench import upstream
from bench.compare import Row, compared, in_turn, scaled
from deepseek_ocr.guard import MAX_NGRAM_SIZE, MAX_WINDOW_SIZE
from deepseek_ocr.no_repeat_ngram import NoRepeatNGramV1, NoRepeatNGramV2

N = 30
VOCABULARY = 129_280
LENGTH = 2000
"""Number of tokens that each answer already has."""


def run(quick: bool) -> list[Row]:
    sequences = (1, 8) if quick else (1, 16, 64, 256)
    rows = [_v1(window, count, quick) for window in (90, 1024) for count in sequences]
    rows += [_v2(window, count, quick) for window in (90, 1024) for count in sequences]
    return [*rows, _v2_with_large_settings(quick)]


def _answers(count: int, length: int = LENGTH) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for _ in range(count)]


def _config() -> Any:
    model = SimpleNamespace(
        skip_tokenizer_init=False,
        hf_config=None,
        tokenizer=str(upstream.CHECKPOINT),
        runner_type="generate",
        tokenizer_mode="auto",
        tokenizer_revision=None,
        trust_remote_code=False,
    )
    return SimpleNamespace(model_config=model, speculative_config=None)


def _v1(window: int, count: int, quick: bool) -> Row:
    """Measure a step of vLLM's runner V1: every answer gets a token, and the guard masks the logits of the next one."""
    cpu = torch.device("cpu")
    params = SamplingParams(
        extra_args={"ngram_size": N, "window_size": window, "whitelist_token_ids": [VOCABULARY - 1]}
    )
    steps = []
    for processor in (NoRepeatNGramV1(_config(), cpu, False), upstream.guard()(_config(), cpu, False)):
        answers = _answers(count)
        rows: Any = [(row, params, [], answer) for row, answer in enumerate(answers)]
        processor.update_state(BatchUpdate(count, [], rows, []))
        logits = torch.zeros(count, VOCABULARY)
        rng = random.Random(1)

        def step(
            processor: Any = processor,
            answers: list[list[int]] = answers,
            logits: torch.Tensor = logits,
            rng: random.Random = rng,
        ) -> None:
            for answer in answers:
                answer.append(rng.randrange(VOCABULARY))
            processor.apply(logits)

        steps.append(step)
    calls = max(1, (20 if quick else 2000) // count)
    series = in_turn(*steps, rounds=2 if quick else 9, calls=calls)
    return compared(
        f"guard, runner V1, window {window}, {count} sequences",
        "µs/token",
        scaled(series, 1e6 / count),
        compared_with="vLLM's guard",
        at_most=1 / 5 if window == 90 else 1 / 20,
    )


def _step_v2(history: torch.Tensor, settings: list[tuple[int, int]]) -> Callable[[], object]:
    """Return a function that runs a step of vLLM's runner V2 for answers with these n and windows, on the CPU."""
    count, length = history.shape
    prompt_len = torch.zeros(count, dtype=torch.int32)
    state: Any = v2.LogitsProcRequestState(
        device=torch.device("cpu"),
        max_num_reqs=count,
        vocab_size=VOCABULARY,
        all_token_ids=SimpleNamespace(gpu=history),
        prompt_len=SimpleNamespace(gpu=prompt_len, np=prompt_len.numpy()),
        prefill_len=SimpleNamespace(gpu=prompt_len),
        total_len=SimpleNamespace(gpu=torch.full((count,), length)),
    )
    processor = NoRepeatNGramV2(_config(), state)
    for slot, (n, window) in enumerate(settings):
        args = {"ngram_size": n, "window_size": window, "whitelist_token_ids": []}
        processor.add_request(slot, SamplingParams(extra_args=args))
    slots = torch.arange(count, dtype=torch.int32)
    context = v2.LogitsContext(
        expanded_idx_mapping=slots,
        idx_mapping=slots,
        idx_mapping_np=slots.numpy(),
        expanded_local_pos=torch.zeros_like(slots),
        input_ids=history[:, -1],
        pos=torch.full((count,), length - 1),
        seq_lens_upper_bound_np=np.full(count, length, dtype=np.int32),
    )
    logits = torch.zeros(count, VOCABULARY)

    def step() -> None:
        processor.ends.fill(length - 1)  # as if each answer had got a token since the last step
        processor.apply(logits, context)

    return step


def _v2_with_large_settings(quick: bool) -> Row:
    """Measure what a request with the largest settings costs 63 others in each step."""
    length = 2000 if quick else 8192
    history = torch.tensor(_answers(64, length), dtype=torch.int32)
    usual = [(N, 90)] * 63
    steps = (_step_v2(history, [*usual, (MAX_NGRAM_SIZE, MAX_WINDOW_SIZE)]), _step_v2(history[:63], usual))
    series = in_turn(*steps, rounds=2 if quick else 9, calls=2 if quick else 20)
    return compared(
        f"guard, runner V2, 63 sequences and one with n {MAX_NGRAM_SIZE} and window {MAX_WINDOW_SIZE}",
        "µs/step",
        scaled(series, 1e6),
        compared_with="the 63 alone",
        at_most=4,
    )


def _v2(window: int, count: int, quick: bool) -> Row:
    """Measure a step of vLLM's runner V2, where all rows are processed at once, against a loop over the rows."""
    history = torch.tensor(_answers(count), dtype=torch.int32)
    logits = torch.zeros(count, VOCABULARY)

    def loop() -> None:
        for row in range(count):
            output = history[row].tolist()
            prefix = output[-N + 1 :]
            banned = {
                output[last] for last in range(LENGTH - window + N - 1, LENGTH) if output[last - N + 1 : last] == prefix
            }
            if banned:
                logits[row, list(banned)] = -torch.inf

    calls = max(1, (4 if quick else 100) // count)
    series = in_turn(_step_v2(history, [(N, window)] * count), loop, rounds=2 if quick else 7, calls=calls)
    return compared(
        f"guard, runner V2, window {window}, {count} sequences",
        "µs/token",
        scaled(series, 1e6 / count),
        compared_with="a plain loop, on the CPU",
        note="with a GPU, it runs on the GPU without synchronization",
    )
