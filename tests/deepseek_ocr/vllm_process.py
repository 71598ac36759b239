"""Run by the tests in a process of its own, because vLLM keeps global state.

    python vllm_process.py generate JOB.json
    python vllm_process.py load JOB.json

The result is written as JSON to the file that the job names.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1")

import torch
from PIL import Image
from vllm import LLM, EngineArgs, SamplingParams
from vllm.config import set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.model_executor.model_loader import base_loader, get_model

import deepseek_ocr
from deepseek_ocr.images import prepare_image
from deepseek_ocr.modes import MODES

SAMPLED = 101
"""Only every n-th element is checked, which is enough to find each expert and each part of a fused matrix."""


def generate(job: dict[str, Any]) -> dict[str, Any]:
    """Return greedy answers to all requests, with the log probabilities of the whole vocabulary."""
    llm = LLM(
        job["checkpoint"],
        dtype="float32",
        max_model_len=2048,
        enforce_eager=True,
        max_logprobs=-1,
        limit_mm_per_prompt={"image": 2},
        skip_mm_profiling=True,
        enable_prefix_caching=False,
    )
    prompts = []
    for request in job["requests"]:
        pictures: list[Any] = [Image.open(path).convert("RGB") for path in request["pictures"]]
        options = request["options"]
        if request["prepared"]:
            mode = MODES["gundam"].with_changes(options)
            pictures, options = [prepare_image(picture, mode) for picture in pictures], {}
        prompts.append(
            {
                "prompt": request["prompt"],
                "multi_modal_data": {"image": pictures},
                "mm_processor_kwargs": options,
            }
        )
    params = SamplingParams(temperature=0, max_tokens=job["steps"], logprobs=-1, ignore_eos=True, detokenize=False)
    answers = []
    for output in llm.generate(prompts, params, use_tqdm=False):
        (completion,) = output.outputs
        answers.append(
            {
                "prompt_ids": list(output.prompt_token_ids),
                "ids": list(completion.token_ids),
                "logprobs": [[step[token].logprob for token in sorted(step)] for step in completion.logprobs],
            }
        )
    return {"model": type(model_of(llm)).__module__, "answers": answers}


def model_of(llm: LLM) -> torch.nn.Module:
    (model,) = llm.apply_model(lambda model: model)
    return model


def load(job: dict[str, Any]) -> dict[str, Any]:
    """Load each checkpoint, and return the parameters that were not loaded, or the error."""
    if not torch.accelerator.is_available():  # as vLLM's worker for the CPU does
        torch.accelerator.empty_cache = lambda: None
    init_distributed_environment(1, 0, f"tcp://127.0.0.1:{job['port']}", 0, "gloo")
    results = []
    for checkpoint in job["checkpoints"]:
        config = EngineArgs(checkpoint, dtype="bfloat16", max_model_len=2048, enforce_eager=True).create_engine_config()
        with set_current_vllm_config(config), every_parameter_set_to(7.0) as parameters:
            ensure_model_parallel_initialized(1, 1)
            try:
                model = get_model(vllm_config=config)
            except ValueError as error:
                results.append({"error": str(error)})
                continue
        results.append(
            {
                "model": type(model).__module__,
                "parameters": sum(count for count, _ in parameters.values()),
                "untouched": [name for name, (_, untouched) in parameters.items() if untouched],
            }
        )
        del model
    return {"results": results}


@contextmanager
def every_parameter_set_to(value: float) -> Any:
    """Set all parameters before weights are loaded. Elements that are `value` afterwards were not loaded.

    Yields a dict that loading fills: name → (number of elements, number of checked elements that are still `value`).
    """
    seen: dict[str, tuple[int, int]] = {}
    build, finish = base_loader.initialize_model, base_loader.process_weights_after_loading

    def initialize(*args: Any, **kwargs: Any) -> torch.nn.Module:
        model = build(*args, **kwargs)
        for parameter in model.parameters():
            parameter.data.fill_(value)
        load_weights = model.load_weights

        def load_and_look(weights: Any) -> Any:
            loaded = load_weights(weights)
            for name, parameter in model.named_parameters():
                some = parameter.data.view(-1)[::SAMPLED]
                seen[name] = parameter.numel(), int((some == value).sum())
            return loaded

        model.load_weights = load_and_look
        return model

    base_loader.initialize_model = initialize
    base_loader.process_weights_after_loading = lambda *_: None  # repacking weights for speed takes long
    try:
        yield seen
    finally:
        base_loader.initialize_model, base_loader.process_weights_after_loading = build, finish


def main() -> None:
    task, job_path = sys.argv[1:]
    job = json.loads(Path(job_path).read_text())
    deepseek_ocr.register()
    result = {"generate": generate, "load": load}[task](job)
    Path(job["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
