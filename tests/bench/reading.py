"""How fast a series is read: our pipeline beside the usual way, on the same weights, in one run on one machine.

`python -m tests.bench.reading [--rounds 3] [--series DIR] [--json]`, or `make bench-reading`. Both ways take turns,
with their networks warm; the label maps on the source grid must agree. The report is the SEG alone in both. CPU seconds
are those of all threads: on a machine that does other work, too, they say more than seconds. With `--device cuda` both
compute on the GPU, each with PyTorch's settings as it finds them or makes them; a stage ends when the GPU has done it.

Cases: `hippocampus`, the shipped bundle on a crop (`--series`, or a phantom); `organs`, a CT of 300 × 512 × 512 with
five synthetic organs, read at 1.5 mm by the network of public CT bundles, which is trained on them first; and `ct`, the
weights of hippocampus in a sliding window over a synthetic CT of that size: a network that computes at full resolution,
where what is found means nothing and what it costs does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from node import clock
from node.bundles import SHIPPED, Bundle
from node.bundles import load as load_bundle
from node.findings import Reading
from node.simulate.phantoms import volume
from tests.bench import in_a_row, organs
from tests.bench.usual import UsualWay
from workers.load.series import load
from workers.predict.network import Network
from workers.predict.reading import algorithm
from workers.predict.segment import segmentation
from workers.report import evidence, gate
from workers.report.context import Context

CASES = ("hippocampus", "ct", "organs")
STAGES = ("load", "prepare", "network", "back", "report")
CT_SHAPE, CT_SPACING_MM = (300, 512, 512), (1.0, 0.8, 0.8)
CROP_SHAPE, CROP_SPACING_MM = (36, 52, 36), (1.0, 1.0, 1.0)
Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A bundle and the folder of the series that it reads."""

    name: str
    bundle: Bundle
    series: Path


@dataclass(frozen=True)
class Pair:
    """One round: seconds and CPU seconds per stage of each way, and how well the label maps agree."""

    case: str
    usual_s: dict[str, float]
    wetread_s: dict[str, float]
    usual_cpu_s: dict[str, float]
    wetread_cpu_s: dict[str, float]
    differing_voxels: int
    mean_dice: float


@dataclass(frozen=True)
class Row:
    """Many series in a row, by so many readers of the product: seconds for each, and those of the usual way."""

    case: str
    readers: int
    usual_s: float
    wetread_s: float


