"""One rank: performs what the parent sends, strictly in order."""

import gc
import logging
import os
import platform
import warnings
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers.utils.logging as diffusers_logging
import torch
import transformers.utils.logging as transformers_logging
import zmq
from torch._C._distributed_c10d import TCPStore

from tetriserve_backend.executor import wire, xfuser_cpu
from tetriserve_backend.executor.rendezvous import LOOPBACK
from tetriserve_backend.executor.worker_spec import SPEC_ADAPTER, ModelSpec, RankSpec
from tetriserve_backend.latency_table import LatencyTable

if TYPE_CHECKING:
    from tetriserve_backend.executor.models.base import DiffusionModel

_log = logging.getLogger(__name__)
_LINGER_MS = 500
_SOFTWARE = ("torch", "xfuser", "diffusers", "transformers")


def run_rank(spec: dict[str, Any]) -> None:
    """Be a rank until told to stop. `spec` is a `RankSpec` as JSON gives it."""
    checked = SPEC_ADAPTER.validate_python(spec)
    logging.basicConfig(level=logging.WARNING, format=f"rank {checked.rank}: %(levelname)s %(name)s: %(message)s")
    worker = Worker(checked)
    if worker.load():
        worker.serve()
    worker.close()


class Worker:
    """The message loop of one rank."""

    def __init__(self, spec: RankSpec) -> None:
        self._spec = spec
        self._device = _claim_device(spec)
        self._models: dict[str, DiffusionModel] = {}
        self._paces: dict[str, LatencyTable] = {}
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, spec.name.encode())
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(spec.endpoint)

    def load(self) -> bool:
        """Get ready to serve and tell the parent; false if that failed, which the parent has been told."""
        spec = self._spec
        try:
            xfuser_cpu.bring_up(self._device.type)
            # These import xfuser, which must be brought up first.
            from tetriserve_backend.executor.groups import RankGroups  # noqa: PLC0415
            from tetriserve_backend.executor.segment_runner import SegmentRunner  # noqa: PLC0415

            _quieten_libraries()
            self._groups = RankGroups(
                spec.rank, spec.world_size, self._device, spec.group_timeout_s, shares_memory=spec.shares_memory
            )
            self._runner = SegmentRunner(self._models, self._groups, self._tell_step, self._paces)
            for model in spec.models:
                self._load(model)
            timeout = timedelta(seconds=spec.start_timeout_s)
            self._store = TCPStore(LOOPBACK, spec.store_port, is_master=False, timeout=timeout)
        except Exception as error:
            _log.exception("cannot start")
            self._send(wire.StartFailed(_in_words(error)))
            return False
        facts = {name: model.facts for name, model in self._models.items()}
        self._send(wire.Loaded(wire.RankInfo(_device_name(self._device), _software()), facts))
        return True

    def serve(self) -> None:
        """Perform messages in order until `Stop`."""
        while True:
            try:
                message, tensors = wire.decode(self._socket.recv_multipart(copy=False))
            except wire.WireError as error:
                if error.segment_id is None:
                    raise
                self._send(wire.PartFailed(error.segment_id, str(error), "work", group_broken=False))
                continue
            if isinstance(message, wire.Stop):
                return
            self._obey(message, tensors)

    def _obey(self, message: wire.Message, tensors: tuple[wire.HostTensor, ...]) -> None:
        if isinstance(message, wire.Perform):
            outcome, results = self._runner.run(message.command, tensors)
            self._send(outcome, results)
        elif isinstance(message, wire.Forget):
            self._runner.forget(message.request_id)
        elif isinstance(message, wire.HealGroup):
            self._groups.heal(message.ranks, message.number)
            self._send(wire.GroupHealed(message.ranks))
        elif isinstance(message, wire.FormWorld):
            self._groups.form(message.generation, self._store)
            self._send(wire.WorldReady(message.generation))
        elif isinstance(message, wire.LoadModel):
            self._load_one_more(message.model)
        elif isinstance(message, wire.UnloadModel):
            self._unload(message.name)
            self._send(wire.ModelUnloaded(message.name))

    def _load(self, spec: ModelSpec) -> None:
        # Imports xfuser, which must be brought up first.
        from tetriserve_backend.executor.models.registry import load_model  # noqa: PLC0415

        dtype: torch.dtype = getattr(torch, spec.dtype)
        self._models[spec.name] = load_model(Path(spec.directory), spec.settings, self._device, dtype)
        self._paces.pop(spec.name, None)
        if spec.pace is not None:
            self._paces[spec.name] = LatencyTable.from_dict(spec.pace, "model.pace_table")

    def _load_one_more(self, spec: ModelSpec) -> None:
        try:
            self._load(spec)
        except Exception as error:
            _log.exception("cannot load %s", spec.name)
            reason = _in_words(error)
        else:
            self._send(wire.ModelLoaded(spec.name, self._models[spec.name].facts))
            return
        # Now that the exception is gone, nothing holds on to what had been loaded of it.
        self._free_memory()
        self._send(wire.ModelFailed(spec.name, reason))

    def _unload(self, name: str) -> None:
        self._paces.pop(name, None)
        if self._models.pop(name, None) is not None:
            self._free_memory()

    def _free_memory(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Let the last messages go out."""
        self._socket.close()
        zmq.Context.instance().term()

    def _tell_step(self, request_id: str, step_index: int, preview: tuple[wire.HostTensor, ...]) -> None:
        self._send(wire.StepDone(request_id, step_index, tuple(tensor.header for tensor in preview)), preview)

    def _send(self, message: wire.Message, tensors: tuple[wire.HostTensor, ...] = ()) -> None:
        self._socket.send_multipart(wire.encode(message, tensors), copy=False)


def _claim_device(spec: RankSpec) -> torch.device:
    if spec.device == "cuda":
        torch.cuda.set_device(spec.rank)
        return torch.device("cuda", spec.rank)
    torch.set_num_threads(spec.threads)
    if spec.is_pinned:
        # Before any thread is started: those of the process groups stay on these cores too.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[spec.rank * spec.threads : (spec.rank + 1) * spec.threads])
    return torch.device("cpu")


def _quieten_libraries() -> None:
    """Ranks share the server's log: no progress bars, no advice to developers of the libraries."""
    warnings.simplefilter("ignore", FutureWarning)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model} ({os.cpu_count()} cores)"


def _software() -> dict[str, str]:
    versions = {}
    for package in _SOFTWARE:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
