"""`store policy`: the least that a key for a store in S3 must be allowed."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """Who uses a store."""

    WRITER = "writer"  # `send`; may delete nothing, and hide no point
    READER = "reader"  # `points`, `restore`, `store verify`
    PRUNER = "pruner"  # `store prune`, `store compact`


_READING: Final = ("s3:GetObject",)
# To let S3 copy a part takes the right to read the one object and to write the other.
_WRITING: Final = ("s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
_LOCKS: Final = ("s3:GetObjectRetention", "s3:GetObjectLegalHold")  # without, S3 tells of none
_OBJECTS: Final[Mapping[Role, Sequence[str]]] = {
    Role.WRITER: (*_READING, *_WRITING),
    Role.READER: _READING,
    Role.PRUNER: (*_READING, *_WRITING, *_LOCKS, "s3:DeleteObject"),
}


def policy(bucket: str, prefix: str, role: Role) -> dict[str, object]:
    """Return an IAM policy."""
    below = f"{prefix}/" if prefix else ""
    listing: dict[str, object] = {
        "Effect": "Allow",
        "Action": ["s3:ListBucket"],
        "Resource": f"arn:aws:s3:::{bucket}",
    }
    if below:
        listing["Condition"] = {"StringLike": {"s3:prefix": [f"{below}*"]}}
    everything = f"arn:aws:s3:::{bucket}/{below}bs1/"
    statements = [listing]
    if role is Role.WRITER:
        statements.append(_allowed(list(_READING), [f"{everything}*"]))
        # Not marks, by which points are hidden, and not what says of the store who can open it.
        places = [f"{everything}disk/*/{name}/*" for name in ("pack", "index", "point")]
        statements.append(_allowed(list(_WRITING), places))
    else:
        statements.append(_allowed(list(_OBJECTS[role]), [f"{everything}*"]))
    if role is Role.PRUNER:
        # Without a condition: S3 knows no prefix for it.
        unfinished = ["s3:ListBucketMultipartUploads"]
        where = f"arn:aws:s3:::{bucket}"
        statements.append(_allowed(unfinished, [where]))
    return {"Version": "2012-10-17", "Statement": statements}


def _allowed(actions: list[str], places: list[str]) -> dict[str, object]:
    return {"Effect": "Allow", "Action": actions, "Resource": places}
