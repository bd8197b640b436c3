"""A Model Bundle made ready to read: network, weights and the bundle's own transforms (MONAI Bundle, inference.json).

The bundle's `LoadImaged` is replaced by the volume in memory and its `SaveImaged` by the answer in memory; all
else runs as the bundle says. `$` expressions are code, so a bundle runs only when its digest is the one asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.bundle.config_parser import ConfigParser
from monai.data.meta_tensor import MetaTensor
from monai.transforms.post.dictionary import Activationsd, AsDiscreted, Invertd
from numpy.typing import NDArray

from node import macros
from node.bundles import Bundle, inference_config
from node.dicomconfig import BoxEntry
from node.errors import BundleError, Permanent, Transient, first_cause
from node.findings import Source, Volume
from workers.predict import detect, engine, layers, loaded, probabilities, wayback, weights
from workers.predict import device as devices
from workers.predict.detect import Found
from workers.predict.loaded import to_images
from workers.predict.memory import stepping_down
from workers.predict.quick import LabelsBackd, makes_labels_anywhere, quicken
from workers.predict.runtime import Runner, Runtime
from workers.predict.scripts import Scripts

_FIRST = "wetread_first"
_NEEDED = ("inferer", "preprocessing", "postprocessing")

Draw = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]
"""(network, input (1, channel, column, row[, slice])) → maps on the input's grid, (maps, column, row[, slice])."""

Said = tuple[dict[Any, Any], torch.Tensor]
"""What the preprocessing made of a volume, and what the network said of it before any postprocessing (class, …)."""


