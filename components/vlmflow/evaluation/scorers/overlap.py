"""ROUGE-L and chrF, by the libraries that others report them with."""


class RougeL:
    """F-measure of the longest common subsequence of words, without stemming.

    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL 2004; by rouge-score.
    """

    def __init__(self) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self._scorer = RougeScorer(["rougeL"], use_stemmer=False)

    def __call__(self, text: str, expected: str) -> float:
        return float(self._scorer.score(expected, text)["rougeL"].fmeasure)


class ChrF:
    """Character n-gram F-score of one sentence, 0 to 1: chrF2 with n up to 6.

    Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015; by sacrebleu,
    whose corpus score counts n-grams over all sentences and is not the mean of these.
    """

    def __init__(self) -> None:
        from sacrebleu.metrics import CHRF

        self._metric = CHRF()

    def __call__(self, text: str, expected: str) -> float:
        return float(self._metric.sentence_score(text, [expected]).score) / 100.0
