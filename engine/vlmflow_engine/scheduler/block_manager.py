"""KV blocks: who holds which, and which can be shared because their content is known.

A block is in one of three states:

    free, no content    in `_free`, nothing known about it
    free, cached        in `_free` and in `_block_of_hash`: its KV is valid until it is taken again
    held                by one or more sequences; reference count > 0

The content of a full block is named by a hash chain: sha256 over the hash of the block before it,
its token ids, and for each image in it the image's content hash and the block's offset inside the
image (placeholder ids are the same for every image). The chain of a sequence with an adapter begins
with the digest of the adapter's content. Only full blocks are named, and a sequence
always computes its last token itself, so nobody ever writes into a block he shares: the block was
filled by the one who named it.
"""

import struct
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType

from vlmflow_engine.sequence import Sequence


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        adapter_digests: Mapping[str, bytes] = MappingProxyType({}),  # by name
        usual_context: int | None = None,
    ) -> None:
        """usual_context  of the decoder: a longer sequence has other keys for the same tokens"""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._enable_prefix_caching = enable_prefix_caching
        self._adapter_digests = adapter_digests
        self._usual_context = usual_context
        self._reference_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_of_hash: dict[bytes, int] = {}
        # The first is taken first: blocks without content, then the least recently freed.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken, cached ones included."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold."""
        return 1 - len(self._free) / self.num_blocks

    def match_prefix(self, sequence: Sequence) -> int:
        """Hold the longest cached prefix of a waiting sequence; return its number of tokens.

        The last token is never part of it: its logits are what the step is for.
        """
        if not self._enable_prefix_caching or sequence.request.generation.wants_prompt_rows:
            return 0
        for index in range((sequence.num_tokens - 1) // self.block_size):
            block_id = self._block_of_hash.get(self._hash(sequence, index))
            if block_id is None:
                break
            if self._reference_counts[block_id] == 0:
                del self._free[block_id]
            self._reference_counts[block_id] += 1
            sequence.block_ids.append(block_id)
        sequence.num_named_blocks = len(sequence.block_ids)
        return len(sequence.block_ids) * self.block_size

    def num_missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """How many blocks a sequence lacks to store its first `num_tokens` tokens."""
        return -(-num_tokens // self.block_size) - len(sequence.block_ids)

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence the blocks for its first `num_tokens` tokens, all or nothing."""
        missing = self.num_missing_blocks(sequence, num_tokens)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block_id, _ = self._free.popitem(last=False)
            self._forget(block_id)
            self._reference_counts[block_id] = 1
            sequence.block_ids.append(block_id)
        return True

    def publish(self, sequence: Sequence, end: int) -> None:
        """Name the blocks that are full once the tokens before `end` are computed.

        May be called when the step is planned: within a layer every key and value of the step is
        stored before any is read, so another sequence of the same step may share them already. A
        block whose last token is still on the device gets its name with the next call.
        """
        if not self._enable_prefix_caching:
            return
        num_full = min(end, sequence.num_tokens) // self.block_size
        first, sequence.num_named_blocks = sequence.num_named_blocks, num_full
        for index in range(first, num_full):
            block_hash = self._hash(sequence, index)
            # Two may compute the same content at once; the name is the first one's.
            if block_hash not in self._block_of_hash:
                block_id = sequence.block_ids[index]
                self._block_of_hash[block_hash] = block_id
                self._hashes[block_id] = block_hash

    def release(self, sequence: Sequence) -> None:
        """Take all blocks of a sequence back; named ones stay cached until they are needed."""
        for block_id in reversed(sequence.block_ids):  # the tail is the first to be taken again
            self._reference_counts[block_id] -= 1
            if self._reference_counts[block_id] == 0:
                self._free[block_id] = None
                if self._hashes[block_id] is None:
                    self._free.move_to_end(block_id, last=False)
        sequence.block_ids.clear()
        sequence.num_named_blocks = 0

    def forget_cached(self) -> None:
        """Drop every name: after a failed step no cached content can be trusted."""
        for block_id in self._block_of_hash.values():
            self._hashes[block_id] = None
        self._block_of_hash.clear()

    def _forget(self, block_id: int) -> None:
        block_hash = self._hashes[block_id]
        if block_hash is not None:
            del self._block_of_hash[block_hash]
            self._hashes[block_id] = None

    def _root(self, sequence: Sequence) -> bytes:
        """What all keys and values of a sequence depend on beside its tokens and images."""
        name = sequence.request.adapter_name
        root = b"" if name is None else self._adapter_digests[name]
        is_long = self._usual_context is not None and sequence.num_tokens > self._usual_context
        return root + b"long" if is_long else root

    def _hash(self, sequence: Sequence, index: int) -> bytes:
        """The name of a sequence's block, computed once; tokens never change."""
        known = sequence.block_hashes
        while len(known) <= index:
            start = len(known) * self.block_size
            end = start + self.block_size
            digest = sha256(known[-1] if known else self._root(sequence))
            digest.update(struct.pack(f"<{self.block_size}q", *sequence.token_ids[start:end]))
            for image in sequence.images_within(start, end):
                digest.update(image.content_hash)
                digest.update(struct.pack("<q", start - image.offset))
            known.append(digest.digest())
        return known[index]
