"""What one reading of a content says of it, for the stamp of the object that it becomes.

Owns which sums that takes. It must not know where the bytes come from, nor what is done with the object.
"""
from __future__ import annotations

import hashlib

from ctxfs.storage.block_sums import sums_of
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.piece_sums import LEAST, Summer


class Measured:
    """What a content's stamp says of it: its hash, the etag that it should get, the sums of its pieces; and the sums that the block cache will
    want. Given in pieces of BLOCK_SIZE, or at once."""

    def __init__(self, store: ObjectStore, size: int) -> None:
        self._digest = hashlib.sha256()
        self._etag = store.etag_maker(size)
        self._summer = Summer(size) if size > LEAST else None
        self.cache_sums = bytearray()

    def update(self, data: bytes) -> None:
        for part in (self._digest, self._etag, self._summer):
            if part is not None:
                part.update(data)
        self.cache_sums += sums_of(data)

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def etag(self) -> str:
        return self._etag.etag() if self._etag is not None else ''

    def sums(self) -> str:
        return self._summer.sums().encode() if self._summer is not None else ''
