"""Counters and gauges in Prometheus' text format.

Label values come from closed sets that the configuration names: whatever a stranger sends becomes `other`, so a
scanner of AE Titles cannot fill the memory, and no value of a data set can become a label.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"


class Metric:
    """One named series of numbers; made by `Registry.counter` and `Registry.gauge`."""

    def __init__(self, kind: str, name: str, help_text: str, labels: Mapping[str, Iterable[str]]) -> None:
        self.kind, self.name, self.help_text = kind, name, help_text
        self._allowed = {label: frozenset(values) for label, values in labels.items()}
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def add(self, amount: float = 1.0, **labels: str) -> None:
        """Add `amount` to the number that belongs to `labels`."""
        key = self._key(labels)
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount

    def set(self, value: float, **labels: str) -> None:
        """Set the number that belongs to `labels`; for gauges."""
        key = self._key(labels)
        with self._lock:
            self._values[key] = value

    def clear(self) -> None:
        """Forget every number; for gauges of what is not known now."""
        with self._lock:
            self._values.clear()

    def widen(self, **labels: Iterable[str]) -> None:
        """Allow more values of some labels; those that there were stay."""
        self._allowed |= {label: self._allowed[label] | frozenset(values) for label, values in labels.items()}

    def value(self, **labels: str) -> float:
        """Return the number that belongs to `labels`, 0 when it never changed."""
        with self._lock:
            return self._values.get(self._key(labels), 0.0)

    def counted(self) -> list[tuple[tuple[str, ...], float]]:
        """Return every number with the values of its labels."""
        with self._lock:
            return sorted(self._values.items())

    def grow(self, key: tuple[str, ...], amount: float) -> None:
        """Add `amount` to the number that `counted` named so, perhaps in another process."""
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount

    def lines(self) -> Sequence[str]:
        """Return the metric in the text format."""
        with self._lock:
            values = sorted(self._values.items())
        head = [f"# HELP {self.name} {self.help_text}", f"# TYPE {self.name} {self.kind}"]
        return head + [f"{self.name}{self._labels(key)} {value:.15g}" for key, value in values]

    def _key(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        if labels.keys() != self._allowed.keys():
            raise ValueError(f"{self.name} has the labels {sorted(self._allowed)}, not {sorted(labels)}")
        return tuple(labels[n] if labels[n] in allowed else OTHER for n, allowed in self._allowed.items())

    def _labels(self, key: tuple[str, ...]) -> str:
        pairs = [f'{name}="{_escape(value)}"' for name, value in zip(self._allowed, key, strict=True)]
        return f"{{{','.join(pairs)}}}" if pairs else ""


class Registry:
    """The metrics of one process; asking twice for a name gives the same metric."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}
        self._probes: list[tuple[Metric, Callable[[], float]]] = []
        self._lock = threading.Lock()

    def counter(self, name: str, help_text: str, **labels: Iterable[str]) -> Metric:
        """Return the counter `name`, which only grows; `labels` are label names and their allowed values."""
        return self._metric("counter", name, help_text, labels)

    def gauge(self, name: str, help_text: str, **labels: Iterable[str]) -> Metric:
        """Return the gauge `name`, which goes up and down."""
        return self._metric("gauge", name, help_text, labels)

    def probe(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a gauge without labels whose number is read when the page is asked for."""
        gauge = self.gauge(name, help_text)
        with self._lock:
            self._probes.append((gauge, read))

    def counters(self) -> dict[str, Metric]:
        """Return the counters by their names."""
        with self._lock:
            return {name: metric for name, metric in self._metrics.items() if metric.kind == "counter"}

    def render(self) -> str:
        """Return all metrics as one page in the text format 0.0.4."""
        with self._lock:
            metrics, probes = sorted(self._metrics.items()), list(self._probes)
        for gauge, read in probes:
            gauge.set(read())
        return "\n".join(line for _, metric in metrics for line in metric.lines()) + "\n"

    def _metric(self, kind: str, name: str, help_text: str, labels: Mapping[str, Iterable[str]]) -> Metric:
        with self._lock:
            found = self._metrics.setdefault(name, Metric(kind, name, help_text, labels))
        if found.kind != kind:
            raise ValueError(f"{name} is a {found.kind}")
        return found


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
