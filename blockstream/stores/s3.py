"""A bucket as a store: AWS, or anything that speaks S3.

Everything runs in an event loop of its own, in one thread; whoever calls waits for it.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import io
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final, TypeVar

from aiohttp import ClientError as HttpError

from blockstream.errors import (
    BlockstreamError,
    RefusedError,
    StoreDamagedError,
    StoreError,
    UsageError,
)
from blockstream.interfaces import PART_BYTES, ObjectInfo
from blockstream.stores.ranges import Ranges
from blockstream.stores.s3_client import (
    ATTEMPTS,
    FAILURES,
    IN_FLIGHT,
    AgainError,
    AmissError,
    BeyondEndError,
    TakenError,
    new_client,
    translated,
)

T = TypeVar("T")

_LEAST_PART: Final = 5 << 20  # of S3, but for the last one: EntityTooSmall
# S3 allows 5 GiB; but a server that does not answer within a minute is taken for dead.
_MOST_COPIED: Final = 256 << 20


class S3Objects:
    """Objects of a bucket. See `interfaces.Objects` for what each method promises."""

    def __init__(
        self, bucket: str, prefix: str = "", endpoint: str = "", *, allow_http: bool = False
    ) -> None:
        """Prepare to talk to it; nothing is asked yet.

        Args:
            bucket: The bucket.
            prefix: What all keys begin with; without slashes at its ends.
            endpoint: URL of another server than AWS; empty for what botocore's settings say.
            allow_http: Speak to another host without TLS.
        """
        self.name = f"s3://{bucket}" + (f"/{prefix}" if prefix else "")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._allow_http = allow_http
        self._endpoint = endpoint
        self._checksums = True
        self.attempts = ATTEMPTS
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="s3", daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        self._connecting = asyncio.Lock()
        self._client: Any = None
        self._is_closed = False

    # Objects.

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object that nobody has written."""
        try:
            self._put(key, data, IfNoneMatch="*")
        except TakenError:
            # The first attempt's reply may have been lost.
            return self._holds(key, data)
        except AmissError as error:
            raise RefusedError(
                f"{error}; the server may do no conditional writes (If-None-Match), without which "
                "two writers could lose each other's points; nothing was made"
            ) from error
        return True

    def put(self, key: str, data: bytes) -> None:
        """Write an object, in place of an older one."""
        self._put(key, data)

    def upload(self, key: str) -> "S3Upload":
        """Begin to write a large object."""
        return S3Upload(self, key)

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Return a range of an object."""
        if length == 0:
            return b""
        return self.run(self._read(key, offset, length))

    def read_whole(self, key: str, most: int) -> bytes:
        """Return all of an object."""
        return self.run(self._read(key, 0, None, most))

    def info(self, key: str) -> ObjectInfo | None:
        """Return what the server says of an object."""
        # Of a missing one, HEAD says 403 to whoever may not list.
        page = self._call(key, "list_objects_v2", key_word="Prefix", MaxKeys=1)
        found = map(self._info, page.get("Contents", []))
        return next((info for info in found if info.key == key), None)

    def listed(self, folder: str, depth: int = 1) -> Iterator[ObjectInfo]:
        """Give the objects of a folder, a page at a time."""
        last = ""
        for page in self._pages(folder, **({"Delimiter": "/"} if depth == 1 else {})):
            found = [self._info(each) for each in page.get("Contents", [])]
            found += [self._folder(each) for each in page.get("CommonPrefixes", [])]
            for info in sorted(found, key=lambda info: info.key):
                placed = _placed(info, folder, depth)
                if placed is not None and placed.key != last:
                    yield placed
                    last = placed.key

    def folders(self, folder: str) -> Iterator[str]:
        """Give the names of the folders in a folder."""
        for page in self._pages(folder, Delimiter="/"):
            for each in page.get("CommonPrefixes", []):
                yield self._folder(each).key.removeprefix(folder).rstrip("/")

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._call(key, "delete_object")

    def locked(self, key: str) -> bool:
        """Tell whether an object is retained: S3 would hide it all the same, if it was told to."""
        try:
            found = self._call(key, "head_object")
        except StoreDamagedError:
            return False
        until = found.get("ObjectLockRetainUntilDate")
        held = found.get("ObjectLockLegalHoldStatus") == "ON"
        return held or (until is not None and until.timestamp() > time.time())

    def forget_unfinished(
        self, folder: str, depth: int, before: float, spared: Collection[str] = ()
    ) -> int:
        """Give up uploads of others that nobody finished."""
        count, more = 0, dict[str, str]()
        while True:
            page = self._call(folder, "list_multipart_uploads", key_word="Prefix", **more)
            for each in page.get("Uploads", []):
                key = each["Key"].removeprefix(self._prefix)
                words = key.removeprefix(folder).split("/")
                ours = len(words) == depth and words[0] not in spared
                if ours and each["Initiated"].timestamp() <= before:
                    self._call(key, "abort_multipart_upload", UploadId=each["UploadId"])
                    count += 1
            if not page.get("IsTruncated"):
                return count
            more = {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page["NextUploadIdMarker"],
            }

    def close(self) -> None:
        """End the connections."""
        if self._is_closed:
            return
        with contextlib.suppress(StoreError):
            self.run(self._ended())
        self._is_closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _ended(self) -> None:
        """End what somebody may wait for yet who was left behind; end the connections."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)
        await self._stack.aclose()

    def source_of(self, key: str) -> dict[str, str]:
        """Return how a request names an object that is to be copied."""
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    # Requests.

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the loop, and wait for it."""
        try:
            return self.start(work).result()
        except concurrent.futures.CancelledError:
            raise StoreError(f"{self.name} was closed meanwhile") from None

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run something in the loop, and do not wait."""
        if self._is_closed:
            work.close()
            raise StoreError(f"{self.name} was closed meanwhile")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def request(self, key: str, what: str, *, key_word: str = "Key", **words: Any) -> Any:
        """Make one request.

        Raises:
            BlockstreamError: If it fails.
        """
        try:
            method = getattr(await self._connected(), what)
            return await method(Bucket=self._bucket, **{key_word: self._prefix + key}, **words)
        except FAILURES as error:
            raise translated(error, self.name, self._bucket, key) from error

    def _put(self, key: str, data: bytes, **words: str) -> None:
        crc = {"ChecksumCRC32": _base64(zlib.crc32(data))}

        async def put(summed: bool) -> None:
            # Each attempt has a payload of its own, because it is closed once it was sent.
            more = words | (crc if summed else {})
            await self.request(key, "put_object", Body=_Payload(data), **more)

        self.run(self.patiently(lambda: self.with_checksum(put)))

    def _holds(self, key: str, data: bytes) -> bool:
        """Tell whether an object is these bytes."""
        try:
            return self.read_whole(key, len(data)) == data
        except StoreDamagedError:
            return False

    def _pages(self, folder: str, **words: str) -> Iterator[dict[str, Any]]:
        """List what begins so."""
        while True:
            page = self._call(folder, "list_objects_v2", key_word="Prefix", **words)
            yield page
            if not page.get("IsTruncated"):
                return
            words["ContinuationToken"] = page["NextContinuationToken"]

    def _info(self, each: dict[str, Any]) -> ObjectInfo:
        """Return what a listing says of an object."""
        key = each["Key"].removeprefix(self._prefix)
        return ObjectInfo(key, each["Size"], each["LastModified"].timestamp())

    def _folder(self, each: dict[str, Any]) -> ObjectInfo:
        """Return what a listing says of all that begins with the same words."""
        return ObjectInfo(each["Prefix"].removeprefix(self._prefix), 0, 0.0, stray=True)

    def _call(self, key: str, what: str, **words: Any) -> Any:
        return self.run(self.patiently(lambda: self.request(key, what, **words)))

    async def _read(self, key: str, offset: int, length: int | None, most: int = 0) -> bytes:
        """Read a range, or all of it, and go on where a body ended too early."""
        pieces, have, most = list[bytes](), 0, most if length is None else length
        for _ in range(ATTEMPTS):
            last = "" if length is None else str(offset + length - 1)
            try:
                wanted = f"bytes={offset + have}-{last}"
                whole = await self._body(key, wanted, pieces, most - have)
            except BeyondEndError as error:
                raise StoreDamagedError(
                    f"{self.name}: {key} ends at byte {offset + have}, or before that"
                ) from error
            except (HttpError, OSError, TimeoutError):
                whole = False  # the connection broke within the body
            have = sum(map(len, pieces))
            if (length is None and whole) or have == length:
                # Here, because what many threads take and give back in turn is kept in shreds: a
                # restore took 60 MiB more.
                return b"".join(pieces)
        raise StoreError(f"{self.name}: {key} does not come whole; run it again")

    async def _body(self, key: str, wanted: str, pieces: list[bytes], most: int) -> bool:
        """Append what comes of a range; tell whether all came that was announced.

        Raises:
            StoreDamagedError: If more is announced than there may be.
        """
        words = {} if wanted == "bytes=0-" else {"Range": wanted}
        reply = await self.request(key, "get_object", **words)
        left = int(reply["ContentLength"])
        body = reply["Body"]
        try:
            if left > most:
                raise StoreDamagedError(f"{self.name}: {key} has more than {most} bytes")
            # `read` would hold it twice, and costs half as much again.
            async for piece in body.raw_stream.content.iter_any():
                pieces.append(piece)  # what came before an error counts
                left -= len(piece)
        finally:
            body.close()
        return left == 0

    async def patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try again, after longer and longer pauses, where a server says that it may work then."""
        number = 0
        while True:
            try:
                return await attempt()
            except AgainError:
                number += 1
                if number >= self.attempts:  # what the user allows is known by now
                    raise
                await asyncio.sleep(min(0.1 * 2**number, 5.0))

    async def _connected(self) -> Any:
        async with self._connecting:  # or each of the first requests would make a client
            if self._client is None:
                self._client, self.attempts = await new_client(
                    self._stack, self.name, self._endpoint, allow_http=self._allow_http
                )
            return self._client

    async def with_checksum(self, attempt: Callable[[bool], Awaitable[T]]) -> T:
        """Make a request with a checksum of ours, or without, for a server that takes it amiss.

        That is found out once.
        """
        if not self._checksums:
            return await attempt(False)
        try:
            return await attempt(True)
        except AmissError as error:
            try:
                done = await attempt(False)
            except BlockstreamError:
                raise error from None  # it was something else
            self._checksums = False
            return done


class S3Upload:
    """An object under way, in parts. See `interfaces.Upload`.

    Memory: the parts in flight, the one that is being filled, and as much of what is copied but
    too short to be a part.
    """

    def __init__(self, objects: S3Objects, key: str) -> None:
        """Name it; nothing is sent before a part is full."""
        self._objects = objects
        self._key = key
        self._filling = bytearray()
        self._id = ""
        self._parts: list[Future[dict[str, Any]]] = []
        self._slots = threading.Semaphore(IN_FLIGHT)
        self._ranges = Ranges(objects)
        self._size = 0
        self._copied = False

    def write(self, parts: Sequence[memoryview]) -> None:
        """Append bytes; waits while too many parts are in flight."""
        for part in parts:
            done = 0
            while done < len(part):
                step = part[done : done + PART_BYTES - len(self._filling)]
                self._filling += step
                done += len(step)
                if len(self._filling) == PART_BYTES:
                    self._send_part()

    def copy(self, key: str, offset: int, length: int) -> None:
        """Append a range of another object; the server copies what is large enough for a part."""
        self._ranges.check(key, offset, length)
        # What was written before must be large enough, too.
        read = max(0, _LEAST_PART - len(self._filling)) if self._filling else 0
        if length - read < _LEAST_PART:
            read = length
        for piece in self._ranges.pieces(key, offset, read):
            self.write([piece])
        offset, length = offset + read, length - read
        if length and self._filling:
            self._send_part()
        count = -(-length // _MOST_COPIED)
        for number in range(count):
            start, end = (offset + length * each // count for each in (number, number + 1))
            self._copy_part(key, start, end - start)

    def finish(self) -> None:
        """Make it visible and durable."""
        if not self._id:
            data = bytes(self._filling)
            self._objects.put(self._key, data)
            return
        if self._filling:
            self._send_part()
        done = [part.result() for part in self._parts]
        self._objects.run(self._objects.patiently(lambda: self._complete(done)))
        self._id = ""

    def abort(self) -> None:
        """Forget it."""
        for part in self._parts:
            part.cancel()
        if self._id:
            with contextlib.suppress(BlockstreamError):
                self._objects.run(
                    self._objects.request(self._key, "abort_multipart_upload", UploadId=self._id)
                )
            self._id = ""

    def _send_part(self) -> None:
        data = bytes(self._filling)
        self._filling.clear()
        crc = _base64(zlib.crc32(data))  # here, and not in the loop, which has enough to do
        self._start(len(data), lambda number: self._part(number, data, crc))

    def _copy_part(self, key: str, offset: int, length: int) -> None:
        self._copied = True
        wanted = f"bytes={offset}-{offset + length - 1}"
        self._start(length, lambda number: self._part_of(number, key, wanted))

    def _start(self, size: int, part: Callable[[int], Coroutine[Any, Any, dict[str, Any]]]) -> None:
        """Begin with a part, once there are not too many in flight."""
        if not self._id:
            self._id = self._objects.run(self._objects.with_checksum(self._create))["UploadId"]
        self._size += size
        self._slots.acquire()
        failed = next((p for p in self._parts if p.done() and p.exception() is not None), None)
        if failed is not None:
            failed.result()
        started = self._objects.start(part(len(self._parts) + 1))
        started.add_done_callback(lambda _part: self._slots.release())
        self._parts.append(started)

    async def _create(self, summed: bool) -> Any:
        words = {"ChecksumAlgorithm": "CRC32"} if summed else {}
        return await self._objects.request(self._key, "create_multipart_upload", **words)

    async def _part(self, number: int, data: bytes, crc: str) -> dict[str, Any]:
        async def send(summed: bool) -> dict[str, Any]:
            kept = {"ChecksumCRC32": crc} if summed else {}
            reply = await self._objects.request(
                self._key,
                "upload_part",
                UploadId=self._id,
                PartNumber=number,
                Body=_Payload(data),
                **kept,
            )
            return {"PartNumber": number, "ETag": reply["ETag"], **kept}

        return await self._objects.patiently(lambda: self._objects.with_checksum(send))

    async def _part_of(self, number: int, key: str, wanted: str) -> dict[str, Any]:
        """Let the server copy a part."""
        reply = await self._objects.patiently(
            lambda: self._objects.request(
                self._key,
                "upload_part_copy",
                UploadId=self._id,
                PartNumber=number,
                CopySource=self._objects.source_of(key),
                CopySourceRange=wanted,
            )
        )
        found = reply["CopyPartResult"]
        kept = {name: found[name] for name in ("ETag", "ChecksumCRC32") if name in found}
        return {"PartNumber": number, **kept}

    async def _complete(self, parts: Sequence[dict[str, Any]]) -> None:
        async def complete(summed: bool) -> None:
            words: dict[str, Any] = {"MpuObjectSize": self._size} if summed else {}
            await self._objects.request(
                self._key,
                "complete_multipart_upload",
                UploadId=self._id,
                MultipartUpload={"Parts": list(parts)},
                **words,
            )

        try:
            await self._objects.with_checksum(complete)
        except BlockstreamError:
            # The reply of an attempt that worked may have been lost: then it is there.
            if not await self._is_there():
                raise
        if self._copied:
            await self._check_size()

    async def _check_size(self) -> None:
        """Compare an object with its parts: old servers ignore the size that they are told.

        Raises:
            StoreError: If the server copied less, or more.
        """
        found = await self._objects.patiently(
            lambda: self._objects.request(self._key, "head_object")
        )
        if found["ContentLength"] != self._size:
            raise StoreError(
                f"{self._objects.name}: {self._key} has {found['ContentLength']} bytes, and not "
                f"the {self._size} of its parts; nothing names it"
            )

    async def _is_there(self) -> bool:
        try:
            found = await self._objects.request(self._key, "head_object")
        except BlockstreamError:
            return False
        return bool(found["ContentLength"] == self._size)


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's, a tenth faster, if it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _placed(info: ObjectInfo, folder: str, depth: int) -> ObjectInfo | None:
    """Return an object as `listed` gives it; None for a folder that stands for itself.

    Browsers of buckets make such objects.
    """
    words = info.key.removeprefix(folder).split("/")
    if not words[-1] and not info.stray and len(words) <= depth:
        return None
    if len(words) == depth and all(words):
        return info
    key = folder + "/".join(words[:depth])
    return replace(info, key=key + ("/" if len(words) > depth else ""), stray=True)


class _Payload(io.BytesIO):
    """Bytes to be sent. Asked for its buffer, which aiohttp does, it makes no copy of them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = data

    def getbuffer(self) -> memoryview:
        return memoryview(self._data)


def _base64(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def s3_objects(place: str, endpoint: str = "", *, allow_http: bool = False) -> S3Objects:
    """Return the objects of `s3://BUCKET/PREFIX`.

    Raises:
        UsageError: If there is no bucket in it.
    """
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    if not bucket:
        raise UsageError(f"{place} names no bucket")
    return S3Objects(bucket, prefix.strip("/"), endpoint, allow_http=allow_http)
