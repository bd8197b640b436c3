"""Is this image like those that the bundle was trained on? A score with a limit, and what is unusual in words.

The score is the Mahalanobis distance, from the training images, of three things together: the code that an
autoencoder makes of a small copy, how badly it draws the copy again, and simple statistics of the intensities. An
autoencoder alone draws many foreign images well. The guard never sees what the bundle says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from node.bundles import Bundle
from node.errors import BundleError
from node.findings import Volume
from workers.predict.likeness import CODE, STATISTICS, Autoencoder, features, small_copy, statistics

WEIGHTS = "autoencoder."
"""Prefix of the autoencoder's weights in the file; beside them are the tensors that `Limits` names."""


@dataclass(frozen=True)
class Limits:
    """What is usual: `mean` and `scale` of each feature, `whitener` of the scaled ones, `limit` of the distance.

    `most`: further than this from the mean, in units of `scale`, no single feature counts.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    whitener: NDArray[np.float64]
    limit: float
    most: float = np.inf

    def distances(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return for each row of features its distance from the training images, 1 where the limit is."""
        away = np.clip((found - self.mean) / self.scale, -self.most, self.most) @ self.whitener.T
        return np.asarray(np.sqrt((away**2).mean(axis=1)) / self.limit)


@dataclass(frozen=True)
class Look:
    """How unlike the training images an image is, 1 being the limit, and what is most unusual about it."""

    score: float
    unusual: str


class Guard:
    """The guard of one bundle, ready; a few milliseconds per image on a CPU."""

    def __init__(self, bundle: Bundle) -> None:
        """Load `models/<guard.file>`; raises `BundleError` where it is missing or does not fit."""
        entry = bundle.dicom.guard
        path = bundle.folder / "models" / (entry.file or "" if entry else "")
        self._dimensions = bundle.dicom.dimensions
        self._autoencoder = Autoencoder(self._dimensions).eval()
        try:
            tensors = load_file(path)
            state = {k.removeprefix(WEIGHTS): v.float() for k, v in tensors.items() if k.startswith(WEIGHTS)}
            self._autoencoder.load_state_dict(state)
            mean, scale, whitener = (tensors[name].double().numpy() for name in ("mean", "scale", "whitener"))
            most = float(tensors.get("most", torch.tensor(np.inf)))
            self._limits = Limits(mean, scale, whitener, float(tensors["limit"]), most)
            self._limits.distances(np.zeros((1, CODE[self._dimensions] + len(STATISTICS) + 2)))
        except Exception as error:  # files of many kinds fail in many ways
            raise BundleError(
                f"Bundle {bundle.title}: its guard {path.name} cannot be loaded ({type(error).__name__}). Nothing was "
                "read. Fit it again with `python models/guard.py`, or take `file` out of [guard] in configs/dicom.toml."
            ) from None

    def look(self, volume: Volume) -> Look:
        """Return how unlike the training images `volume` is."""
        copy = small_copy(volume, self._dimensions)
        told = statistics(volume, copy)[np.newaxis]
        found = features(self._autoencoder, copy[None], told)
        return Look(float(self._distances(found)[0]), self._unusual(found[0]))

    def scores(self, copies: torch.Tensor, told: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the score of each of many images by their small copies (n, 1, …) and `statistics` (n, …)."""
        return self._distances(features(self._autoencoder, copies, told))

    def _distances(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        distances = self._limits.distances(found)
        return np.where(np.isfinite(distances), distances, np.inf)

    def _unusual(self, found: NDArray[np.float64]) -> str:
        away = (found - self._limits.mean) / self._limits.scale
        code, drawn = CODE[self._dimensions], -2
        parts = {"its layout": float(np.sqrt((away[:code] ** 2).mean())), "what it shows": float(away[drawn:].max())}
        most = int(np.abs(away[code:drawn]).argmax())
        verb = "high" if away[code + most] > 0 else "low"
        parts[f"{STATISTICS[most]} ({verb})"] = float(abs(away[code + most])) / 2  # the largest of many is larger
        return max(parts, key=lambda name: parts[name])


def path_of(bundle: Bundle) -> Path | None:
    """Return where the guard's file lies, None where the bundle has none."""
    entry = bundle.dicom.guard
    return bundle.folder / "models" / entry.file if entry is not None and entry.file is not None else None


def save(path: Path, autoencoder: Autoencoder, limits: Limits) -> None:
    """Write a guard; weights in half precision, as `Guard` then has them too."""
    from safetensors.torch import save_file

    state = {WEIGHTS + name: value.half().contiguous() for name, value in autoencoder.state_dict().items()}
    numbers: dict[str, Any] = {
        "mean": limits.mean,
        "scale": limits.scale,
        "whitener": limits.whitener,
        "limit": limits.limit,
    }
    numbers |= {"most": limits.most} if np.isfinite(limits.most) else {}
    save_file(state | {k: torch.as_tensor(np.asarray(v, np.float32)).contiguous() for k, v in numbers.items()}, path)
    path.chmod(0o644)
