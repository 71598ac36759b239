"""Reads pages with vLLM's async engine and our model."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psutil  # type: ignore[import-untyped]
from vllm.exceptions import VLLMClientError
from vllm.inputs import TokensPrompt
from vllm.platforms import current_platform
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from ocr_server.engine.checks import DecodingCheck
from ocr_server.engine.core_processes import (
    cpu_seconds,
    end,
    engine_cores,
    engine_processes,
    failed_by_itself,
    kill,
    shared_memory,
)
from ocr_server.engine.pace import Pace
from ocr_server.engine.prompt import PromptEncoder
from ocr_server.engine.sampling import refusal, sampling_params
from ocr_server.engine.steps import Steps
from ocr_server.engine.token_texts import TokenTexts
from ocr_server.errors import DecodingError, EngineFailure, Unavailable
from ocr_server.observability import tracing
from ocr_server.reading.decoding import Decoding
from ocr_server.reading.page import LogprobStep, Page, PageDelta, ScoredToken

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.async_llm import AsyncLLM

    from config import Settings

T = TypeVar("T")

RETRY_AFTER_SECONDS = 5.0
"""`Retry-After` while the engine is not available: an engine does not know how long it will take to load."""

LOADING_THREAD = "load"
"""Name of the thread in which the model is loaded."""
LOADING_ENDS_SECONDS = 2.0
"""How long an engine that is closed while it loads is prevented from starting processes."""


class VllmEngine:
    """vLLM's async engine with our model. It loads in the background."""

    def __init__(self, settings: Settings, check: DecodingCheck, *, dedicated: bool) -> None:
        """Args:
        settings: The server's settings.
        check: Checks decoding options.
        dedicated: Whether the process exists for this engine, so that its garbage collector may be tuned.
        """
        self._settings = settings
        self._check = check
        self._dedicated = dedicated
        self._llm: AsyncLLM | None = None
        self._encoder: PromptEncoder | None = None
        self._loading: asyncio.Future[None] | None = None
        self._cores: list[BaseProcess] = []
        self._processes: list[psutil.Process] = []
        self._shared_memory: set[str] = set()
        self._unavailable: str | None = "The engine has not been started."
        self._pace = Pace()
        self._steps = Steps()
        self._computes_on_cpu = False

    @property
    def retry_after(self) -> float:
        return RETRY_AFTER_SECONDS

    async def check(self, decoding: Decoding) -> None:
        await self._check(decoding)

    def start(self) -> None:
        if self._loading is None:
            self._unavailable = "The model is being loaded."
            self._loading = asyncio.ensure_future(self._load())

    async def loaded(self) -> None:
        """Start, and wait until the engine is ready.

        Raises:
            Exception: The engine failed to load.
        """
        self.start()
        assert self._loading is not None
        await asyncio.shield(self._loading)

    def unavailable(self) -> str | None:
        if self._llm is not None and self._llm.errored:
            return "The engine has stopped working; see the server's log."
        return self._unavailable

    @property
    def steps(self) -> int:
        return self._steps.count

    def has_work(self) -> bool:
        return self._llm is not None and self._llm.output_processor.has_unfinished_requests()

    def cpu_seconds(self) -> float | None:
        if not self._computes_on_cpu:
            return None  # a process that waits for its GPU uses CPU time as well
        return cpu_seconds(self._processes)

    async def failed_by_itself(self) -> bool:
        crashed = self._llm is not None and self._llm.errored
        return await failed_by_itself(self._cores, self._processes, crashed=crashed)

    async def close(self) -> None:
        self._unavailable = "The server is shutting down."
        if not self._dedicated:  # otherwise the check outlives the engine
            await self._check.close()
        llm, self._llm = self._llm, None
        if llm is not None:
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # it would report the shutdown as a crash
            await asyncio.to_thread(llm.shutdown)
        elif self._loading is not None and not self._loading.done():
            self._loading.cancel()
            await _end_while_loading()
        await asyncio.to_thread(end, self._processes, self._shared_memory)

    async def kill(self) -> None:
        """Kill the processes before closing: for an engine that has partly crashed, or that hangs."""
        kill(self._processes)
        await self.close()

    async def read(self, page: Page) -> AsyncGenerator[PageDelta]:
        llm, encoder = self._ready()
        prompt_ids = encoder.encode(page.prompt)
        decoding = self._fit_context(page, prompt_tokens=len(prompt_ids) - 1 + page.image.num_tokens)
        params = sampling_params(decoding)
        prompt = TokensPrompt(prompt_token_ids=prompt_ids, multi_modal_data={"image": [page.image]})
        try:
            (rendered,) = await llm.renderer.render_cmpl_async([prompt])
            trace_headers = tracing.headers() if llm.observability_config.otlp_traces_endpoint else None
            self._steps.count += 1  # the page has been prepared for the engine, in a thread that all pages share
            outputs = llm.generate(rendered, params, request_id=uuid.uuid4().hex, trace_headers=trace_headers)
            async with aclosing(outputs):
                texts = defaultdict[int, TokenTexts](TokenTexts)
                is_first = True
                with self._pace.page() as pace:
                    async for output in outputs:
                        prompt_tokens = len(output.prompt_token_ids or ())
                        for completion in output.outputs:
                            if delta := _delta(completion, prompt_tokens, encoder, texts[completion.index]):
                                if decoding.token_ids:
                                    delta = replace(
                                        delta,
                                        token_ids=tuple(completion.token_ids),
                                        prompt_token_ids=tuple(output.prompt_token_ids or ()) if is_first else (),
                                    )
                                is_first = False
                                yield delta
                        if not output.finished:
                            await pace.wait()
        except VLLMClientError as error:
            raise refusal(error, page.decoding) from error
        except EngineGenerateError as error:
            raise EngineFailure("The engine failed on this page.") from error
        except EngineDeadError as error:
            raise Unavailable(self.unavailable() or "The engine has stopped working.") from error

    def _ready(self) -> tuple[AsyncLLM, PromptEncoder]:
        reason = self.unavailable()
        if reason is not None:
            raise Unavailable(reason)
        assert self._llm is not None
        assert self._encoder is not None
        return self._llm, self._encoder

    def _fit_context(self, page: Page, prompt_tokens: int) -> Decoding:
        """Return the page's decoding options with `max_tokens` limited to what the prompt leaves of the context.

        Raises:
            DecodingError: The prompt alone fills the context.
        """
        context = self._settings.MAX_MODEL_LEN
        left = context - prompt_tokens
        if left < 1:
            raise DecodingError(
                f"The picture and the prompt take {prompt_tokens} tokens, but the model's context is {context} tokens. "
                "Use a shorter prompt or a smaller resolution mode.",
                field="prompt",
                code="context_length_exceeded",
            )
        wanted = page.decoding
        max_tokens = left if wanted.max_tokens is None else min(wanted.max_tokens, left)
        return replace(wanted, max_tokens=max_tokens, min_tokens=min(wanted.min_tokens, max_tokens))

    async def _load(self) -> None:
        try:
            self._llm, self._encoder = await _in_daemon_thread(lambda: build(self._settings, self._steps))
        except Exception:
            self._unavailable = "The model could not be loaded; see the server's log."
            raise
        self._cores = engine_cores()
        self._processes = engine_processes(self._cores)
        self._computes_on_cpu = current_platform.is_cpu()
        self._shared_memory = shared_memory(self._processes)
        if self._dedicated:
            freeze_heap()
        self._unavailable = None


