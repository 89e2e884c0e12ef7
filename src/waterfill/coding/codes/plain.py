"""Ways to write a matrix of codes: what all of them share, and those that need no model.

A plan knows how many bits it takes before a byte is written; tally and writer share it. `matrix`
chooses among plans, `docs/format.md` has their bytes to the bit.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from waterfill.coding import density, rans, rice
from waterfill.coding.chunking import CHUNK, LIMIT, MOST_BYTES, checksum, narrow, row_chunks, stream_overhead
from waterfill.coding.codes.plan import Frame, Frequencies, Plan
from waterfill.coding.stream import Reader, Sink


def read_signed(src: Reader) -> int:
    """A code by itself, zigzag as a varint."""
    return rice.unfold(src.uint(2 * LIMIT - 2))


@dataclass(frozen=True, eq=False)
class Constant(Plan):
    """All codes are equal, or there are none."""

    mode: ClassVar[int] = 0

    def content(self, out: Sink) -> None:
        out.uint(rice.fold(int(self.codes.flat[0])) if self.codes.size else 0)

    def expect(self, rows: slice, into: Frequencies) -> None:
        into.add(np.array([into.low]), into.found)

    @staticmethod
    def read(src: Reader, frame: Frame) -> np.ndarray:
        return np.broadcast_to(narrow(np.array(read_signed(src))), (frame.rows, frame.cols)).copy()


@dataclass(frozen=True, eq=False)
class Histogram(Plan):
    """Codes of a span below 256 under their own frequencies, freq [1, 256] (uint16)."""

    freq: np.ndarray
    mode: ClassVar[int] = 2

    @classmethod
    def plan(cls, codes: np.ndarray) -> "Histogram":
        """For codes that are not all equal."""
        counts = np.bincount(codes.ravel().astype(np.int32) - int(codes.min()))
        masses = np.zeros(256, dtype=np.int64)
        masses[: len(counts)] = counts
        freq = density.normalize(np.maximum(masses, (masses > 0) * (1 + codes.size // 4096)), escape=False)
        bits = float(counts @ density.price_list(freq)[: len(counts)])
        side = rice.zigzag(freq[: len(counts)].astype(np.int64))
        table = float(rice.rice_bits(side, rice.best_parameter(side)))
        lanes, overhead = stream_overhead(codes.shape, bits)
        return cls(codes, bits + table + 48 + overhead, lanes, freq[None])

    def expect(self, rows: slice, into: Frequencies) -> None:
        symbols = int(self.codes.min()) + np.arange(256)
        into.add(symbols, self.freq[0] * (into.found.sum() / (1 << density.PRECISION)))

    def content(self, out: Sink) -> None:
        low, high = int(self.codes.min()), int(self.codes.max())
        out.uint(rice.fold(low))
        out.uint(high - low)
        out.ints(self.freq[0, : high - low + 1])
        for rows in row_chunks(*self.codes.shape):
            codes = self.codes[rows]
            symbols = (codes.astype(np.int32) - low).astype(np.uint8).view(np.int8).ravel()
            stream = rans.encode([(symbols, None)], self.freq, self.lanes)
            out.uint(len(stream))
            out.raw(stream + checksum(codes))

    @staticmethod
    def read(src: Reader, frame: Frame) -> np.ndarray:
        low, span = read_signed(src), src.uint(254)
        counts = src.ints(span + 1)
        if counts.min() < 0 or counts.max() > 4096 or counts.sum() != 4096:
            raise src.fail("a histogram whose frequencies do not sum to 4096")
        freq = np.zeros((1, 256), dtype=np.uint16)
        freq[0, : span + 1] = counts
        if low + span >= LIMIT:
            raise src.fail("a histogram of codes beyond 24 bits")
        pieces = []
        for rows in row_chunks(frame.rows, frame.cols):
            decoder = rans.Decoder(src.raw(src.uint(MOST_BYTES)), freq, frame.lanes)
            symbols = decoder.decode((rows.stop - rows.start) * frame.cols)
            decoder.finish()
            codes = narrow(symbols.view(np.uint8).astype(np.int32) + low)
            if src.raw(4) != checksum(codes):
                raise src.fail("the checksum of decoded codes is wrong")
            pieces.append(codes)
        return np.concatenate(pieces).reshape(frame.rows, frame.cols)


@dataclass(frozen=True, eq=False)
class Packed(Plan):
    """Codes relative to the lowest in as few bits each as the span needs."""

    mode: ClassVar[int] = 3

    @classmethod
    def plan(cls, codes: np.ndarray) -> "Packed":
        """For codes that are not all equal."""
        width = (int(codes.max()) - int(codes.min())).bit_length()
        return cls(codes, 40.0 + 8 * -(-width * codes.size // 8), 1)

    def expect(self, rows: slice, into: Frequencies) -> None:
        low = int(self.codes.min())
        span = 1 << (int(self.codes.max()) - low).bit_length()
        into.add(low + np.arange(span), np.full(span, into.found.sum() / span))

    def content(self, out: Sink) -> None:
        low = int(self.codes.min())
        width = (int(self.codes.max()) - low).bit_length()
        out.uint(rice.fold(low))
        out.uint(width)
        flat = self.codes.ravel()
        for start in range(0, len(flat), CHUNK):
            piece = flat[start : start + CHUNK].astype(np.int32) - low
            digits = np.empty((len(piece), width), dtype=np.uint8)
            for place in range(width):
                digits[:, place] = piece >> (width - 1 - place) & 1
            out.raw(np.packbits(digits).tobytes())

    @staticmethod
    def read(src: Reader, frame: Frame) -> np.ndarray:
        low, width = read_signed(src), src.uint(25)
        count = frame.rows * frame.cols
        codes = np.empty(count, dtype=np.int32)
        for start in range(0, count, CHUNK):
            piece = np.full(min(CHUNK, count - start), 0, dtype=np.int32)
            octets = np.frombuffer(src.raw((len(piece) * width + 7) // 8), dtype=np.uint8)
            for digit in np.unpackbits(octets, count=len(piece) * width).reshape(len(piece), width).T:
                piece = piece << 1 | digit
            codes[start : start + len(piece)] = piece + low
        if codes.max() >= LIMIT:
            raise src.fail("packed codes beyond 24 bits")
        return narrow(codes.reshape(frame.rows, frame.cols))
