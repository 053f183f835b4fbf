"""Measures how busy the machine is, under the names that MLflow's page of system metrics knows."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

_PREFIX = "system/"


class SystemMetrics:
    """Takes samples of the machine, and of one process on it.

    Args:
        client, run_id: the run; the steps of a resumed one are counted on.
        seconds: time between samples.
        pid: the process.

    Attributes:
        due: time of the next sample, by `time.monotonic`.
    """

    def __init__(self, client: MlflowClient, run_id: str, seconds: float, pid: int) -> None:
        self.seconds = seconds
        self.due = time.monotonic() + min(seconds, 2.0)
        earlier_name = next((name for name in client.get_run(run_id).data.metrics if name.startswith(_PREFIX)), None)
        history = client.get_metric_history(run_id, earlier_name) if earlier_name is not None else []
        self._step = max((metric.step + 1 for metric in history), default=0)
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # no GPU, or nothing to ask it with
            self._monitors.append(GPUMonitor())
        self._process: psutil.Process | None = None
        with contextlib.suppress(psutil.Error):
            self._process = psutil.Process(pid)
            self._process.cpu_percent()

    def sample(self) -> dict[str, Any]:
        """Measure now, and return the metrics as an event for the spool."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        if self._process is not None:
            with contextlib.suppress(psutil.Error), self._process.oneshot():
                values["process_cpu_percentage"] = self._process.cpu_percent()
                values["process_memory_megabytes"] = self._process.memory_info().rss / 1e6
        step, self._step = self._step, self._step + 1
        self.due = time.monotonic() + self.seconds
        metrics = {f"{_PREFIX}{name}": float(value) for name, value in values.items()}
        return {"call": "metrics", "metrics": metrics, "step": step, "timestamp": int(time.time() * 1000)}
