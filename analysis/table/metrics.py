"""Metrics by their names: which way is better, which are shares, by which a task is judged.

Column names, W&B's and MLflow's metrics, lm-eval's and Inspect's are read by the same words.
"""

import re

# The first of these that there is, is the metric that is taken.
PRIMARY = ("acc_norm", "acc", "exact_match", "facts", "chrf", "bleu", "f1", "rougeL", "mc2")
# Words in the name of a metric. Of these less is better, and they are no shares of anything:
OWN_UNIT = (
    "loss", "logloss", "mlogloss", "perplexity", "ppl", "nll", "bpb", "bits", "entropy", "rmse",
    "mae", "mse", "mape", "smape", "msle", "rmsle", "brier", "latency", "runtime",
)  # fmt: skip
# Less is better of these too, and most are shares of wrong answers:
ERRORS = (
    "error", "errors", "err", "merror", "wer", "cer", "ter", "fpr", "fnr", "eer", "ece",
    "hallucination", "toxicity",
)  # fmt: skip
HIGHER = (  # the more the better
    "acc", "accuracy", "f1", "auc", "auroc", "bleu", "chrf", "rouge", "rouge1", "rouge2", "rougel",
    "bertscore", "em", "exact", "match", "mc1", "mc2", "mcc", "precision", "recall", "reward",
    "r2", "neg",
)  # fmt: skip
# Numbers that are named so may be settings: 4 bits, 16-bit precision, label errors that were drawn.
AMBIGUOUS = ("bits", "entropy", "errors", "error", "err", "match", "neg", "precision", "reward")
# Names of an outcome, whatever else a table has.
OUTCOMES = frozenset({*OWN_UNIT, *ERRORS, *HIGHER} - {*AMBIGUOUS})
# Metrics that are shares of right answers, by their names in lm-eval, Inspect and HELM.
SHARES = re.compile(
    r"(acc|accuracy|acc_norm|acc_bytes|exact_match|quasi_exact_match|em|f1|mc[12]|pass@\d+|match|"
    r"includes|choice|(prompt|inst)_level_\w+)(,|\.|$)",
    re.IGNORECASE,
)


def lower_is_better(metric: str) -> bool:
    """Return whether a metric's name says that less of it is better, as of a loss.

    The last word that says either counts: `loss_of_function/accuracy` is an accuracy, and
    scikit-learn's `neg_mean_squared_error` is turned already.
    """
    words = words_of(metric)
    known = [word for word in words if word in (*OWN_UNIT, *ERRORS, *HIGHER)]
    return bool(known) and known[-1] not in HIGHER and "neg" not in words


def in_own_unit(metric: str) -> bool:
    """Return whether a metric's name says that it is no share, though it may be below 1."""
    return lower_is_better(metric) and bool(set(words_of(metric)) & set(OWN_UNIT))


def preference(metric: str) -> tuple[int, str]:
    """Return the place of a metric among those that a benchmark may be judged by."""
    name = metric.split(",")[0]  # lm-eval writes "acc,none"
    return (PRIMARY.index(name) if name in PRIMARY else len(PRIMARY), name)


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case: `valLoss`, `eval/loss`, `eval_loss` have two."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z]{2})", "_", name).lower()
    return [word for word in re.split(r"[\W_]+", apart) if word]
