"""The no-repeat n-gram guard for both of vLLM's model runners, compared with a simple search."""

from __future__ import annotations

import itertools
import pickle
import random
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as InterfaceV1
from vllm.v1.worker.gpu.sample.logits_processor import interface as v2

from deepseek_ocr.guard import Guard
from deepseek_ocr.no_repeat_ngram import MAX_PLACES, NoRepeatNGramV1, NoRepeatNGramV2, Window, guard_for

pytestmark = pytest.mark.engine

CHECKPOINT = Path(__file__).parents[2] / "nano" / "checkpoint"
TD, END_TD = 9, 10  # <td> and </td> in that checkpoint's tokenizer
VOCABULARY = 16
CPU = torch.device("cpu")


def banned_by_search(output: Sequence[int], n: int, window: int, exempt: Iterable[int]) -> set[int]:
    """Try every token: it is banned if the last n tokens of the output with it occur in the window already."""
    banned = set()
    searched = output[-window:]
    for token in range(VOCABULARY):
        ending = [*output, token][-n:]
        if n == 0 or len(ending) < n or token in set(exempt):
            continue
        if any(list(searched[i : i + n]) == ending for i in range(len(searched) - n + 1)):
            banned.add(token)
    return banned


def vllm_config(**changes: Any) -> Any:
    model = SimpleNamespace(
        skip_tokenizer_init=False,
        hf_config=None,
        tokenizer=str(CHECKPOINT),
        runner_type="generate",
        tokenizer_mode="auto",
        tokenizer_revision=None,
        trust_remote_code=False,
    )
    return SimpleNamespace(**({"model_config": model, "speculative_config": None} | changes))


def params(**settings_: Any) -> SamplingParams:
    return SamplingParams(extra_args=settings_ or None)


@dataclass
class Request:
    """A request with short settings, so that bans are frequent."""

    seed: int
    n: int = field(init=False)
    window: int = field(init=False)
    exempt: tuple[int, ...] | None = field(init=False)
    prompt: list[int] = field(init=False)
    output: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.choice = random.Random(self.seed)
        self.n = self.choice.choice([0, 1, 2, 2, 3, 4])
        self.window = max(1, self.n) + self.choice.choice([0, 1, 3, 9, 40])
        self.exempt = self.choice.choice([None, (), (8,), (8, TD)])
        self.prompt = self.choice.choices(range(8, 12), k=self.choice.randrange(12))
        self.generate(self.choice.randrange(30))

    def generate(self, count: int) -> None:
        self.output.extend(self.choice.choices(range(8, 12), k=count))

    @property
    def params(self) -> SamplingParams:
        args: dict[str, Any] = {"ngram_size": self.n, "window_size": self.window}
        if self.exempt is not None:
            args["whitelist_token_ids"] = list(self.exempt)
        return params(**args)

    def banned(self) -> set[int]:
        exempt = (TD, END_TD) if self.exempt is None else self.exempt
        return banned_by_search(self.output, self.n, self.window, exempt)


def assert_banned(before: torch.Tensor, after: torch.Tensor, banned: Sequence[set[int]]) -> None:
    expected = before.clone()
    for row, tokens in enumerate(banned):
        expected[row, list(tokens)] = -torch.inf
    torch.testing.assert_close(after, expected, rtol=0, atol=0)


