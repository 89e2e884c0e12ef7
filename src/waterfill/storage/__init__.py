"""The container `*.wf`: named blobs, a manifest and checksums in one file. It knows bytes, not what they mean.

    head (6 bytes) | blobs, back to back | index (deflated names, lengths and manifest; checksums) | tail (8 bytes)

The index stands at the end, so that blobs are written once, as they come, and none has to stay in memory.
`docs/format.md` describes every bit. Nothing read is believed before its checksum and the size of the file agree.
"""

from waterfill.storage.index import name_problem, size_of
from waterfill.storage.reader import FileReader
from waterfill.storage.writer import FileWriter

__all__ = ["FileReader", "FileWriter", "name_problem", "size_of"]
