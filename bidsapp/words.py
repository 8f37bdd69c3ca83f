"""How numbers and lists are said in a sentence; imports nothing of the app."""

from __future__ import annotations

from collections.abc import Sequence


def enumerate_words(words: Sequence[str]) -> str:
    """Join as in a sentence.

    Examples
    --------
    >>> enumerate_words(["T1w"]), enumerate_words(["T1w", "T2w", "FLAIR"])
    ('T1w', 'T1w, T2w and FLAIR')
    """
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), *words[-1:]])


def count_of(number: int, noun: str) -> str:
    """A number and what it counts.

    Examples
    --------
    >>> count_of(0, "lesion"), count_of(1, "lesion"), count_of(19, "lesion")
    ('no lesions', '1 lesion', '19 lesions')
    """
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
