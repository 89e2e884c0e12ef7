"""`import waterfill`: every public name is there, and nothing heavy is loaded before it is used."""

import subprocess
import sys

import pytest

import waterfill
import waterfill.errors


@pytest.mark.parametrize("name", waterfill.__all__)
def test_every_public_name_is_there(name):
    assert getattr(waterfill, name) is not None and name in dir(waterfill)


def test_every_error_is_public():
    raised = {name for name, value in vars(waterfill.errors).items() if isinstance(value, type)}
    assert raised <= set(waterfill.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = waterfill.nothing


def test_a_file_can_be_loaded_by_a_program_that_names_no_part(compressed):
    program = f"import waterfill; assert len(waterfill.load({str(compressed)!r}).state_dict()) == 5"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_import_alone_loads_neither_torch_nor_numpy():
    program = "import waterfill, sys; waterfill.BadRecipe; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)
