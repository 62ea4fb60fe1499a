"""Small kernels on a real GPU through the CUDA driver's C interface: PTX text in, arrays out. Needs libcuda only."""

from __future__ import annotations

import ctypes
from types import TracebackType

import numpy as np

from dsv4.emulator.text_kernel import Kernel

MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CUfunction_attribute
CLUSTER_DIMENSION = 4  # CUlaunchAttributeID
JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 5, 6  # CUjit_option
LOG_BYTES = 4096
GUARD_BYTES = 4096


class DriverError(RuntimeError):
    """What the driver answered, in one line."""


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_uint32 * 16))


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


class Driver:
    """The first GPU's primary context, for one thread. Raises :class:`DriverError` for whatever the driver refuses."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", 0)
        device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._call("cuCtxSetCurrent", self._context)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self.lib, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorString(code, ctypes.byref(text))
            raise DriverError(f"{name}: {code} ({(text.value or b'unknown').decode()})")

    def encode_tiled(self, address: int, **asked: object) -> bytes | str:
        """128 bytes that cuTensorMapEncodeTiled makes, or what it answers instead; arguments in the driver's numbers.

        ``data_type``, ``dims``, ``strides_bytes``, ``box``, ``element_strides``, ``interleave``, ``swizzle``,
        ``l2_promotion``, ``fill``. The address is not looked at.
        """
        room = (ctypes.c_uint8 * 256)()
        at = ctypes.addressof(room) + -ctypes.addressof(room) % 64
        dims, strides, box, steps = (asked[name] for name in ("dims", "strides_bytes", "box", "element_strides"))
        assert isinstance(dims, tuple) and isinstance(strides, tuple)
        assert isinstance(box, tuple) and isinstance(steps, tuple)
        code = self.lib.cuTensorMapEncodeTiled(
            ctypes.c_void_p(at),
            asked["data_type"],
            len(dims),
            ctypes.c_void_p(address),
            (ctypes.c_uint64 * len(dims))(*dims),
            (ctypes.c_uint64 * max(len(strides), 1))(*strides),
            (ctypes.c_uint32 * len(box))(*box),
            (ctypes.c_uint32 * len(steps))(*steps),
            asked["interleave"],
            asked["swizzle"],
            asked["l2_promotion"],
            asked["fill"],
        )
        return ctypes.string_at(at, 128) if code == 0 else f"error {code}"

    def module(self, text: str) -> Module:
        """A PTX text, compiled by the driver."""
        return Module(self, text)

    def run(self, kernel: Kernel) -> dict[str, np.ndarray]:
        """Copies of the kernel's arrays as they are after one launch. Arrays here stay as they were."""
        buffers = {name: _Buffer(self, array.nbytes) for name, array in kernel.arrays.items()}
        try:
            for name, array in kernel.arrays.items():
                buffers[name].put(np.ascontiguousarray(array))
            starts = [(array.ctypes.data, array.nbytes, buffers[name]) for name, array in kernel.arrays.items()]

            def placed(address: int) -> int:
                for start, size, buffer in starts:
                    if start <= address < start + size:
                        return buffer.address + address - start
                raise DriverError(f"address {address:#x} lies in no array of the kernel")

            with self.module(kernel.text()) as module:
                module.launch(kernel, kernel.parameters(placed))
            return {name: buffers[name].get(array.dtype, array.shape) for name, array in kernel.arrays.items()}
        finally:
            for buffer in buffers.values():
                buffer.free()


class Module:
    """One loaded text with the entry ``kernel``."""

    def __init__(self, driver: Driver, text: str) -> None:
        self._driver, self._module, self._function = driver, ctypes.c_void_p(), ctypes.c_void_p()
        log = ctypes.create_string_buffer(LOG_BYTES)
        options = (ctypes.c_int * 2)(JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), LOG_BYTES)
        try:
            driver._call("cuModuleLoadDataEx", ctypes.byref(self._module), text.encode() + b"\0", 2, options, values)
        except DriverError as error:
            said = " ".join(log.value.decode(errors="replace").split())
            raise DriverError(f"{error} {said}".strip()) from None
        driver._call("cuModuleGetFunction", ctypes.byref(self._function), self._module, b"kernel")

    def __enter__(self) -> Module:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._driver.lib.cuModuleUnload(self._module)

    def launch(self, kernel: Kernel, parameters: list[bytes]) -> None:
        """Launches and waits."""
        driver = self._driver
        if kernel.smem_bytes > 48 * 1024:
            driver._call("cuFuncSetAttribute", self._function, MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.smem_bytes)
        rooms = [ctypes.create_string_buffer(block, len(block)) for block in parameters]
        pointers = (ctypes.c_void_p * max(len(rooms), 1))(*(ctypes.addressof(room) for room in rooms))
        attribute = _Attribute(CLUSTER_DIMENSION, b"", (ctypes.c_uint32 * 16)(kernel.cluster, 1, 1))
        config = _Config(
            (ctypes.c_uint * 3)(kernel.grid * kernel.cluster, 1, 1),
            (ctypes.c_uint * 3)(kernel.block, 1, 1),
            kernel.smem_bytes,
            None,
            ctypes.pointer(attribute),
            int(kernel.cluster > 1),
        )
        driver._call("cuLaunchKernelEx", ctypes.byref(config), self._function, pointers, None)
        driver._call("cuCtxSynchronize")


class _Buffer:
    """Device memory that begins at a multiple of 512 bytes, with room behind it."""

    def __init__(self, driver: Driver, size_bytes: int) -> None:
        self._driver, pointer = driver, ctypes.c_uint64()
        driver._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size_bytes + GUARD_BYTES))
        self.address = pointer.value

    def put(self, array: np.ndarray) -> None:
        self._driver._call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(self.address),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
        )

    def get(self, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        array = np.zeros(shape, dtype)
        self._driver._call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(self.address),
            ctypes.c_size_t(array.nbytes),
        )
        return array

    def free(self) -> None:
        self._driver.lib.cuMemFree_v2(ctypes.c_uint64(self.address))
