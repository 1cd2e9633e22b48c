"""Names of the formats, for options: without what reads them, so that `recv` starts fast."""

OURS = "bsx"
WRITTEN = ("lvmsync", "thin-send", "rbd")
READ = (
    *WRITTEN,
    "thin-send-1.0",
    "rbd-image",
    "bdsync",
    "blocksync-fast",
    "sparsestream",
    "raw",
)
