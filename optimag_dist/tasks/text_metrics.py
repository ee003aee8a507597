"""BLEU-4, ROUGE-L and CIDEr of generated texts, each by the package that is maintained for it.

All three judge the same words: lower case, as mteval-13a splits them (sacrebleu's ``tok:13a``: at spaces, punctuation
by itself). Their usual tokenisers differ, and those of ROUGE and CIDEr know English only or need Java.

What they say of short texts, such as names:

- BLEU-4 is of the whole corpus, and its 4-grams come from candidates of four words or more. If some are that long and
  no 4-gram matches, half a match is assumed (``smooth:exp``; a quarter where 3-grams do not match either); if none is
  that long it is 0, even where all are right. So it judges the longer names, and the brevity of all of them.
- ROUGE-L judges texts of any length alike.
- CIDEr is a mean over 1- to 4-grams, where an order that a text is too short for counts 0: a perfect text of k words
  has 10 · min(k, 4) / 4. Words that few references have weigh most, one that all have nothing.
"""

from collections.abc import Sequence
from types import SimpleNamespace

from optimag_dist.types import InputError


def text_metrics(candidates: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """How near each of k ≥ 1 candidates, of which empty ones match nothing, is to its one reference, of which some have
    words.

    Returns:
        ``bleu4``: BLEU of the corpus, 0 to 100 (Papineni et al. 2002; sacrebleu, signature
            ``nrefs:1|case:lc|eff:no|tok:13a|smooth:exp``).
        ``rouge_l``: mean F1 of the longest common subsequences, 0 to 1 (Lin 2004; rouge-score without stemming).
        ``cider``: mean CIDEr-D, 0 to 10 (Vedantam et al., arXiv 1411.5726; pycocoevalcap), document frequencies from
            the references.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    except ImportError as error:
        raise InputError(f"generated texts are judged by {error.name}; pip install 'optimag_dist[generate]'") from error
    split = Tokenizer13a()
    # What rouge-score takes for a tokeniser.
    words = SimpleNamespace(tokenize=lambda text: split(text.lower()).split())
    bleu = BLEU(lowercase=True, tokenize="13a", smooth_method="exp", force=True)
    rouge = RougeScorer(["rougeL"], tokenizer=words)
    overlaps = [rouge.score(r, c)["rougeL"].fmeasure for c, r in zip(candidates, references, strict=True)]
    ours, theirs = (
        {i: [" ".join(words.tokenize(text))] for i, text in enumerate(texts)} for texts in (candidates, references)
    )
    return {
        "bleu4": bleu.corpus_score(candidates, [references]).score,
        "rouge_l": sum(overlaps) / len(overlaps),
        "cider": float(Cider().compute_score(theirs, ours)[0]),
    }
