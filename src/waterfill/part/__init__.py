"""What a part is: the equation that finds it, its bytes, and how it multiplies. `equation.py` is to be read first."""

from waterfill.part.equation import (
    MOST_TERMS,
    Choice,
    Part,
    Spec,
    SumPart,
    SumSpec,
    cost,
    read_part,
    terms_of,
    write_part,
)
from waterfill.part.kinds import MOST_NESTED, decode, decode_all, encode_all, read_parts
from waterfill.part.product import Chain, Codes, Columns, Entries, Levels, Product, Sum, Whole

__all__ = [
    "MOST_NESTED",
    "MOST_TERMS",
    "Chain",
    "Choice",
    "Codes",
    "Columns",
    "Entries",
    "Levels",
    "Part",
    "Product",
    "Spec",
    "Sum",
    "SumPart",
    "SumSpec",
    "Whole",
    "cost",
    "decode",
    "decode_all",
    "encode_all",
    "read_part",
    "read_parts",
    "terms_of",
    "write_part",
]
