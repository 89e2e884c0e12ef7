"""`import waterfill`: every public name is there, and nothing heavy is loaded before it is used."""

import subprocess
import sys

import pytest

import waterfill
import waterfill.errors


@pytest.mark.parametrize("name", waterfill.__all__)
def test_every_public_name_is_there(name):
    value = getattr(waterfill, name)
    assert value.__name__ == name and value.__module__ == f"waterfill.{waterfill._HOME[name]}"
    assert name in dir(waterfill)


def test_the_names_listed_are_the_names_there_are():
    assert set(waterfill.__all__) == set(waterfill._HOME) and len(waterfill.__all__) == 27


def test_every_error_is_a_waterfill_error():
    kinds = [value for value in vars(waterfill.errors).values() if isinstance(value, type)]
    assert len(kinds) >= 10 and all(issubclass(kind, waterfill.WaterfillError) for kind in kinds)


def test_a_recipe_where_inputs_belong_is_refused():
    with pytest.raises(waterfill.errors.BadRecipe, match="by keyword"):
        waterfill.compress({}, "Quantize()")


@pytest.mark.parametrize("given", [{"lossless": True}, {"importance": {}}])
def test_inputs_exclude_what_takes_their_place(given):
    with pytest.raises(waterfill.errors.BadRecipe, match="leave the batches out"):
        waterfill.compress({}, [1], **given)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = waterfill.nothing


def test_public_modules_are_there_as_the_documents_write_them():
    program = "import sys, waterfill; assert 'torch' not in sys.modules; print(waterfill.report.describe.__name__)"
    program += (
        "; print(waterfill.channels.shrink, waterfill.learn.run, waterfill.runtime.speed, waterfill.export.export)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_a_file_can_be_loaded_by_a_program_that_names_no_part(compressed):
    program = f"import waterfill; assert len(waterfill.load({str(compressed)!r}).state_dict()) == 5"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_import_alone_loads_neither_torch_nor_numpy():
    program = "import waterfill, sys; waterfill.WaterfillError; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)
