"""One case: its image read as the node reads it, and what the bundle said compared with what is known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from node.bundles import Bundle
from node.errors import ConfigError
from node.findings import Reading, Volume
from workers.evaluate import images
from workers.evaluate.manifest import Case
from workers.evaluate.overlap import Labels, Overlap, overlaps, size_unit
from workers.predict.network import Network
from workers.predict.reading import read


@dataclass(frozen=True)
class Score:
    """What one case gave: a probability per finding, or an overlap per segment.

    `size_unit` is the unit of the segments' sizes, `in_mm` whether distances are millimeters (pixels otherwise).
    """

    case: Case
    probabilities: tuple[float, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    size_unit: str = ""
    in_mm: bool = False

    @property
    def dice(self) -> float:
        """Mean Dice over the segments that are there or predicted; NaN where none is."""
        known = [o.dice for o in self.overlaps if np.isfinite(o.dice)]
        return float(np.mean(known)) if known else float("nan")


@dataclass(frozen=True)
class Comparison:
    """A volume with the labels that a person drew and that the bundle made of it."""

    volume: Volume
    truth: Labels
    predicted: Labels


def score(case: Case, network: Network, bundle: Bundle, started: datetime, manifest: str) -> Score:
    """Read one case and score it.

    Raises `Unsuitable` where the image cannot be read, `Permanent` where the network fails, and `ConfigError` with
    the line of `manifest` where the mask does not belong to it.
    """
    if bundle.dicom.finding:
        reading = _read(images.volume_for(case.image, bundle), network, bundle, started)
        return Score(case, probabilities=tuple(finding.probability for finding in reading.findings))
    found = compare(case, network, bundle, started, manifest)
    fit = overlaps(found.predicted, found.truth, found.volume, bundle)
    return Score(case, (), fit, size_unit(found.volume), found.volume.spacing_mm is not None)


def compare(case: Case, network: Network, bundle: Bundle, started: datetime, manifest: str) -> Comparison:
    """Return the image of a case with both label maps; raises as `score` does."""
    assert not isinstance(case.truth, tuple)  # noqa: S101 - a bundle of segments has masks in its manifest
    volume = images.volume_for(case.image, bundle)
    read_mask = images.masks if bundle.dicom.overlaps else images.mask
    try:
        truth: Labels = read_mask(case.truth, volume, bundle)
    except images.MaskError as error:
        raise ConfigError(manifest, case.line, str(error)) from None
    [found] = _read(volume, network, bundle, started).segmentations
    return Comparison(volume, truth, found.labels if found.masks is None else found.masks)


def _read(volume: Volume, network: Network, bundle: Bundle, started: datetime) -> Reading:
    return read(network, [volume], bundle, started)
