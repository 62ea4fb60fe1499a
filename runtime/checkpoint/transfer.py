"""Bytes from files into tensors, on several threads: the loader's inner part, which knows nothing of models.

Targets on the CPU are read into directly. Targets on a GPU pass through pinned staging buffers, one a thread, so that
reading and copying overlap and the host never holds more than the buffers; small ones are put together on the host and
copied as a whole. Pieces that lie one after another in a file become one read.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import torch

from dsv4.runtime.checkpoint.files import Found
from dsv4.runtime.checkpoint.safetensors_file import BUFFERS_MAX, SafetensorsFile
from dsv4.runtime.errors import CheckpointError

STAGE_BYTES = 32 << 20
"""The most that one read brings."""

SMALL_BYTES = 1 << 20
"""Targets on a GPU up to this are put together on the host."""

THREADS_MAX = 8


@dataclass
class Target:
    """A tensor to be filled: ``sources[i]`` goes to ``tensor[i]`` of a stack, a single source to the whole."""

    tensor: torch.Tensor
    sources: list[Found] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Piece:
    file: SafetensorsFile
    start: int
    nbytes: int
    memory: torch.Tensor  # flat, uint8
    offset: int


class Transfer:
    """Fills targets on ``device``; close it, or use it as a context."""

    def __init__(self, device: torch.device, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise CheckpointError(f"threads: found {threads}; valid: 1 or more")
        self.device = device
        count = threads or min(THREADS_MAX, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="dsv4-load")
        self._stages: queue.SimpleQueue[tuple[torch.Tensor, torch.cuda.Stream]] = queue.SimpleQueue()
        if device.type == "cuda":
            for _ in range(count):
                stage = torch.empty(STAGE_BYTES, dtype=torch.uint8, pin_memory=True)
                self._stages.put((stage, torch.cuda.Stream(device)))

    def fill(self, targets: Sequence[Target], advance: Callable[[int], None]) -> None:
        """Read all sources of ``targets``; returns when the bytes are there. ``advance`` is told of bytes read.

        After an exception no thread writes to any target any more.
        """
        small = {}
        if self.device.type == "cuda":
            small = {
                id(target): torch.empty(target.tensor.nbytes, dtype=torch.uint8)
                for target in targets
                if target.tensor.nbytes <= SMALL_BYTES
            }
            torch.cuda.current_stream(self.device).synchronize()  # the memory of the targets may have been in use
        pieces = [piece for target in targets for piece in _pieces(target, small.get(id(target)))]
        read = self._read_direct if self.device.type == "cpu" else self._read_staged
        futures = [self._pool.submit(read, run, advance) for run in _runs(pieces)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
        for future in futures:
            if not future.cancelled():
                future.result()
        for target in targets:
            if (host := small.get(id(target))) is not None:
                _bytes_of(target.tensor).copy_(host)

    def _read_direct(self, run: list[_Piece], advance: Callable[[int], None]) -> None:
        run[0].file.read_into(run[0].start, [(piece.memory.data_ptr() + piece.offset, piece.nbytes) for piece in run])
        advance(sum(piece.nbytes for piece in run))

    def _read_staged(self, run: list[_Piece], advance: Callable[[int], None]) -> None:
        nbytes = sum(piece.nbytes for piece in run)
        stage, stream = self._stages.get()
        try:
            run[0].file.read_into(run[0].start, [(stage.data_ptr(), nbytes)])
            done = 0
            with torch.cuda.stream(stream):
                for piece in run:
                    part = piece.memory[piece.offset : piece.offset + piece.nbytes]
                    part.copy_(stage[done : done + piece.nbytes], non_blocking=True)
                    done += piece.nbytes
        finally:
            try:
                stream.synchronize()  # also after an error: nothing may still read the stage or write a target
            finally:
                self._stages.put((stage, stream))
        advance(nbytes)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _pieces(target: Target, host: torch.Tensor | None) -> Iterator[_Piece]:
    memory = _bytes_of(target.tensor) if host is None else host
    offset = 0
    for found in target.sources:
        for first in range(0, found.entry.nbytes, STAGE_BYTES):
            nbytes = min(STAGE_BYTES, found.entry.nbytes - first)
            yield _Piece(found.file, found.entry.start + first, nbytes, memory, offset + first)
        offset += found.entry.nbytes


def _runs(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces in the files' order, those that follow one another taken together up to ``STAGE_BYTES``."""
    order = {id(file): place for place, file in enumerate(dict.fromkeys(piece.file for piece in pieces))}
    run: list[_Piece] = []
    size = 0
    for piece in sorted(pieces, key=lambda piece: (order[id(piece.file)], piece.start)):
        follows = run and run[-1].file is piece.file and run[-1].start + run[-1].nbytes == piece.start
        if run and (not follows or size + piece.nbytes > STAGE_BYTES or len(run) == BUFFERS_MAX):
            yield run
            run, size = [], 0
        run.append(piece)
        size += piece.nbytes
    if run:
        yield run