class Laps:
    """Seconds and CPU seconds per stage, from one `lap` to the next."""

    def __init__(self) -> None:
        self.took, self.cpu = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0)
        self.start()

    def start(self) -> None:
        """Begin the first stage now."""
        self._last, self._cpu = time.perf_counter(), time.process_time()

    def __call__(self, stage: str) -> None:
        """End `stage`, once the GPU has done what it was given."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.took[stage] += time.perf_counter() - self._last
        self.cpu[stage] += time.process_time() - self._cpu
        self.start()


class OurWay:
    """The stages of `workers/pipeline.py`, with a clock at each."""

    def __init__(self, bundle: Bundle, runtime: Any = "torch", device: str = "cpu") -> None:
        self._bundle, self._network = bundle, Network(bundle, device, bundle.digest, runtime)
        self._lap: Callable[[str], None] = lambda stage: None
        for name, stage in (("_prepared", "prepare"), ("_inferer", "network"), ("_after", "back")):
            setattr(self._network, name, self._clocked(getattr(self._network, name), stage))

    def read(self, folder: Path, out: Path, lap: Callable[[str], None]) -> Labels:
        """Read the series in `folder` and write its SEG to `out`; return the label map as (slice, row, column)."""
        self._lap = lap
        files = sorted(folder.glob("*.dcm"))
        [loaded] = load(files, 3)
        lap("load")
        found = segmentation(self._network.read(loaded), loaded, self._bundle)
        lap("back")
        reading = Reading(algorithm(self._bundle), clock.to_datetime(clock.now()), segmentations=(found,))
        context = Context(files, key="0" * 64, results=("SEG",))
        documents = evidence.build(reading, [loaded], context)
        gate.check(documents, reading, [loaded], context)
        for document in documents:
            out.write_bytes(evidence.to_bytes(document))
        lap("report")
        return found.labels

    def _clocked(self, step: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            answer = step(*arguments)
            self._lap(stage)
            return answer

        return run


def cases(
    names: Sequence[str], series: Path | None, folder: Path, slices: int = CT_SHAPE[0], device: str = "cpu"
) -> list[Case]:
    """Return the named cases; what they need is made below `folder`, and what is trained is trained on `device`."""
    made = []
    if "hippocampus" in names:
        crop = series or phantom(folder / "crop", "MR", CROP_SHAPE, CROP_SPACING_MM)
        made.append(Case("hippocampus", load_bundle(SHIPPED / "hippocampus"), crop))
    if "ct" in names:
        made.append(
            Case(
                "ct",
                windowed(folder / "ct_window"),
                phantom(folder / "ct", "CT", (slices, *CT_SHAPE[1:]), CT_SPACING_MM),
            )
        )
    if "organs" in names:
        shape = (slices, *CT_SHAPE[1:])
        trained = organs.bundle(folder / "organs", shape, CT_SPACING_MM, device=device)
        made.append(Case("organs", trained, organs.series(folder / "organs_ct", shape, CT_SPACING_MM)))
    return made


def phantom(folder: Path, modality: Any, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Path:
    """Write a synthetic axial volume of `shape` (slice, row, column), one file per slice; return `folder`."""
    folder.mkdir()
    for number, ds in enumerate(volume("axial", modality, shape, spacing_mm)[0]):
        ds.save_as(folder / f"{number:04}.dcm", enforce_file_format=True)
    return folder


def windowed(folder: Path) -> Bundle:
    """Return the hippocampus bundle as organ bundles are: 1.5 mm, sliding window, labels back on the source grid."""
    shutil.copytree(SHIPPED / "hippocampus", folder)
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    for step in config["preprocessing"]["transforms"]:
        if step["_target_"] == "Spacingd":
            step["pixdim"] = [1.5, 1.5, 1.5]
    config["inferer"] = {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "overlap": 0.25}
    components = "KeepLargestConnectedComponentd"  # of an organ there may be two
    after = config["postprocessing"]["transforms"]
    config["postprocessing"]["transforms"] = [step for step in after if step["_target_"] != components]
    path.write_text(json.dumps(config))
    return load_bundle(folder)


def measure(
    case: Case, rounds: int, warm_up: int, scratch: Path, runtime: str = "torch", device: str = "cpu"
) -> list[Pair]:
    """Read the series `rounds` times in both ways, after `warm_up` rounds that do not count."""
    ways = (UsualWay(case.bundle, device), OurWay(case.bundle, runtime, device))
    pairs = []
    for number in range(1 - warm_up, rounds + 1):
        laps = (Laps(), Laps())
        labels: list[Labels] = [np.empty(0, np.uint8)] * 2
        for i in (0, 1) if number % 2 else (1, 0):
            laps[i].start()
            labels[i] = ways[i].read(case.series, scratch / f"{i}.dcm", laps[i])
        took, differing = (laps[0].took, laps[1].took, laps[0].cpu, laps[1].cpu), int((labels[0] != labels[1]).sum())
        pair = Pair(case.name, *took, differing, mean_dice(*labels))
        if number > 0:
            pairs.append(pair)
        print(f"{case.name}, round {number} of {rounds}", file=sys.stderr)
    return pairs


def rows(case: Case, count: int, pairs: Sequence[Pair], scratch: Path, runtime: str, device: str) -> list[Row]:
    """Read the series `count` times in a row, by one reader and by two, beside what the usual way took in `pairs`."""
    usual = statistics.median(_seconds(pair.usual_s, "all") for pair in pairs)
    made = []
    for readers in (1, 2):
        each = in_a_row.seconds_each(case.bundle, case.series, scratch, count, readers, runtime, device)
        made.append(Row(case.name, readers, usual, each))
        print(f"{case.name}, {count} in a row with {readers} readers", file=sys.stderr)
    return made


def mean_dice(usual: Labels, ours: Labels) -> float:
    """Return the mean Dice over the labels that either has; 1 where both are empty."""
    values = sorted(set(np.unique(usual)) | set(np.unique(ours)) - {0})
    scores = [_dice(usual == value, ours == value) for value in values if value]
    return statistics.fmean(scores) if scores else 1.0


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def table(pairs: Sequence[Pair]) -> str:
    """Return a Markdown table per case: medians of the seconds, and the median of the ratios round by round."""
    return "\n\n".join(_table(name, [pair for pair in pairs if pair.case == name]) for name in _names(pairs))


def _table(name: str, pairs: Sequence[Pair]) -> str:
    lines = [f"| {name} | usual s | wetread s | ratio | usual CPU s | wetread CPU s | ratio |", "|---|" + "---|" * 6]
    for stage in (*STAGES, "all but network", "all"):
        wall = _cells(stage, [(pair.usual_s, pair.wetread_s) for pair in pairs])
        lines.append(f"| {stage} | {wall} | {_cells(stage, [(p.usual_cpu_s, p.wetread_cpu_s) for p in pairs])} |")
    share = statistics.median(p.wetread_s["network"] / _seconds(p.wetread_s, "all") for p in pairs)
    differing, dice = max(p.differing_voxels for p in pairs), min(p.mean_dice for p in pairs)
    lines += ["", f"Differing voxels: {differing}; mean Dice {dice:.7f}; the network is {share:.0%} of our time."]
    return "\n".join(lines)


def _cells(stage: str, ways: Sequence[tuple[dict[str, float], dict[str, float]]]) -> str:
    usual, ours = ([_seconds(way[i], stage) for way in ways] for i in (0, 1))
    ratios = [u / max(o, 1e-9) for u, o in zip(usual, ours, strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    return f"{statistics.median(usual):.3f} | {statistics.median(ours):.3f} | {spread}"


def _seconds(took: dict[str, float], stage: str) -> float:
    if stage == "all but network":
        return sum(took.values()) - took["network"]
    return sum(took.values()) if stage == "all" else took[stage]


def _names(pairs: Sequence[Pair]) -> list[str]:
    return list(dict.fromkeys(pair.case for pair in pairs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reading", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before those that count")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--series", type=Path, help="folder with the Part 10 files of a hippocampus crop")
    parser.add_argument("--threads", type=int, help="threads of PyTorch; as many as it likes without")
    parser.add_argument("--runtime", choices=("auto", "torch", "openvino"), default="torch", help="of our network")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both ways compute")
    parser.add_argument("--slices", type=int, default=CT_SHAPE[0], help="of the synthetic CT")
    parser.add_argument("--in-a-row", type=int, default=0, help="then read so many one after another, too")
    parser.add_argument("--json", action="store_true", help="every round, as JSON")
    asked = parser.parse_args(arguments)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory(prefix="wetread-bench-") as made:
        folder, pairs, many = Path(made), list[Pair](), list[Row]()
        for case in cases(asked.cases, asked.series, folder, asked.slices, asked.device):
            found = measure(case, asked.rounds, asked.warm_up, folder, asked.runtime, asked.device)
            pairs += found
            if asked.in_a_row:
                many += rows(case, asked.in_a_row, found, folder, asked.runtime, asked.device)
    if asked.json:
        print(json.dumps([asdict(each) for each in (*pairs, *many)], indent=1))
        return
    print(table(pairs))
    for row in many:
        ratio = row.usual_s / row.wetread_s
        print(
            f"\n{row.case}, in a row, readers = {row.readers}: {row.wetread_s:.1f} s each, {ratio:.2f} times as quick."
        )


if __name__ == "__main__":
    main()
