"""What is added to a training without changing it: progress, curves, a checkpoint after each epoch to go on from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.handlers.checkpoint_saver import CheckpointSaver
from monai.handlers.earlystop_handler import EarlyStopHandler
from monai.utils.misc import set_determinism

from node.errors import BundleError, Permanent

Tell = Callable[[dict[str, Any]], None]


class Watch:
    """Watches one training: `parts` holds trainer, evaluator, network, optimizer, and lr_scheduler and ema if any."""

    def __init__(self, parts: dict[str, Any], out: Path, seed: int, tell: Tell) -> None:
        self._parts, self._seed, self._tell = parts, seed, tell
        self._checkpoint = out / "checkpoint.pt"
        self._curves = out / "docs" / "curves.json"
        self.curves: list[dict[str, Any]] = []
        self._losses: list[float] = []
        self._validated: dict[str, float] = {}
        self._began = time.monotonic()

    def attach(self) -> None:
        """Add the handlers, after the bundle's own; raises `BundleError` for a checkpoint that does not fit."""
        trainer, evaluator = self._parts["trainer"], self._parts["evaluator"]
        if state := self._read(trainer):
            trainer.add_event_handler(Events.STARTED, self._go_on, state)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._keep)
        evaluator.add_event_handler(Events.COMPLETED, self._validate)

    def _count(self, trainer: Any) -> None:
        state = trainer.state
        self._losses.append(_loss(state.output))
        total = state.max_epochs * state.epoch_length
        self._tell({"total": total, "done": state.iteration, "image": f"epoch {state.epoch} of {state.max_epochs}"})

    def _validate(self, evaluator: Any) -> None:
        found = {name: float(value) for name, value in evaluator.state.metrics.items()}
        self._validated = {name: value for name, value in found.items() if math.isfinite(value)}

    def _keep(self, trainer: Any) -> None:
        """Write curves and checkpoint, each whole or not at all; end what learns nothing any more."""
        losses = [loss for loss in self._losses if math.isfinite(loss)]
        if not losses:
            told = f"The training ends: the loss of epoch {trainer.state.epoch} is no number. Lower the learning rate"
            raise Permanent(f"{told} (--set), or look for images and labels that are not finite.")
        seconds = round(time.monotonic() - self._began, 1)
        loss = round(sum(losses) / len(losses), 5)
        point = {"epoch": trainer.state.epoch, "loss": loss, **self._validated, "seconds": seconds}
        self.curves.append(point)
        self._losses, self._validated, self._began = [], {}, time.monotonic()
        if torch.distributed.is_initialized() and torch.distributed.get_rank():
            return  # one of several processes writes for all
        _replace(self._curves, lambda path: path.write_text(json.dumps(self.curves, indent=1) + "\n"))
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        state |= {"epoch": trainer.state.epoch, "epoch_length": trainer.state.epoch_length}
        state |= {"max_epochs": trainer.state.max_epochs, "curves": self.curves}
        state["early_stop"] = stop.state_dict() if (stop := self._early_stop()) else None
        state["saved"] = [[float(s.priority), s.filename] for s in self._saver()._saved]
        _replace(self._checkpoint, lambda path: path.write_bytes(_saved(state)))

    def _read(self, trainer: Any) -> dict[str, Any]:
        """Return the checkpoint, empty where there is none; refuse one of other data or another schedule."""
        if not self._checkpoint.is_file():
            return {}
        state: dict[str, Any] = torch.load(self._checkpoint, map_location=trainer.state.device, weights_only=True)
        other = "other data" if state["epoch_length"] != trainer.state.epoch_length else ""
        if self._parts.get("lr_scheduler") and state["max_epochs"] != trainer.state.max_epochs:
            other = f"a schedule of {state['max_epochs']} epochs"
        if other:
            raise BundleError(f"{self._checkpoint} was made with {other}. Remove it, or name another --out.")
        return state

    def _go_on(self, trainer: Any, state: dict[str, Any]) -> None:
        """Take up the training where the last checkpoint left it, with other random numbers than it began with."""
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        self.curves = state["curves"]
        self._saver().load_state_dict({"_saved": [tuple(saved) for saved in state["saved"]]})
        trainer.state.epoch = state["epoch"]
        trainer.state.iteration = state["epoch"] * state["epoch_length"]
        set_determinism(self._seed + state["epoch"])
        stop = self._early_stop()
        if stop and state["early_stop"]:
            stop.load_state_dict(state["early_stop"])
            if stop.counter >= stop.patience:
                trainer.terminate()

    def _stateful(self) -> dict[str, Any]:
        found = {name: self._parts[name] for name in ("network", "optimizer", "lr_scheduler") if self._parts.get(name)}
        found["network"] = getattr(found["network"], "module", found["network"])
        if ema := self._parts.get("ema"):
            found["ema"] = ema.ema_model
        return found

    def _early_stop(self) -> Any:
        """What ends the training when nothing gets better; None where the bundle has none."""
        found = next((h for h in self._parts["handlers"] if isinstance(h, EarlyStopHandler)), None)
        return getattr(found, "_handler", None)

    def _saver(self) -> Any:
        """The bundle's own keeper of the best weights; it must not forget what was best when a training goes on."""
        handlers = self._parts["handlers"]
        saver = next((h for h in handlers if isinstance(h, CheckpointSaver)), None)
        kept = getattr(saver, "_key_metric_checkpoint", None)
        if kept is None:
            raise BundleError("configs/train.json: validate#handlers has no CheckpointSaver with save_key_metric.")
        return kept


def _loss(output: Any) -> float:
    first = output[0] if isinstance(output, list) else output
    return float(first["loss"])


def _saved(state: dict[str, Any]) -> memoryview:
    """What torch saves; writing by itself, it has no words for a full disk."""
    buffer = BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    try:
        write(beside)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        told = f"{path} cannot be written: {error.strerror or error}. The training ends"
        raise Permanent(f"{told}; the same command goes on from the last whole epoch.") from None
