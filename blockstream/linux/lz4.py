"""lz4 frames, unpacked by the system's liblz4, which every Debian has for systemd's sake."""

import ctypes

from blockstream.errors import IntegrityError, NotFoundError

_LIBRARY = "liblz4.so.1"
_VERSION = 100  # LZ4F_VERSION, lz4frame.h


class Lz4Unpacker:
    """Unpacks frames, one after the other."""

    def __init__(self) -> None:
        """Prepare.

        Raises:
            NotFoundError: If there is no liblz4 here.
        """
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise NotFoundError(
                f"what unpacks lz4, {_LIBRARY}, is not installed here; nothing was written"
            ) from None
        self._library.LZ4F_decompress.restype = ctypes.c_size_t
        self._library.LZ4F_isError.argtypes = [ctypes.c_size_t]
        self._context = ctypes.c_void_p()
        self._library.LZ4F_createDecompressionContext(ctypes.byref(self._context), _VERSION)

    def unpack(self, packed: memoryview, into: memoryview) -> tuple[int, int, bool]:
        """Unpack as much as there is, or as there is room for; stops at the end of a frame.

        Returns:
            How many bytes were taken, how many were given, and whether a frame ended.

        Raises:
            IntegrityError: If it is no lz4, or damaged.
        """
        taken, given = ctypes.c_size_t(len(packed)), ctypes.c_size_t(len(into))
        left = self._library.LZ4F_decompress(
            self._context,
            _address(into),
            ctypes.byref(given),
            _address(packed),
            ctypes.byref(taken),
            None,
        )
        if self._library.LZ4F_isError(left):
            raise IntegrityError("a part that is packed with lz4 is damaged; nothing was written")
        return taken.value, given.value, left == 0

    def close(self) -> None:
        """Give its memory back."""
        self._library.LZ4F_freeDecompressionContext(self._context)


def _address(view: memoryview) -> ctypes.c_void_p:
    if not view:
        return ctypes.c_void_p()
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(view)))
