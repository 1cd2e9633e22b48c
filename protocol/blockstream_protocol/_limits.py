"""What the peer can make us hold, each with the reason for its number (SPEC 5).

A limit is checked before anything is allocated for what it bounds.
"""

# 64 KiB of keys is far more than any control message needs.
CONTROL_BYTES = 64 << 10
CONTROL_DEPTH = 4
# Larger frames gain no speed and cost a buffer in every worker at both ends.
DATA_BYTES = 1 << 20
# A frame of 512-byte extents is full at 2048 rows; zeros may double that.
FRAME_EXTENTS = 4096
EXTENTS_BYTES = 4 + 20 * FRAME_EXTENTS + DATA_BYTES
# 1 MiB of rows, so that a plan frame fits the buffers of a data frame.
PLAN_FRAME_BYTES = 16 * (1 << 16)
# 64 MiB of rows on either side. A sender with a finer map closes its smallest gaps.
PLAN_EXTENTS = 1 << 22
# 8 EiB - 1: file offsets are signed.
DEVICE_BYTES = (1 << 63) - 1
# All devices of the last thirty years address in 512-byte sectors.
ALIGNMENT = 512
ID_CHARS = 256
TEXT_BYTES = 1024

PING_SECONDS = 15.0
IDLE_SECONDS = 90.0
# PING says that a side is there, not that it does what it must.
OWED_SECONDS = 600.0
# Who continues reads again, to prove it, what the peer holds: a slower source is none.
PROVED_BYTES_PER_SECOND = 1 << 20
CHECKPOINT_BYTES = 256 << 20
CHECKPOINT_SECONDS = 2.0
