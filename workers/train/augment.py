"""Augmentation of whole batches on the device that trains: the `prepare_batch` of a MONAI trainer.

MONAI's random transforms work image by image on the CPU (14 ms a film, 21 ms a crop of the hippocampus), which starves
a GPU. Here a batch is moved there as it was cached, and each image gets a random geometry and a random look. Targets
are probabilities, so that masks bent between voxels, mixed labels (mixup, Zhang 2018) and what teachers say
(distillation, Hinton 2015) are all one thing to the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Teacher = Callable[[Tensor], Tensor]
Between = tuple[float, float]


@dataclass(frozen=True)
class Geometry:
    """Where a voxel of the batch comes from; lengths in voxels, angles in radians, axes counted without channels."""

    size: Sequence[int]
    flips: Sequence[int] = ()
    turned: float = 1.0  # how often an image is turned, stretched, sheared and moved; the others are only flipped
    rotate: float = 0.0
    scale: Between = (1.0, 1.0)
    shear: float = 0.0
    translate: float = 0.0
    deformed: float = 0.0
    deform: float = 0.0
    padding: str = "zeros"

    def grid(self, batch: int, source: Sequence[int], device: torch.device) -> Tensor:
        """Return where each voxel is sampled, for `grid_sample`: (batch, *size, axes), the last axis reversed."""
        axes = len(self.size)
        lines = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in self.size]
        places = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1)
        matrix, moved = self._affine(batch, axes, device)
        found = torch.einsum("bij,...j->b...i", matrix, places)
        found = found + moved.view(batch, *[1] * axes, axes)
        if self.deformed:
            bent = smooth_field(batch, axes, self.size, device) * _some(self.deformed, batch, axes + 2, device)
            found = found + self.deform * bent.movedim(1, -1)
        return (found * (2 / torch.tensor(source, device=device))).flip(-1)

    def _affine(self, batch: int, axes: int, device: torch.device) -> tuple[Tensor, Tensor]:
        some = _some(self.turned, batch, 1, device)
        low, high = map(math.log, self.scale)
        stretch = (some.view(-1, 1) * _uniform((batch, axes), low, high, device)).exp()
        bent = some.view(-1, 1, 1) * _uniform((batch, axes, axes), -1.0, 1.0, device)
        skew = bent - bent.mT
        turn = torch.linalg.matrix_exp(self.rotate * skew / 2)
        shear = torch.eye(axes, device=device) + self.shear * torch.triu(bent, 1)
        sign = torch.ones(batch, axes, device=device)
        for axis in self.flips:
            sign[:, axis] = 1 - 2 * (torch.rand(batch, device=device) < 0.5).float()
        moved = some.view(-1, 1) * self.translate * _uniform((batch, axes), -1.0, 1.0, device)
        return turn @ shear @ torch.diag_embed(stretch * sign), moved


@dataclass(frozen=True)
class Look:
    """What happens to intensities: how often each, and between which values; noise and shift in standard deviations."""

    often: float = 0.3
    gamma: Between = (1.0, 1.0)
    scale: float = 0.0
    shift: float = 0.0
    bias: float = 0.0
    blur: Between = (0.0, 0.0)
    noise: float = 0.0
    holes: int = 0
    hole: Between = (0.0, 0.0)

    def change(self, image: Tensor) -> Tensor:
        """Return images of (batch, channels, *size) that look otherwise."""
        batch, device, axes = len(image), image.device, image.dim() - 2

        def some() -> Tensor:
            return _some(self.often, batch, image.dim(), device)

        low, high = (edge.view(-1, *[1] * (axes + 1)) for edge in torch.aminmax(image.flatten(1), dim=1))
        span = (high - low).clamp_min(1e-6)
        power = 1 + some() * (_log_uniform(low.shape, *self.gamma, device) - 1)
        image = ((image - low) / span).clamp(0, 1) ** power * span + low
        deviation = image.flatten(1).std(1).view_as(low)
        if self.bias:
            field = smooth_field(batch, 1, image.shape[2:], device)
            image = image * (some() * self.bias * field).exp()
        image = image * (1 + some() * _uniform(low.shape, -self.scale, self.scale, device))
        image = image + some() * _uniform(low.shape, -self.shift, self.shift, device) * deviation
        if self.blur[1]:
            chosen = some()
            image = torch.where(chosen > 0, blurred(image, _uniform((batch,), *self.blur, device)), image)
        image = image + some() * _uniform(low.shape, 0.0, self.noise, device) * deviation * torch.randn_like(image)
        for _ in range(self.holes):
            image = image * (1 - some() * self._hole(image))
        return image

    def _hole(self, image: Tensor) -> Tensor:
        batch, device = len(image), image.device
        inside = torch.ones(batch, *[1] * (image.dim() - 1), device=device)
        for axis in range(2, image.dim()):
            size, shape = image.shape[axis], [1] * image.dim()
            shape[0], shape[axis] = batch, size
            half, middle = _uniform((batch, 1), *self.hole, device) / 2, torch.rand(batch, 1, device=device) * size
            inside = inside * ((torch.arange(size, device=device) - middle).abs() < half).float().view(shape)
        return inside


@dataclass(frozen=True)
class Augment:
    """`prepare_batch` of a trainer: the batch moved to the device, augmented there, with targets as probabilities.

    `classes` is the number of channels of the network: of a mask all labels from 0, or 1 for a mask of one label. The
    label of a whole image is its class, 0 or 1 or of several `classes` the number of one; or it has a place for each
    class, one-hot, multi-hot or as probabilities. `teach` is the share of the target that comes from `teacher`, whose
    classes exclude each other.
    """

    geometry: Geometry
    look: Look
    classes: int = 1
    mixup: float = 0.0
    normalize: bool = False
    teacher: Teacher | None = None
    teach: float = 0.5

    @torch.no_grad()
    def __call__(
        self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **how: Any
    ) -> tuple[Tensor, Tensor]:
        """Return images (batch, channels, *size) and targets: (batch, classes, *size), or (batch, classes) of images.

        Raises `ValueError` for labels of another number of images or classes.
        """
        image = batch["image"].to(device, non_blocking=non_blocking).float()
        label = batch["label"]
        if isinstance(label, list | tuple):  # of lists: PyTorch makes one tensor for each class, not for each image
            label = torch.stack([torch.as_tensor(one) for one in label], -1)
        target = torch.as_tensor(label).to(device, non_blocking=non_blocking)
        grid = self.geometry.grid(len(image), image.shape[2:], image.device)
        target = self._bend(target, grid) if target.dim() == image.dim() else self._whole(target, len(image))
        padding = self.geometry.padding
        image = self.look.change(functional.grid_sample(image, grid, padding_mode=padding, align_corners=False))
        if self.normalize:
            dims = tuple(range(1, image.dim()))
            image = (image - image.mean(dims, keepdim=True)) / image.std(dims, keepdim=True).clamp_min(1e-6)
        if self.mixup:
            image, target = self._mix(image, target)
        if self.teacher is not None:
            target = (1 - self.teach) * target + self.teach * self.teacher(image)
        return image, target

    def _whole(self, label: Tensor, batch: int) -> Tensor:
        """Labels of whole images, (batch,), (batch, 1) or (batch, classes), as (batch, classes)."""
        target = label.reshape(len(label), -1) if label.dim() else label.reshape(1, 1)
        if self.classes > 1 and target.shape[1] == 1:
            target = functional.one_hot(target[:, 0].long(), self.classes)
        if len(target) != batch or (self.classes > 1 and target.shape[1] != self.classes):
            told = f"{batch} images and {self.classes} classes have labels of the shape {tuple(label.shape)}"
            raise ValueError(f"{told}; expected ({batch},) or ({batch}, {self.classes})")
        return target.float()

    def _bend(self, label: Tensor, grid: Tensor) -> Tensor:
        """Labels are sampled one by one; what is of no label is background, also beyond the edge."""
        first = int(self.classes > 1)
        one = torch.cat([(label == value).float() for value in range(1, self.classes + 1 - first)], 1)
        bent = functional.grid_sample(one, grid, padding_mode="zeros", align_corners=False)
        return torch.cat([1 - bent.sum(1, keepdim=True), bent], 1) if first else bent

    def _mix(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        beta = torch.distributions.Beta(self.mixup, self.mixup)
        share = beta.sample((len(image),)).to(image.device)
        other = torch.randperm(len(image), device=image.device)
        of_image, of_target = (share.view(-1, *[1] * (x.dim() - 1)) for x in (image, target))
        mixed = of_image * image + (1 - of_image) * image[other]
        return mixed, of_target * target + (1 - of_target) * target[other]


def smooth_field(batch: int, channels: int, size: Sequence[int], device: torch.device, points: int = 5) -> Tensor:
    """Return random fields (batch, channels, *size), standard normal at `points` places along each axis."""
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(size)]
    coarse = torch.randn(batch, channels, *[points] * len(size), device=device)
    return functional.interpolate(coarse, size=tuple(size), mode=mode, align_corners=True)


def blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """Return each image of (batch, channels, *size) under a Gaussian of its own `sigma` (batch,), in voxels."""
    batch, axes = len(image), image.dim() - 2
    reach = torch.arange(-4, 5, device=image.device, dtype=torch.float32)
    kernel = torch.softmax(-(reach**2) / (2 * sigma.view(-1, 1).clamp_min(0.1) ** 2), 1)
    shape = image.shape
    convolve = {2: functional.conv2d, 3: functional.conv3d}[axes]
    flat = image.transpose(0, 1)  # every image is a channel of its own, with a kernel of its own
    for axis in range(axes):
        view, pad = [batch, 1, *[1] * axes], [0] * axes
        view[2 + axis], pad[axis] = len(reach), len(reach) // 2
        flat = convolve(flat, kernel.view(view), padding=pad, groups=batch)
    return flat.transpose(0, 1).reshape(shape)


def _some(share: float, batch: int, dims: int, device: torch.device) -> Tensor:
    return (torch.rand(batch, *[1] * (dims - 1), device=device) < share).float()


def _uniform(shape: Sequence[int], low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(*shape, device=device) * (high - low) + low


def _log_uniform(shape: Sequence[int], low: float, high: float, device: torch.device) -> Tensor:
    return torch.exp(_uniform(shape, math.log(low), math.log(high), device))
