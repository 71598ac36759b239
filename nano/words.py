"""Random text for synthetic pages: words, numbers, prices, dates and codes.

Most words are made up of English syllables, so that the model has to read rather than guess. The hash of a word decides
whether it belongs to the training split or to the evaluation split.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal, get_args

Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = get_args(Split)

ONSETS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p ph pl pr qu r s sc sh sk sl sm sn sp st str sw t th thr tr "
    "tw v w wh wr y z"
).split()
NUCLEI = "a a a ai au e e e ea ee ei i i i ie o o o oa oi oo ou u u y".split()
CODAS = "b ck ct d f ft g k l ll ld lt m mp n nd ng nk nt p pt r rd rk rm rn rt s sh sk sp ss st t th x".split()
ENDINGS = "ed er es ing ion ly ment ness s y".split()
COMMON = (
    "the of and to in is for on with that by this from are as at be it or an was which not have has will can all "
    "page total name date number amount price order item address street city report table figure section notes"
).split()
"""Common words. They belong to both splits: they occur on every page and reveal nothing about the other words."""
SINGLE_CHARACTERS = "aaaAI123456789"
"""Characters that are words by themselves: letters and small numbers. They occur only in training, so that the
evaluation pages remain those of earlier measurements."""
MARKS = ".,:;!?"
TRAINING_MARKS = MARKS + ",,,,"
"""Punctuation for training. Commas are the smallest characters and were often missed, so they are more frequent."""
DOUBLED = 0.2
"""Share of the made-up training words in which a letter is doubled. One of two equal letters was often dropped."""
SYMBOLS = "#%&()*+-/=@$'\""
CODE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def word(rng: random.Random, split: Split, *, noise: bool = True) -> str:
    """Return a random word with capitalization and punctuation.

    Args:
        rng: source of randomness.
        split: the split that the word belongs to.
        noise: whether codes consist of random characters, some of which look alike in many fonts (l, I and |; O and
            0). Otherwise, codes are like those in real documents.
    """
    kind = rng.random()
    training = split == "train"
    if kind < 0.04 and training:
        text = rng.choice(SINGLE_CHARACTERS)
    elif kind < 0.10:
        text = rng.choice(COMMON)
    elif kind < 0.66:
        text = made_up(rng, split)
    elif kind < 0.84:
        text = number(rng)
    else:
        text = code(rng, split) if noise else serial(rng)
    case = rng.random()
    if case < 0.18:
        text = text.capitalize()
    elif case < 0.26:
        text = text.upper()
    if rng.random() < (0.3 if training else 0.12):
        text += rng.choice(TRAINING_MARKS if training else MARKS)
    elif rng.random() < 0.02:
        text = f"({text})"
    return text


def made_up(rng: random.Random, split: Split) -> str:
    """Return a random word of one to four syllables that belongs to `split`."""
    while True:
        parts = []
        for _ in range(rng.choice((1, 1, 2, 2, 2, 3, 3, 4))):
            parts += [rng.choice(ONSETS), rng.choice(NUCLEI), rng.choice(CODAS) if rng.random() < 0.5 else ""]
        if rng.random() < 0.25:
            parts.append(rng.choice(ENDINGS))
        text = "".join(parts)[:13]
        if split == "train" and rng.random() < DOUBLED:
            index = rng.randrange(len(text))
            text = text[:index] + text[index] + text[index:]
        if belongs(text, split):
            return text


def number(rng: random.Random) -> str:
    """Return a random number, price, percentage, date or time."""
    a, b = rng.randrange(10 ** rng.randint(1, 5)), rng.randrange(100)
    return rng.choice(
        (
            f"{a}",
            f"{a:,}",
            f"{a}.{b:02d}",
            f"${a}.{b:02d}",
            f"{b}%",
            f"{a}/{b}",
            f"#{a}",
            f"{rng.randint(1, 28):02d}.{rng.randint(1, 12):02d}.{rng.randint(1950, 2049)}",
            f"{rng.randint(1950, 2049)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
            f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}",
        )
    )


def code(rng: random.Random, split: Split) -> str:
    """Return one to nine random letters, digits and, in some codes, symbols."""
    characters = CODE + SYMBOLS if rng.random() < 0.4 else CODE
    while True:
        text = "".join(rng.choice(characters) for _ in range(rng.randint(1, 9)))
        if len(text) < 4 or belongs(text, split):
            return text


def serial(rng: random.Random) -> str:
    """Return a random serial number of letters and digits that cannot be mistaken for each other."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    digits = f"{rng.randrange(10 ** rng.randint(2, 5))}"
    return rng.choice((f"{letters}-{digits}", f"{letters}{digits}", f"{digits}-{letters}", f"{letters}/{digits}"))


def belongs(text: str, split: Split) -> bool:
    """Return whether a word belongs to `split`. One word in eight belongs to the evaluation split."""
    held_out = hashlib.sha256(text.lower().encode()).digest()[0] % 8 == 0
    return held_out == (split == "eval")