def build(settings: Settings, steps: Steps) -> tuple[AsyncLLM, PromptEncoder]:
    """Load the model, and return the engine and the prompt encoder. Blocks for half a minute to several minutes.

    Args:
        settings: The server's settings.
        steps: Counts the engine's steps from then on.

    Raises:
        LoadError: The model cannot be loaded. The message says what to do.
    """
    from vllm import AsyncEngineArgs
    from vllm.config import StructuredOutputsConfig
    from vllm.tokenizers import cached_tokenizer_from_config
    from vllm.v1.engine.async_llm import AsyncLLM

    from deepseek_ocr.no_repeat_ngram import guard_for
    from ocr_server.engine.preflight import check_architecture, check_memory, explained, gpu_memory, local_model
    from ocr_server.engine.process import engine_process

    on_cpu = current_platform.is_cpu()
    folder, family = local_model(settings.model_path, settings.MODEL_REVISION)
    gpu = None if on_cpu else gpu_memory()
    if on_cpu or gpu is not None:
        check_memory(folder, settings, gpu)
    with explained():
        config = AsyncEngineArgs(
            model=str(folder),
            served_model_name=[settings.MODEL_NAME],
            dtype="bfloat16",
            max_model_len=settings.MAX_MODEL_LEN,
            max_num_seqs=settings.MAX_CONCURRENCY,
            gpu_memory_utilization=settings.GPU_MEMORY_UTILIZATION,
            tensor_parallel_size=settings.TENSOR_PARALLEL_SIZE,
            data_parallel_size=settings.DATA_PARALLEL_SIZE,
            enforce_eager=on_cpu or settings.ENFORCE_EAGER,
            limit_mm_per_prompt={"image": 1},
            # A model that was not trained on JSON may write endless white space where the grammar allows it.
            structured_outputs_config=StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
            # The same picture is rarely read twice, so neither cache would be of use.
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            otlp_traces_endpoint=tracing.engine_endpoint(),
            skip_mm_profiling=on_cpu,  # the KV cache has a fixed size on a CPU, so there is nothing to profile
        ).create_engine_config()
        check_architecture(config.model_config, family)
        config.model_config.logits_processors = [guard_for(config)]
        encoder = PromptEncoder(cached_tokenizer_from_config(config.model_config), family)
        with engine_process(config, fork=on_cpu and config.parallel_config.world_size == 1):
            return AsyncLLM.from_vllm_config(config, stat_loggers=[steps.logger]), encoder


