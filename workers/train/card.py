"""What a training leaves for people to read: its curves as a picture, and the card of the new bundle."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

from node import clock
from node.bundles import Bundle
from workers.train import datalist
from workers.train.request import Request

WATTS_PER_THREAD, WATTS_PER_GPU, GRAMS_PER_KWH = 10, 300, 400
"""What a card reckons with; nobody measured the machine."""


def curves(found: list[dict[str, Any]]) -> bytes:
    """Return loss and validation metrics over the epochs as PNG."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    names = sorted({name for point in found for name in point} - {"epoch", "seconds"})
    for name in names:
        points = [(point["epoch"], point[name]) for point in found if name in point]
        axis.plot(*zip(*points, strict=True), marker=".", label=name.replace("_", " "))
    axis.set(xlabel="Epoch", title="Training")
    axis.grid(color="#eeeeee")
    axis.legend(frameon=False)
    out = BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def cost(seconds: float, gpus: int, threads: int) -> str:
    """Return time, energy and carbon of a training in words; `seconds` of wall time on `gpus`, or on CPU `threads`."""
    watts = gpus * WATTS_PER_GPU if gpus else threads * WATTS_PER_THREAD
    kwh = watts * seconds / 3.6e6
    what = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{threads} CPU thread{'s' * (threads > 1)}"
    each = f"{WATTS_PER_GPU} W each" if gpus else f"{WATTS_PER_THREAD} W each"
    return (
        f"It took {seconds / 60:.3g} minutes on {what}: about {kwh:.2g} kWh and {kwh * GRAMS_PER_KWH:.2g} g of CO₂, "
        f"reckoned with {each} and {GRAMS_PER_KWH} g/kWh."
    )


def card(
    request: Request,
    bundle: Bundle,
    lists: datalist.Lists,
    found: list[dict[str, Any]],
    chosen: Mapping[str, Any],
    spent: str,
) -> str:
    """Return the card of the new bundle; what the old one's says stands below it, with another heading."""
    original = bundle.folder / "docs" / "README.md"
    began = f"the weights of {bundle.title}" if request.fine_tune else "random weights"
    counts = ", ".join(_count(part, lists.get(part, [])) for part in datalist.PARTS)
    said = original.read_text(encoding="utf-8") if original.is_file() else "It had no card.\n"
    changed = "".join(f", `{name}` {value}" for name, value in request.overrides.items())
    return (
        f"# {bundle.name}, trained here\n\n"
        f"Trained on {clock.to_iso(request.started)} by the `train.json` of {bundle.title}{changed}, from {began}, "
        f"{found[-1]['epoch']} epochs: {counts}. The weights are the best on the validation patients. {spent} "
        f"{_calibration(bundle, chosen)}"
        "Figures on the test patients are in `metrics.json`; they were used for nothing else. "
        "Not a medical device; not for diagnosis.\n\n![Training curves](curves.png)\n\n"
        f"What follows is the card of the bundle trained from; **its figures are not of these weights.**\n\n#{said}"
    )


def _calibration(bundle: Bundle, chosen: Mapping[str, Any]) -> str:
    if chosen:
        temperature = chosen["temperature_is"] == "chosen" and f"Temperature {chosen['temperature']:g} and threshold"
        return (
            f"{temperature or 'Threshold'} {chosen['threshold']:g} {'were' if temperature else 'was'} chosen again on "
            f"{chosen['images']} validation images, the threshold for a sensitivity of {chosen['asked_sensitivity']:g} "
            f"(there: sensitivity {chosen['sensitivity']:.3f}, specificity {chosen['specificity']:.3f}, calibration "
            f"error {chosen['calibration_error']:.3f}). {''.join(f'{note} ' for note in chosen['notes'])}"
        )
    if bundle.dicom.finding:
        return "Temperature and thresholds are still those of the old weights. "
    return ""


def _count(part: str, cases: list[dict[str, Any]]) -> str:
    return f"{len(cases)} {part} images of {len({str(c.get('patient', c['image'])) for c in cases})} patients"
