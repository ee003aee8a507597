"""BLEU, ROUGE-L and CIDEr against the formulae of their papers, and what they say of short texts."""

import math
import sys
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimag_dist.tasks.graph2text import text_metrics
from optimag_dist.types import InputError


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _bleu(candidates: list[list[str]], references: list[list[str]]) -> float:
    """Papineni et al. 2002, equations of section 2.3; NIST's smoothing halves for every order without a match."""
    log_precision, unmatched = 0.0, 1
    for n in range(1, 5):
        pairs = [(_ngrams(c, n), _ngrams(r, n)) for c, r in zip(candidates, references, strict=True)]
        matched, total = sum((c & r).total() for c, r in pairs), sum(c.total() for c, _ in pairs)
        if total == 0 or (n == 1 and matched == 0):
            return 0.0
        if matched == 0:
            unmatched *= 2
        log_precision += math.log((matched or 1 / unmatched) / total) / 4
    length, wanted = sum(map(len, candidates)), sum(map(len, references))
    return 100 * math.exp(min(0.0, 1 - wanted / length) + log_precision)


def _rouge_l(candidate: list[str], reference: list[str]) -> float:
    """The longest common subsequence by trying every one, longest first."""
    longest = next(
        k for k in range(len(candidate), -1, -1) if set(combinations(candidate, k)) & set(combinations(reference, k))
    )
    return 2 * longest / (len(candidate) + len(reference)) if longest else 0.0


def _cider(candidates: list[list[str]], references: list[list[str]]) -> float:
    """Vedantam et al., equations 1 to 3 and, for CIDEr-D, section 6: clipped counts and a penalty on lengths."""
    total = 0.0
    for candidate, reference in zip(candidates, references, strict=True):
        for n in range(1, 5):
            c, r = _ngrams(candidate, n), _ngrams(reference, n)
            found_in = {g: sum(g in _ngrams(other, n) for other in references) for g in c | r}
            idf = {g: math.log(len(references) / max(1, k)) for g, k in found_in.items()}
            dot = sum(min(c[g], r[g]) * r[g] * idf[g] ** 2 for g in c | r)
            norms = [math.sqrt(sum((k * idf[g]) ** 2 for g, k in counts.items())) for counts in (c, r)]
            # The package takes the number of 2-grams for the length.
            apart = max(len(candidate) - 1, 0) - max(len(reference) - 1, 0)
            if all(norms):
                total += dot / math.prod(norms) * math.exp(-(apart**2) / (2 * 6.0**2))
    return 10 * total / 4 / len(candidates)


# Few words, so that they match and repeat; more of some than of others.
_texts = st.lists(st.sampled_from(["a", "a", "b", "b", "c", "d", "e", "naïve", "日本"]), max_size=7)
_references = st.lists(st.sampled_from(["a", "a", "b", "b", "c", "d", "e", "naïve", "日本"]), min_size=1, max_size=7)


@given(st.lists(st.tuples(_texts, _references), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_figures_are_those_of_the_formulae(pairs: list[tuple[list[str], list[str]]]) -> None:
    candidates, references = [c for c, _ in pairs], [r for _, r in pairs]
    metrics = text_metrics([" ".join(c) for c in candidates], [" ".join(r) for r in references])
    assert metrics == pytest.approx(
        {
            "bleu4": _bleu(candidates, references),
            "rouge_l": sum(map(_rouge_l, candidates, references)) / len(pairs),
            "cider": _cider(candidates, references),
        },
        rel=1e-6,
        abs=1e-9,
    )


def test_a_case_by_hand() -> None:
    """One pair of six words each: 5, 3, 1 and 0 of 6, 5, 4 and 3 n-grams match; the common subsequence has 5 words."""
    metrics = text_metrics(["the cat sat on the mat"], ["the cat sat by the mat"])
    assert metrics["bleu4"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 2 / 3) ** 0.25)
    assert metrics["rouge_l"] == pytest.approx(5 / 6)


def test_cider_by_hand() -> None:
    """Two documents; each word is in one, weight log 2, but "face" is in both, weight 0: of the first pair the 1-grams
    agree fully (10 / 4), no other order does; the second is empty."""
    metrics = text_metrics(["smiling face", ""], ["face smiling", "crying face"])
    assert metrics["cider"] == pytest.approx(10 / 4 / 2)


def test_case_and_punctuation_are_split_alike_for_all() -> None:
    metrics = text_metrics(["Flag: GERMANY (west)", "face"], ["flag : germany ( west )", "cat"])
    # Six words, all matched, beside one that is not: 6/7, and 5, 4 and 3 of the longer n-grams.
    assert metrics["bleu4"] == pytest.approx(100 * (6 / 7) ** 0.25)
    assert metrics["rouge_l"] == pytest.approx(1 / 2)
    assert metrics["cider"] == pytest.approx(10 / 2)


def test_perfect_names() -> None:
    """BLEU-4 of names needs one of four words; CIDEr gives a quarter for every order that a name is long enough for."""
    names = ["zebra", "red heart", "grinning cat face"]
    assert text_metrics(names, names) == pytest.approx(
        {"bleu4": 0.0, "rouge_l": 1.0, "cider": 10 * (1 + 2 + 3) / 4 / 3}
    )
    assert text_metrics([*names, "woman with white hair"], [*names, "woman with white hair"])["bleu4"] == pytest.approx(
        100
    )


def test_empty_candidates_match_nothing() -> None:
    assert text_metrics(["", " "], ["zebra", "red heart"]) == {"bleu4": 0.0, "rouge_l": 0.0, "cider": 0.0}


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(InputError, match=r"sacrebleu.*pip install 'optimag_dist\[generate\]'"):
        text_metrics(["a"], ["a"])