class TestSearch:
    @settings(max_examples=300)
    @given(
        output=st.lists(st.integers(0, 3), max_size=40),
        n=st.integers(1, 6),
        window=st.integers(1, 45),
        exempt=st.sets(st.integers(0, 3), max_size=2),
    )
    @example(output=[1, 2, 1], n=2, window=3, exempt=set())
    @example(output=[1, 2, 3, 1], n=2, window=3, exempt=set())  # the earlier 1 has left the window
    @example(output=[0, 0], n=2, window=2, exempt=set())
    def test_every_token_is_tried(self, output: list[int], n: int, window: int, exempt: set[int]) -> None:
        window = max(n, window)
        grown = Window(Guard(n, window), frozenset(exempt))
        for length in range(len(output) + 1):
            expected = banned_by_search(output[:length], n, window, exempt)
            assert grown.banned(output[:length]) == expected
            assert Window(Guard(n, window), frozenset(exempt)).banned(output[:length]) == expected

    @given(output=st.lists(st.integers(0, 2), max_size=60), steps=st.lists(st.integers(0, 12), max_size=12))
    def test_an_output_that_grows_by_several_tokens(self, output: list[int], steps: list[int]) -> None:
        grown = Window(Guard(2, 9), frozenset())
        for length in itertools.accumulate(steps):
            assert grown.banned(output[:length]) == banned_by_search(output[:length], 2, 9, ())

    def test_examples(self) -> None:
        def banned(output: list[int], guard: Guard, exempt: Iterable[int] = ()) -> set[int]:
            return Window(guard, frozenset(exempt)).banned(output)

        assert banned([5, 6, 7, 5, 6], Guard(3, 90)) == {7}
        assert banned([5, 6, 7, 5, 6], Guard(3, 5)) == {7}
        assert banned([5, 6, 7, 5, 6], Guard(3, 4)) == set()
        assert banned([5, 6, 7, 5, 6], Guard(3, 90), {7}) == set()
        assert banned([5, 6, 7], Guard(1, 2)) == {6, 7}
        assert banned([5] * 29, Guard()) == set()
        assert banned([5] * 30, Guard()) == {5}
        assert banned([5, 6, 5, 7, 5], Guard(2, 90)) == {6, 7}

    def test_what_has_left_the_window_is_forgotten(self) -> None:
        window = Window(Guard(3, 20), frozenset())
        output: list[int] = []
        for token in range(5000):
            output.append(token % 700)
            window.banned(output)
        assert len(pickle.dumps(window)) < 2000

    def test_the_largest_settings_take_little_memory(self) -> None:
        """The outputs of all requests are in memory at the same time."""
        choice = random.Random(0)
        output = choice.choices(range(100_000), k=8192)
        window = Window(Guard(128, 8192), frozenset())
        tracemalloc.start()
        try:
            window.banned(output)
            assert tracemalloc.get_traced_memory()[0] < 4_000_000
        finally:
            tracemalloc.stop()


class TestSettings:
    @pytest.mark.parametrize("processor", [NoRepeatNGramV1, NoRepeatNGramV2])
    @pytest.mark.parametrize(
        ("name", "args"),
        [
            ("ngram_size", {"ngram_size": -1}),
            ("ngram_size", {"ngram_size": 2.5}),
            ("ngram_size", {"ngram_size": "30"}),
            ("ngram_size", {"ngram_size": True}),
            ("ngram_size", {"ngram_size": 91}),
            ("ngram_size", {"ngram_size": 129, "window_size": 200}),
            ("ngram_size", {"window_size": 20}),
            ("window_size", {"window_size": 0}),
            ("window_size", {"window_size": 1 << 20}),
            ("window_size", {"window_size": None}),
            ("whitelist_token_ids", {"whitelist_token_ids": 5}),
            ("whitelist_token_ids", {"whitelist_token_ids": "5"}),
            ("whitelist_token_ids", {"whitelist_token_ids": [-1]}),
            ("whitelist_token_ids", {"whitelist_token_ids": ["<td>"]}),
            ("whitelist_token_ids", {"whitelist_token_ids": [True]}),
            ("whitelist_token_ids", {"whitelist_token_ids": list(range(33))}),
        ],
    )
    def test_a_wrong_setting_is_named_when_the_request_arrives(
        self, processor: type[NoRepeatNGramV1 | NoRepeatNGramV2], name: str, args: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match=f"^{name} must "):
            processor.validate_params(params(**args))

    @pytest.mark.parametrize("processor", [NoRepeatNGramV1, NoRepeatNGramV2])
    def test_allowed_settings_pass(self, processor: type[NoRepeatNGramV1 | NoRepeatNGramV2]) -> None:
        processor.validate_params(SamplingParams())
        processor.validate_params(params(ngram_size=0))
        processor.validate_params(params(ngram_size=128, window_size=8192, whitelist_token_ids=list(range(32))))

    def test_the_class_for_each_model_runner(self) -> None:
        for v2_runner, base in ((False, InterfaceV1), (True, v2.LogitsProcessor)):
            module, name = guard_for(vllm_config(use_v2_model_runner=v2_runner)).split(":")
            assert module == "deepseek_ocr.no_repeat_ngram"
            assert issubclass({c.__name__: c for c in (NoRepeatNGramV1, NoRepeatNGramV2)}[name], base)