class Network:
    """One bundle on one device; stays warm between series."""

    def __init__(self, bundle: Bundle, device: str, digest: str, runtime: Runtime = "torch") -> None:
        """Build the network and load its weights.

        Raises `BundleError` when `digest` is not the bundle's, when `inference.json` lacks an id or does not build,
        and when the weights are of no kind that is loaded or do not fit the network; `Permanent` for a device that is
        not there. Without a `network_def` the network is the TorchScript program `models/model.ts`.
        """
        if bundle.digest != digest:
            raise BundleError(
                f"Bundle {bundle.title} has changed: its digest is {bundle.digest[:12]}, the job was made for "
                f"{digest[:12]}. It was not run. Route the study again, or restore the bundle."
            )
        self._title, self._is_mask = bundle.title, bundle.dicom.kind == "segmentation"
        self._device = devices.choose(device)
        self._scripts = Scripts(bundle.folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.turn: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while the network computes, and not while its transforms do."""
        self._kept: dict[tuple[Source, ...], Said] | None = None
        self._is_probable = False
        try:
            with self._scripts:
                parts = _parse(bundle, self._device)
        except BundleError:
            raise
        except Exception as error:  # a bundle's expressions are its author's code
            config = inference_config(bundle.folder).name
            told = f"Bundle {bundle.title}: configs/{config} does not build: {first_cause(error)}"
            raise BundleError(told) from error
        self._inferer, self._before, self._after = (parts[key] for key in _NEEDED)
        self._leaves_alone = quicken(self._before, self._after)
        self._stays_there = makes_labels_anywhere(self._after)
        self._keys = loaded.keys(self._before)
        _ = bundle.weights_sha256  # noted now: reports name what is loaded here, whatever lies there later
        self._network = weights.load(parts.get("network_def"), bundle, self._device)
        self._runner = Runner(self._network, self._device, runtime, bundle.title)

    def read(self, volume: Volume) -> NDArray[Any]:
        """Return what the bundle's postprocessing leaves under `pred` for one volume.

        A segmentation: (1, column, row[, slice]); a classification: (findings,). Raises `Permanent` when the
        network answers with anything but finite numbers, or its transforms fail. `shapes` then says what went through.
        """
        self.shapes = {"source": volume.pixels.shape}
        with torch.inference_mode(), self._at_work(volume):
            case, image = self._prepared(volume)
            self.shapes["network_input"] = tuple(image.shape)
            answer = self._said(image)
            self.shapes["network_output"] = tuple(answer.shape)
            if self._kept is not None:
                self._kept[volume.sources] = dict(case), answer[0].as_subclass(torch.Tensor).cpu()
            case["pred"] = answer[0]
            answer = self._after(case)["pred"]
            self.shapes["answer"] = tuple(answer.shape)
            if self._is_mask:
                chains = self._before, self._after
                wayback.require(case, self._image_key(case), answer, volume, chains, self._title)
            elif not self._is_probable:
                self._require_probabilities(case, image)
        return np.asarray(answer.cpu() if isinstance(answer, torch.Tensor) else answer)

    def detect(self, volume: Volume, how: BoxEntry) -> Found:
        """Return the boxes that the bundle's detector finds on one volume, after its postprocessing.

        Raises `Permanent` where it answers with anything but boxes, labels and finite scores in 0..1.
        """
        self.shapes = {"source": volume.pixels.shape}
        with torch.inference_mode(), self._at_work(volume):
            case, image = self._prepared(volume)
            key = self._image_key(case)
            affine = case[key].affine
            self.shapes["network_input"] = tuple(image.shape)
            with self._computing():
                answer = self._inferer(image, self._network)
            said = answer[0] if isinstance(answer, list | tuple) and answer else answer
            if not isinstance(said, dict):
                raise Permanent(f"{self._title} answered with a {type(said).__name__}; a detector answers with boxes.")
            self.shapes["network_output"] = tuple(said[how.boxes].shape) if how.boxes in said else ()
            found = detect.found(self._after({**case, **said}), how, affine, self._title)
            self.shapes["answer"] = found.boxes.shape
        return found

    def draw(self, volume: Volume, draw: Draw) -> NDArray[np.float32]:
        """Return the maps that `draw` makes of the network's input, brought back to the grid of `volume`.

        (maps, column, row[, slice]). What the preprocessing cut away is 0. Raises as `read` does.
        """
        with torch.no_grad(), self._at_work(volume):
            case, image = self._prepared(volume)
            with self._computing():
                maps = draw(self._network, image)
            return self._brought_back(case, maps)

    @contextmanager
    def keeping(self, wanted: bool) -> Iterator[None]:
        """Within this context and where `wanted`, what the network says in `read` is kept until `scores` takes it."""
        self._kept = {} if wanted else None
        try:
            yield
        finally:
            self._kept = None

    def scores(self, volume: Volume, *, overlaps: bool) -> NDArray[np.float32]:
        """Return how strongly the network speaks for each class, 0..1, on the grid of `volume`.

        (class, column, row[, slice]). As the bundle's own `Activationsd` has it; without one by softmax, or, of classes
        that may overlap (`overlaps`) and of a single one, by sigmoid. What was kept of `read` is taken and let go; else
        the network runs. Raises as `read` does.
        """
        with torch.no_grad(), self._at_work(volume):
            kept = self._kept or {}
            case, said = kept.pop(volume.sources) if volume.sources in kept else self._asked(volume)
            steps = [step for step in loaded.steps(self._after) if type(step) is Activationsd]
            if steps:
                key = steps[0].keys[0]
                said = torch.as_tensor(steps[0]({key: MetaTensor(said)})[key])
            else:
                said = said.sigmoid() if overlaps or len(said) == 1 else said.softmax(0)
            return self._brought_back(case, said)

    def _asked(self, volume: Volume) -> Said:
        case, image = self._prepared(volume)
        return case, self._said(image)[0].as_subclass(torch.Tensor)

    def _said(self, image: torch.Tensor) -> MetaTensor:
        """Return the network's finite answer to an input (1, channel, …): on its device where labels are made there."""
        with self._computing():
            said: MetaTensor = stepping_down(self._inferer, partial(self._finite, image), self._title)
        return said if self._stays_there else MetaTensor(said.cpu())

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with self.turn():
            try:
                yield
            finally:
                if self._device.type == "cuda":  # the next turn may be another process's, which would step down
                    torch.cuda.empty_cache()

    def _finite(self, image: torch.Tensor) -> MetaTensor:
        return self._require_finite(self._inferer(image, self._runner))

    def _brought_back(self, case: dict[Any, Any], maps: torch.Tensor) -> NDArray[np.float32]:
        """Return `maps` on the grid from which the preprocessing made `case`."""
        back = Invertd(keys="pred", transform=self._before, orig_keys=self._image_key(case), nearest_interp=False)
        return np.asarray(back({**case, "pred": self._require_finite(maps).cpu()})["pred"], np.float32)

    def _prepared(self, volume: Volume) -> tuple[dict[Any, Any], torch.Tensor]:
        """Return what the preprocessing makes of `volume`, and of it the network's input (1, channel, …)."""
        case = self._before(to_images(volume, self._keys, self._title, copy=not self._leaves_alone))
        return case, torch.as_tensor(case[self._image_key(case)]).as_subclass(torch.Tensor)[None].to(self._device)

    def _image_key(self, case: dict[Any, Any]) -> str:
        """The input's key: `image`, as bundles call it, or the one that was loaded."""
        return loaded.IMAGE if loaded.IMAGE in case else self._keys[0]

    @contextmanager
    def _at_work(self, volume: Volume) -> Iterator[None]:
        """The bundle's own code runs here; what it raises is told in words, with the object and the device."""
        with self._scripts:
            try:
                yield
            except (Permanent, MemoryError):
                raise
            except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
                told = str(error).partition("\n")[0]
                raise Transient(f"{self._title} could not run on {self._device}: {told}") from error
            except Exception as error:  # a bundle's transforms are its author's code
                raise Permanent(self._explain(error, volume)) from error

    @property
    def decides(self) -> bool:
        """Whether the postprocessing leaves decisions, 0 or 1, of what the network said (`AsDiscreted`)."""
        return any(type(step).__name__ == "AsDiscreted" for step in loaded.steps(self._after))

    @property
    def labels_classes(self) -> bool:
        """Whether the postprocessing makes a label map of classes by argmax."""
        kinds = (AsDiscreted, LabelsBackd)
        return any(isinstance(step, kinds) and any(step.argmax) for step in loaded.steps(self._after))

    @property
    def runtime(self) -> str:
        """What computed the last reading: `"torch"` or `"openvino"`."""
        return self._runner.name

    @property
    def peak_device_mb(self) -> int:
        """The most memory in MB that PyTorch held on a CUDA device; 0 on the CPU."""
        return round(torch.cuda.max_memory_allocated(self._device) / 1e6) if self._device.type == "cuda" else 0

    def _explain(self, error: Exception, volume: Volume) -> str:
        taken, given = weights.channels(self._network), self.shapes.get("network_input", (0, 0))[1]
        if given and "network_output" not in self.shapes and taken not in (0, given):
            return (
                f"{self._title} has a network of {taken} input channels, and its preprocessing makes {given} of these "
                "images. Nothing was reported. A network made for color needs color = true in dicom.toml; one made for "
                "several series needs a [[channel]] for each."
            )
        return f"{self._title} failed on an input of {volume.pixels.shape}: {first_cause(error)}"

    def _require_probabilities(self, case: dict[Any, Any], image: torch.Tensor) -> None:
        def answer(noise: torch.Tensor) -> torch.Tensor:
            with self._computing():
                said = MetaTensor(self._inferer(noise, self._runner)[0].float().cpu())
            return torch.as_tensor(self._after({**case, "pred": said})["pred"])

        if not probabilities.require_known(self._after, self.shapes["network_output"][1], self._title):
            probabilities.require_on_noise(answer, image, self._title)
        self._is_probable = True

    def _require_finite(self, answer: Any) -> MetaTensor:
        """Before argmax or a threshold can hide it: a network that computes NaN has no answer."""
        if not isinstance(answer, torch.Tensor):
            raise Permanent(
                f"{self._title} answered with a {type(answer).__name__}; one tensor was expected. "
                "Nothing was reported. Let network_def, or an inferer in its scripts/, return the one that is meant."
            )
        if not bool(torch.isfinite(answer).all()):
            raise Permanent(f"{self._title} answered with values that are not finite numbers; nothing was reported.")
        return MetaTensor(answer.float())


def _parse(bundle: Bundle, device: torch.device) -> dict[str, Any]:
    """Resolve the parts of `inference.json` that a reading needs, and nothing else of it.

    A detector is set up by what its evaluator requires (`evaluator::_requires_`): thresholds, sliding windows.
    """
    parser, folder = ConfigParser(), bundle.folder
    config = inference_config(folder)
    parser.read_config(str(config))
    parser.set(macros.in_place(parser.get(), folder))
    engine.require_plain(parser.get(), bundle.title)
    missing = [key for key in _NEEDED if key not in parser]
    if missing:
        raise BundleError(f"Bundle {folder.name}: configs/{config.name} has no id {', '.join(missing)}.")
    parser["bundle_root"] = str(folder)
    parser["device"] = device
    for key in ("preprocessing", "postprocessing"):
        if f"{key}::transforms" in parser:
            parser[f"{key}::transforms"] = loaded.in_memory(parser[f"{key}::transforms"])
    if bundle.dicom.kind == "detection":
        layers.provide()
        parser[_FIRST] = parser.get("evaluator::_requires_", [])
    parser.parse(True)
    if _FIRST in parser:
        parser.get_parsed_content(_FIRST)
    parts = {key: parser.get_parsed_content(key) for key in ("network_def", *_NEEDED) if key in parser}
    loaded.replace_files(parts["preprocessing"])
    loaded.replace_files(parts["postprocessing"])
    return parts
