"""docs/format.md is complete: a decoder written from it alone reads what the library writes."""

import pytest
from tests.support import codes as made
from tests.support import plain_decoder


@pytest.mark.parametrize("name", made.EXAMPLES)
def test_the_document_tells_how_to_read_codes(name):
    codes, kernel = made.EXAMPLES[name]
    _, data = made.written(codes, kernel)
    assert plain_decoder.decode(data, *codes.shape, kernel) == codes.tolist()


@pytest.mark.parametrize("name", made.TRELLISES)
def test_the_document_tells_how_to_read_codes_along_a_trellis(name):
    codes, kernel, states = made.TRELLISES[name]
    _, data = made.written(codes, kernel, states)
    assert plain_decoder.decode(data, *codes.shape, kernel) == codes.tolist()