def freeze_heap() -> None:
    """Exclude all existing objects from garbage collection.

    A full collection of what loading has allocated takes a quarter of a second, in which no token is passed on.
    """
    gc.unfreeze()  # objects of an engine that crashed
    gc.collect()
    gc.freeze()


async def _end_while_loading() -> None:
    """Kill the processes that the loading thread starts. The thread itself cannot be interrupted."""
    until = time.monotonic() + LOADING_ENDS_SECONDS
    while time.monotonic() < until and any(thread.name == LOADING_THREAD for thread in threading.enumerate()):
        kill(engine_processes(engine_cores()))
        await asyncio.sleep(0.05)


def _delta(
    completion: CompletionOutput, prompt_tokens: int, encoder: PromptEncoder, texts: TokenTexts
) -> PageDelta | None:
    if completion.finish_reason in ("abort", "error"):
        raise EngineFailure("The engine stopped reading this page.")
    text = encoder.clean(completion.text)
    if not text and not completion.token_ids and completion.finish_reason is None:
        return None
    steps = _logprobs(completion)
    return PageDelta(
        choice=completion.index,
        text=text,
        num_tokens=len(completion.token_ids),
        prompt_tokens=prompt_tokens,
        logprobs=None if steps is None else texts.add(text, steps, is_last=completion.finish_reason is not None),
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
    )


def _logprobs(completion: CompletionOutput) -> list[LogprobStep] | None:
    if completion.logprobs is None:
        return None
    steps: list[LogprobStep] = []
    alternatives: Sequence[Any] = completion.logprobs
    for token_id, candidates in zip(completion.token_ids, alternatives, strict=False):
        ranked = sorted(candidates.items(), key=lambda candidate: candidate[1].rank)
        chosen = candidates[token_id]
        steps.append(
            LogprobStep(
                chosen=ScoredToken(chosen.decoded_token or "", chosen.logprob, token_id),
                top=[ScoredToken(each.decoded_token or "", each.logprob, other) for other, each in ranked],
            )
        )
    return steps


async def _in_daemon_thread(function: Callable[[], T]) -> T:
    """Run a function in a daemon thread, which unlike one of asyncio.to_thread does not keep the process running."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def report(result: T | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, result))

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as failure:
            error = failure
        with suppress(RuntimeError):  # the loop is closed, so nobody waits any more
            loop.call_soon_threadsafe(report, result, error)

    threading.Thread(target=work, name=LOADING_THREAD, daemon=True).start()
    return await done
