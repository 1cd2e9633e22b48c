"""What a receiver answers, read for a sender in a thread of its own."""

import threading
from dataclasses import replace

import blake3

from blockstream.errors import BlockstreamError, InterruptedTransferError
from blockstream.linux.buffers import aligned_buffer
from blockstream.linux.streams import WakeableReader
from blockstream.pipeline.compression import Decompressor
from blockstream.pipeline.receiver import FrameReader
from blockstream.pipeline.sender import SendEngine
from blockstream.words import noise_text
from blockstream_protocol import (
    EXTENTS_BYTES,
    Abort,
    LocalProtocolError,
    Refuse,
    RemoteProtocolError,
    message_of,
)


class ReplyReader:
    """Gives every answer to a sender, until the receiver hangs up."""

    def __init__(self, reader: WakeableReader, engine: SendEngine, name: str = "") -> None:
        """Prepare; `name` is what people call the receiver's host, and goes before its words."""
        self._name = name
        self._frames = FrameReader(reader)
        self._engine = engine
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more, and wait for the thread to notice."""
        self._frames.stop()
        self._thread.join()

    def last_words(self, seconds: float) -> None:
        """Let a receiver that hung up on us say why: wait for the end of its answers."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._listen()
        except (BlockstreamError, RemoteProtocolError, LocalProtocolError) as error:
            self._engine.fail(self._meant(error))

    def _meant(self, error: Exception) -> Exception:
        """Return what an error means: what is no stream was said by somebody else there."""
        if not self._frames.is_foreign:
            return error
        name = self._name or "the other end"
        return InterruptedTransferError(noise_text(name, self._frames.foreign_words()))

    def _listen(self) -> None:
        # Nothing as long as this may come, but the decoder has to have room to find that out.
        buffer = aligned_buffer(EXTENTS_BYTES)
        unpack = Decompressor()
        while True:
            frame = self._frames.next(buffer)
            if frame is None:
                break
            message = message_of(frame, blake3.blake3, unpack)
            if self._name and isinstance(message, Abort | Refuse):
                message = replace(message, text=f"{self._name}: {message.text}")
            self._engine.receive(message)
        if not self._frames.stopped:
            self._engine.hung_up()  # also inside a frame: what matters is what was said before
