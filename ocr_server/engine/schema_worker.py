"""Main program of the process in which JSON schemas and grammars are compiled first (see `schemas`).

The server starts it as `python -m ocr_server.engine.schema_worker TOKENIZER SECONDS BYTES`. TOKENIZER is the path of
the model's tokenizer.json, SECONDS the limit of CPU time for each schema, and BYTES the memory that it may take. The
process sends a line when it is ready. Then each line that it receives is a JSON list of a kind (`json_schema`, `regex`,
`choice` or `grammar`) and a text of that kind. It compiles each in a fork of itself, which exceeding a limit ends, and
responds with the line `[status, reason]`: the exit status of the fork, and null if the text can be used, otherwise the
reason, to be shown to the client.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONVERSION_SECONDS = 0.1
"""Limit of the CPU time for converting the text to a grammar, which vLLM does in its event loop."""
MASK_SECONDS = 0.05
"""Limit of the CPU time for finding the tokens that may come next, which the engine does for each step of all pages."""
TRIED_TOKENS = 32
"""Number of tokens that are tried."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SOURCE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
"""Time and place in xgrammar's source, at the beginning of its messages."""
Check = Callable[[str, str], str | None]
"""Returns why a text of a kind cannot be used, None if it can."""


def main(tokenizer: str, seconds: float, memory_bytes: int) -> None:
    """Respond until the server closes the input."""
    _end_with_parent()
    check = _checker(tokenizer)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        kind, text = json.loads(line)
        print(json.dumps(_in_fork(check, kind, text, seconds)), flush=True)


def _in_fork(check: Check, kind: str, text: str, seconds: float) -> tuple[int, str | None]:
    """Check a text in a fork of this process. Returns its exit status and the reason."""
    ours, theirs = os.pipe()
    fork = os.fork()
    if fork == 0:
        _end_with_parent()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), resource.RLIM_INFINITY))
        os.write(theirs, json.dumps(check(kind, text)).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as answer:
        reason = answer.read()
    _, status = os.waitpid(fork, 0)
    return os.waitstatus_to_exitcode(status), json.loads(reason or "null")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _checker(tokenizer: str) -> Check:
    import numpy as np
    import xgrammar
    from transformers import PreTrainedTokenizerFast

    vocabulary = xgrammar.TokenizerInfo.from_huggingface(PreTrainedTokenizerFast(tokenizer_file=tokenizer))
    compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)
    # As in vLLM, with `disable_any_whitespace`.
    style: dict[str, Any] = {"any_whitespace": False, "separators": (",", ":")}

    def grammar_of(kind: str, text: str) -> xgrammar.Grammar:
        if kind == "json_schema":
            return xgrammar.Grammar.from_json_schema(text, **style)
        if kind == "regex":
            return xgrammar.Grammar.from_regex(text)
        return xgrammar.Grammar.from_ebnf(_choices(json.loads(text)) if kind == "choice" else text)

    def check(kind: str, text: str) -> str | None:
        if "\0" in text:
            return "must not contain the character NUL"
        try:
            began = time.process_time()
            grammar = grammar_of(kind, text)
            if time.process_time() - began > CONVERSION_SECONDS:
                return "is too complex"
            matcher = xgrammar.GrammarMatcher(compiler.compile_grammar(grammar))
        except Exception as error:
            if isinstance(error, MemoryError) or "bad_alloc" in str(error):
                os.abort()
            first, *_ = str(error).strip().splitlines() or [repr(error)]
            return f"cannot be used: {_SOURCE.sub('', first)[:300].rstrip('.')}"
        mask = xgrammar.allocate_token_bitmask(1, vocabulary.vocab_size)
        for _ in range(TRIED_TOKENS):
            began = time.process_time()
            matcher.fill_next_token_bitmask(mask)
            if time.process_time() - began > MASK_SECONDS:
                return "is too complex"
            (allowed,) = np.nonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little"))
            if not len(allowed) or not matcher.accept_token(int(allowed[0])) or matcher.is_terminated():
                break
        return None

    return check


def _choices(choices: list[str]) -> str:
    """Return the grammar of any of these texts, as vLLM writes it."""
    return "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
