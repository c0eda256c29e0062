"""The CUDA runtime through its shared library: what running a TensorRT engine needs of it. Not run on hardware."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maenas.errors import GpuError

_CUDA_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so", "cudart64_13.dll", "cudart64_12.dll")
_TO_DEVICE, _TO_HOST = 1, 2
_PROPERTIES_BYTES = 1 << 14
_NAME_BYTES = 256
_COMPUTE_CAPABILITY = (75, 76)
"""Numbers of cudaDevAttrComputeCapabilityMajor and ...Minor."""


class Cuda:
    """The few functions of the CUDA runtime that are needed, called through its shared library."""

    def __init__(self) -> None:
        self._library = _load_cuda()

    def device_name(self) -> str:
        """Of the first GPU."""
        # The name is the first field of the structure, whose length differs between versions.
        buffer = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", buffer, 0)
        return buffer.raw[:_NAME_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace")

    def compute_capability(self) -> str:
        """Of the first GPU, such as `8.9`."""
        return ".".join(str(self._attribute(number)) for number in _COMPUTE_CAPABILITY)

    def stream(self) -> int:
        """A new stream."""
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(handle))
        return handle.value or 0

    def allocate(self, num_bytes: int) -> int:
        """Address of memory on the GPU."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(num_bytes))
        return pointer.value or 0

    def copy_in(self, device: int, array: Any, stream: int) -> None:  # noqa: ANN401
        """Array to the GPU."""
        self._copy(device, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def copy_out(self, array: Any, device: int, stream: int) -> None:  # noqa: ANN401
        """Array from the GPU."""
        self._copy(array.ctypes.data, device, array.nbytes, _TO_HOST, stream)

    def wait(self, stream: int) -> None:
        """Until the stream is done."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def free_memory(self, address: int) -> None:
        """Give memory back."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def free(self, addresses: Iterable[int], stream: int) -> None:
        """Give memory and stream back."""
        for address in addresses:
            self.free_memory(address)
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), number, 0)
        return value.value

    def _copy(self, target: int, source: int, num_bytes: int, kind: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(num_bytes),
            kind,
            ctypes.c_void_p(stream),
        )

    def _call(self, function: str, *arguments: Any) -> None:  # noqa: ANN401
        code = getattr(self._library, function)(*arguments)
        if code:
            raise GpuError(f"{function} of the CUDA runtime failed with code {code}; expected a working NVIDIA GPU")


def _load_cuda() -> ctypes.CDLL:
    packages = [Path(folder) / "nvidia" for folder in sys.path if folder]
    beside = [str(found) for folder in packages if folder.is_dir() for found in folder.glob("**/libcudart.so.*")]
    for name in (*_CUDA_LIBRARIES, *sorted(beside, reverse=True)):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise GpuError("the CUDA runtime (libcudart) is not found; expected an installation of CUDA 12 or 13")
