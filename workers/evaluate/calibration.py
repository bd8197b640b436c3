"""Probabilities that mean what they say, and the threshold from which a finding is present.

Both are chosen on validation patients; a test patient must never be seen here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

SENSITIVITY = 0.95
"""What a threshold is chosen for where nobody said otherwise."""

Numbers = NDArray[np.float64]


def logit(probability: Numbers) -> Numbers:
    """Return the logit of probabilities, kept finite."""
    kept = np.clip(probability, 1e-7, 1 - 1e-7)
    return np.asarray(np.log(kept / (1 - kept)))


def scaled(probability: Numbers, temperature: float) -> Numbers:
    """Return probabilities whose logits are divided by `temperature`."""
    return np.asarray(1 / (1 + np.exp(-logit(probability) / temperature)))


def temperature_of(truth: Numbers, logits: Numbers) -> float:
    """Return the temperature that minimizes the log loss (Guo et al. 2017); `truth` is 0 or 1 per image."""

    def loss(log_temperature: float) -> float:
        divided = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, divided) - truth * divided))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def threshold_of(truth: Numbers, probability: Numbers, sensitivity: float = SENSITIVITY) -> float:
    """Return the highest threshold, to three decimals, at which at least `sensitivity` of the present are found.

    It lies halfway between the lowest probability that must be found and the next one below, so that it does not hang
    on one image. Raises ValueError where nothing is present.
    """
    present = np.sort(probability[truth == 1])[::-1]
    if not len(present):
        raise ValueError("a threshold needs images with the finding")
    lowest = float(present[max(math.ceil(sensitivity * len(present) - 1e-9), 1) - 1])
    below = probability[probability < lowest]
    middle = round((lowest + float(below.max(initial=0.0))) / 2, 3)
    return middle if middle <= lowest else math.floor(lowest * 1000) / 1000