class TestV1:
    @pytest.fixture
    def processor(self) -> NoRepeatNGramV1:
        return NoRepeatNGramV1(vllm_config(), CPU, False)

    @staticmethod
    def added(request: Request, row: int) -> tuple[int, SamplingParams, list[int], list[int]]:
        return row, request.params, request.prompt, request.output

    def test_it_can_change_the_most_likely_token(self, processor: NoRepeatNGramV1) -> None:
        assert processor.is_argmax_invariant() is False

    def test_a_request_without_a_guard_is_not_tracked(self, processor: NoRepeatNGramV1) -> None:
        rows = [(0, params(ngram_size=0), [], []), (1, SamplingParams(), [], [])]
        processor.update_state(BatchUpdate(2, [], rows, []))  # type: ignore[arg-type]
        assert list(processor.rows) == [1]

    @pytest.mark.parametrize(("seed", "expected_bans"), [(0, 124), (1, 82), (2, 77), (3, 105), (4, 52), (5, 121)])
    def test_a_batch_that_changes_all_the_time(self, processor: NoRepeatNGramV1, seed: int, expected_bans: int) -> None:
        """Requests come, go and change rows, as in the runner's persistent batch."""
        choice = random.Random(seed)
        rows: list[Request] = []
        bans = 0
        for step in range(25):
            removed, added, moved = [], [], []
            for row in sorted(choice.sample(range(len(rows)), choice.randrange(len(rows) // 2 + 1)), reverse=True):
                rows[row] = None  # type: ignore[call-overload]
                removed.append(row)
            for number in range(choice.randrange(4)):
                request = Request(1000 * seed + 10 * step + number)
                row = removed.pop() if removed else len(rows)
                rows[row : row + 1] = [request]
                added.append(self.added(request, row))
            empty = [row for row, request in enumerate(rows) if request is None]
            while empty:  # holes are filled from the end
                if rows[-1] is None:
                    empty.remove(len(rows) - 1)
                else:
                    hole = empty.pop(0)
                    rows[hole] = rows[-1]
                    moved.append((len(rows) - 1, hole, MoveDirectionality.UNIDIRECTIONAL))
                rows.pop()
            if len(rows) > 1 and choice.random() < 0.7:
                a, b = choice.sample(range(len(rows)), 2)
                rows[a], rows[b] = rows[b], rows[a]
                moved.append((a, b, MoveDirectionality.SWAP))
            update = BatchUpdate(len(rows), removed=removed, added=added, moved=moved)
            processor.update_state(update if removed or added or moved else None)

            logits = torch.randn(len(rows), VOCABULARY)
            banned = [request.banned() for request in rows]
            assert_banned(logits, processor.apply(logits.clone()), banned)
            bans += sum(map(len, banned))
            for request in rows:
                request.generate(1)
        assert bans == expected_bans, "the requests are others than before"

    def test_an_unset_whitelist_exempts_table_cells(self, processor: NoRepeatNGramV1) -> None:
        output = [TD, END_TD, 11] * 3
        processor.update_state(BatchUpdate(1, [], [(0, params(ngram_size=1, window_size=90), [], output)], []))
        logits = torch.zeros(1, VOCABULARY)
        assert_banned(logits, processor.apply(logits.clone()), [{11}])

    def test_the_prompt_never_counts(self, processor: NoRepeatNGramV1) -> None:
        output = [8]
        processor.update_state(BatchUpdate(1, [], [(0, params(ngram_size=2, window_size=90), [8, 11] * 9, output)], []))
        logits = torch.zeros(1, VOCABULARY)
        assert_banned(logits, processor.apply(logits.clone()), [set()])
        output.extend([11, 8])
        assert_banned(logits, processor.apply(logits.clone()), [{11}])


class FakeRunner:
    """The token history as runner V2 keeps it: a slot for each request, with arbitrary values beyond its end."""

    SLOTS = 8

    def __init__(self, slots: int = SLOTS, length: int = 128) -> None:
        self.SLOTS = slots
        self.tokens = torch.randint(8, 12, (slots, length), dtype=torch.int32)
        self.prompt_len = torch.full((self.SLOTS,), 77, dtype=torch.int32)
        self.total_len = torch.zeros(self.SLOTS, dtype=torch.int32)
        state: Any = v2.LogitsProcRequestState(
            device=CPU,
            max_num_reqs=self.SLOTS,
            vocab_size=VOCABULARY,
            all_token_ids=SimpleNamespace(gpu=self.tokens),  # type: ignore[arg-type]
            prompt_len=SimpleNamespace(gpu=self.prompt_len, np=self.prompt_len.numpy()),  # type: ignore[arg-type]
            prefill_len=SimpleNamespace(gpu=self.prompt_len),  # type: ignore[arg-type]
            total_len=SimpleNamespace(gpu=self.total_len),  # type: ignore[arg-type]
        )
        self.processor = NoRepeatNGramV2(vllm_config(), state)
        self.requests: dict[int, Request] = {}

    def admit(self, slot: int, request: Request) -> bool:
        self.requests[slot] = request
        wants = self.processor.add_request(slot, request.params)
        self.processor.apply_staged_writes()
        return wants

    def apply(self, slots: Sequence[int], logits: torch.Tensor, cut: int = 0) -> torch.Tensor:
        """Run a step for the requests in `slots`, without the last `cut` tokens of each."""
        return self.processor.apply(logits, self.context(slots, cut))

    def context(self, slots: Sequence[int], cut: int = 0) -> v2.LogitsContext:
        ends = []
        for slot in slots:
            history = self.requests[slot].prompt + self.requests[slot].output
            self.tokens[slot, : len(history)] = torch.tensor(history, dtype=torch.int32)
            self.prompt_len[slot] = len(self.requests[slot].prompt)
            self.total_len[slot] = len(history)
            ends.append(len(history) - cut)
        rows = torch.tensor(slots, dtype=torch.int32)
        position = torch.tensor(ends) - 1
        return v2.LogitsContext(
            expanded_idx_mapping=rows,
            idx_mapping=rows,
            idx_mapping_np=rows.numpy(),
            expanded_local_pos=torch.zeros_like(rows),
            input_ids=self.tokens[rows.long(), position],
            pos=position,
            seq_lens_upper_bound_np=np.array(ends, dtype=np.int32),
        )


class Elements(TorchDispatchMode):
    """Counts the elements of the tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not any(result is each for each in args):
            self.total += result.numel()
            self.largest = max(self.largest, result.numel())
        return result


class TestV2:
    @pytest.mark.parametrize(("seed", "expected_bans"), [(0, 83), (1, 71), (2, 61), (3, 47), (4, 31), (5, 54)])
    def test_slots_are_reused_and_rows_come_in_any_order(self, seed: int, expected_bans: int) -> None:
        choice = random.Random(seed)
        runner = FakeRunner()
        bans = 0
        for step in range(25):
            for number in range(choice.randrange(1, 4)):
                request = Request(1000 * seed + 10 * step + number)
                request.prompt = request.prompt or [8]  # a request always has a prompt
                wants = runner.admit(choice.randrange(runner.SLOTS), request)
                assert wants == (request.n > 0)
            slots = choice.sample(sorted(runner.requests), choice.randrange(1, len(runner.requests) + 1))
            logits = torch.randn(len(slots), VOCABULARY)
            banned = [runner.requests[slot].banned() for slot in slots]
            assert_banned(logits, runner.apply(slots, logits.clone()), banned)
            bans += sum(map(len, banned))
            for request in runner.requests.values():
                request.generate(1)
        assert bans == expected_bans, "the requests are others than before"

    @staticmethod
    def request(
        n: int, window: int, prompt: list[int], output: list[int], exempt: tuple[int, ...] | None = ()
    ) -> Request:
        request = Request(0)
        request.n, request.window, request.exempt = n, window, exempt
        request.prompt, request.output = prompt, output
        return request

    @settings(max_examples=150)
    @given(
        data=st.lists(
            st.tuples(
                st.integers(0, 5),
                st.integers(1, 40),
                st.lists(st.integers(8, 11), min_size=1, max_size=20),
                st.lists(st.integers(8, 11), max_size=40),
                st.none() | st.lists(st.integers(8, 11), max_size=2).map(tuple),
            ),
            min_size=1,
            max_size=FakeRunner.SLOTS,
        )
    )
    def test_any_batch(self, data: list[tuple[int, int, list[int], list[int], tuple[int, ...] | None]]) -> None:
        runner = FakeRunner()
        for slot, (n, window, prompt, output, exempt) in enumerate(data):
            runner.admit(slot, self.request(n, max(n, window), prompt, output, exempt))
        logits = torch.randn(len(data), VOCABULARY)
        expected = [request.banned() for request in runner.requests.values()]
        assert_banned(logits, runner.apply(range(len(data)), logits.clone()), expected)

    def test_long_windows_that_grow_token_by_token(self) -> None:
        """The sizes at which more places are searched are passed, and one request is interrupted and begun anew."""
        runner = FakeRunner(slots=4, length=1400)
        settings_ = [(3, 1100), (128, 8192), (30, 90), (64, 200)]
        choice = random.Random(0)
        phrase = choice.choices(range(8, 16), k=150)
        for slot, (n, window) in enumerate(settings_):
            runner.admit(slot, self.request(n, window, [8, 9], []))
        bans = 0
        for length in range(1250):
            banned = [request.banned() if length % 7 == 0 or length > 1000 else None for request in self.all_of(runner)]
            logits = torch.zeros(4, VOCABULARY)
            after = runner.apply(range(4), logits.clone())
            for row, tokens in enumerate(banned):
                if tokens is not None:
                    assert_banned(logits[row : row + 1], after[row : row + 1], [tokens])
                    bans += len(tokens)
            if length == 600:
                runner.admit(1, runner.requests[1])
            for request in self.all_of(runner):
                request.output.append(phrase[length % 150] if choice.random() < 0.995 else 8)
        assert bans > 500

    @staticmethod
    def all_of(runner: FakeRunner) -> list[Request]:
        return [runner.requests[slot] for slot in sorted(runner.requests)]

    def test_each_row_pays_for_its_own_settings(self) -> None:
        """A step's work, in elements, is not multiplied by a request with the largest settings, and is bounded."""

        def work(settings_: list[tuple[int, int]]) -> tuple[int, int]:
            runner = FakeRunner(slots=len(settings_), length=8300)
            for slot, (n, window) in enumerate(settings_):
                runner.admit(slot, self.request(n, window, [8], [8 + slot % 2] * 8200))
            slots, logits = range(len(settings_)), torch.zeros(len(settings_), VOCABULARY)
            runner.apply(slots, logits)
            for request in runner.requests.values():
                request.output.append(8)
            context = runner.context(slots)
            with Elements() as counted:
                runner.processor.apply(logits, context)
            return counted.total, counted.largest

        usual, _ = work([(30, 90)] * 63)
        with_large, _ = work([(30, 90)] * 63 + [(128, 8192)])
        assert with_large < usual + 40 * 8192
        _, most = work([(128, 8192)] * 100)
        assert most <= MAX_PLACES

    def test_the_prompt_never_counts(self) -> None:
        runner = FakeRunner()
        runner.admit(2, self.request(2, 90, [8, 11] * 9, [8]))
        runner.admit(5, self.request(2, 90, [8, 11] * 9, []))
        runner.admit(0, self.request(2, 90, [8, 11] * 9, [8, 11, 8]))
        logits = torch.zeros(3, VOCABULARY)
        assert_banned(logits, runner.apply([2, 5, 0], logits.clone()), [set(), set(), {11}])

    def test_a_prompt_that_is_still_being_read(self) -> None:
        """Its row is sampled and discarded. It must not need the output of an earlier run."""
        runner = FakeRunner()
        runner.admit(1, self.request(1, 90, [8, 11] * 9, []))
        logits = torch.zeros(1, VOCABULARY)
        assert_banned(logits, runner.apply([1], logits.clone(), cut=7), [set()])

    def test_masked_tokens_stay_masked(self) -> None:
        runner = FakeRunner()
        runner.admit(3, self.request(2, 90, [8], [8, 11, 8]))
        logits = torch.full((1, VOCABULARY), -torch.inf)
        logits[0, 11] = 1.0
        out = runner.apply([3], logits)
        assert not out.isnan().any()
        assert (out == -torch.inf).all()

    def test_no_request_has_a_guard(self) -> None:
        runner = FakeRunner()
        assert not runner.admit(0, self.request(0, 9, [8], [8] * 20))
        logits = torch.zeros(1, VOCABULARY)
        assert_banned(logits, runner.apply([0], logits.clone()), [set()])

    def test_an_unset_whitelist_exempts_table_cells(self) -> None:
        runner = FakeRunner()
        runner.admit(0, self.request(1, 90, [8], [TD, END_TD, 11], exempt=None))
        logits = torch.zeros(1, VOCABULARY)
        assert_banned(logits, runner.apply([0], logits.clone()), [{11}])

    def test_the_full_whitelist_holds(self) -> None:
        runner = FakeRunner()
        runner.admit(0, self.request(1, 90, [8], [8, 9, 10, 11], exempt=(*range(100, 131), 11)))
        logits = torch.zeros(1, VOCABULARY)
        assert_banned(logits, runner.apply([0], logits.clone()), [{8, 9, 10}])

    def test_speculative_decoding_is_refused_at_the_start(self) -> None:
        with pytest.raises(ValueError, match="speculative"):
            NoRepeatNGramV2(vllm_config(speculative_config=object()), FakeRunner().processor.req_states)

    def test_both_classes_agree_on_the_published_settings(self) -> None:
        choice = random.Random(0)
        phrase = choice.choices(range(8, 16), k=29)
        output = [*phrase, 12, *phrase]
        assert banned_by_search(output, 30, 90, ()) == {12}
        runner = FakeRunner()
        runner.requests[4] = self.request(30, 90, [8], output)
        runner.processor.add_request(4, SamplingParams())
        one = NoRepeatNGramV1(vllm_config(), CPU, False)
        one.update_state(BatchUpdate(1, [], [(0, SamplingParams(), [8], output)], []))
        logits = torch.randn(1, VOCABULARY)
        assert_banned(logits, one.apply(logits.clone()), [{12}])
        assert_banned(logits, runner.apply([4], logits.clone()), [{12}])
