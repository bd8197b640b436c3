"""Fit a bundle's guard: an autoencoder on the training patients, and from the validation patients where its limit is.

The form is the same for every bundle and was settled on training and validation images, and damaged copies of them.
Images of other kinds are no part of it, and test patients are never seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from torch.nn import functional

from node.bundles import Bundle
from node.errors import Unsuitable
from workers.evaluate.images import volume
from workers.predict.guard import Limits, path_of, save
from workers.predict.likeness import Autoencoder, features, small_copy, statistics

SEED = 7
STEPS = {2: 500, 3: 600}
_BATCH = {2: 32, 3: 16}
_MOST_RATE, _MOST_SHIFT, _GAMMA = 4e-3, 2, 0.1
VALIDATION_QUANTILE = 0.99
"""At most one in a hundred validation patients is declined, and no more than a normal distribution of the logarithm has
beyond `_LAST` standard deviations."""
_FEW, _LAST, _LAST_OF_FEW, _MOST_OF_FEW = 100, 3.0, 4.0, 4.0
"""Fewer validation images than the first show nothing of how rare patients look: the limit lies further out, and no
single feature counts more than a rare patient may have it. Left out in folds, of 124 training and validation
crops of the hippocampus the furthest is then 0.8 times the limit."""

Tell = Callable[[float], None]
Seen = tuple[torch.Tensor, NDArray[np.float32]]


def fit(bundle: Bundle, lists: Mapping[str, Sequence[Mapping[str, Any]]], data: Path, tell: Tell) -> dict[str, Any]:
    """Write the guard's file of `bundle` and `docs/guard.json`; return the figures. `tell` hears the share done.

    `lists`: the cases of "training" and "validation" with `image`, relative to `data`. The same data give the same
    guard up to rounding. Raises `ValueError` where the bundle names no guard, or has fewer than 8 images of a part.
    """
    path = path_of(bundle)
    if path is None:
        raise ValueError(f"{bundle.title} has no `file` in [guard] of configs/dicom.toml")
    dimensions = bundle.dicom.dimensions
    seen = {part: look_at([data / str(c["image"]) for c in lists[part]], dimensions) for part in _PARTS}
    for part in _PARTS:
        if len(seen[part][0]) < _FEWEST:
            raise ValueError(f"a guard needs {_FEWEST} readable {part} images; there are {len(seen[part][0])}")
    autoencoder = train(seen["training"][0], dimensions, STEPS[dimensions], tell)
    limits = compare(autoencoder, seen["training"], seen["validation"])
    save(path, autoencoder, limits)
    figures = _figures(autoencoder, limits, seen)
    (bundle.folder / "docs").mkdir(exist_ok=True)
    (bundle.folder / "docs" / "guard.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


_PARTS = ("training", "validation")
_FEWEST = 8


def look_at(images: Sequence[Path], dimensions: Literal[2, 3]) -> Seen:
    """Return small copies (n, 1, …) and statistics (n, …) of the images that can be read."""
    copies, told = [], []
    for image in images:
        try:
            one = volume(image, dimensions)
        except Unsuitable:
            continue
        copies.append(small_copy(one, dimensions))
        told.append(statistics(one, copies[-1]))
    return (torch.stack(copies), np.stack(told)) if copies else (torch.empty(0), np.empty(0, np.float32))


def train(copies: torch.Tensor, dimensions: int, steps: int, tell: Tell) -> Autoencoder:
    """Return an autoencoder trained on `copies`, each shifted and brightened a little every time it is seen."""
    torch.manual_seed(SEED)
    draw = np.random.default_rng(SEED)
    autoencoder = Autoencoder(dimensions)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _MOST_RATE, total_steps=steps)
    axes = tuple(range(2, 2 + dimensions))
    for step in range(steps):
        batch = copies[torch.randint(len(copies), (_BATCH[dimensions],))]
        shifts = [int(shift) for shift in draw.integers(-_MOST_SHIFT, _MOST_SHIFT + 1, dimensions)]
        batch = torch.roll(batch, shifts, axes) ** float(np.exp(draw.normal(0, _GAMMA)))
        _, drawn = autoencoder(batch)
        loss = functional.l1_loss(drawn, batch) + functional.mse_loss(drawn, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        tell((step + 1) / steps)
    for parameter in autoencoder.parameters():
        parameter.data = parameter.data.half().float()  # as the file will have it
    return autoencoder.eval()


def compare(autoencoder: Autoencoder, training: Seen, validation: Seen) -> Limits:
    """Return where the training images lie, and how far from them the last validation image may."""
    known = features(autoencoder, *training)
    mean, scale = known.mean(axis=0), known.std(axis=0) + 1e-6
    last, most = (_LAST_OF_FEW, _MOST_OF_FEW) if len(validation[0]) < _FEW else (_LAST, np.inf)
    covariance = LedoitWolf().fit(np.clip((known - mean) / scale, -most, most)).covariance_
    whitener = np.linalg.cholesky(np.linalg.inv(covariance)).T
    distances = Limits(mean, scale, whitener, 1.0, most).distances(features(autoencoder, *validation))
    logs = np.log(distances)
    by_shape = float(np.exp(logs.mean() + last * logs.std()))
    return Limits(mean, scale, whitener, max(float(np.quantile(distances, VALIDATION_QUANTILE)), by_shape), most)


def _figures(autoencoder: Autoencoder, limits: Limits, seen: Mapping[str, Seen]) -> dict[str, Any]:
    scores = limits.distances(features(autoencoder, *seen["validation"]))
    return {
        "seed": SEED,
        "training_images": len(seen["training"][0]),
        "validation_images": len(scores),
        "validation_declined": round(float((scores > 1).mean()), 4),
        "validation_median_score": round(float(np.median(scores)), 3),
        "validation_highest_score": round(float(scores.max()), 3),
        "parameters": sum(parameter.numel() for parameter in autoencoder.parameters()),
    }
