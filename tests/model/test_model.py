"""CompressedModel: sizes, files, single tensors, and the user's own class, checked name by name."""

import pytest
import torch
from tests.support.networks import mixed, same, state
from torch import nn

import waterfill
from waterfill.errors import BadInput, CorruptFile, Mismatch, OutputExists
from waterfill.storage import FileWriter, manifest


@pytest.fixture(scope="module")
def small() -> waterfill.CompressedModel:
    return waterfill.compress(mixed(), price=1e-4)


@pytest.fixture
def path(small, tmp_path):
    small.save(tmp_path / "m.wf")
    return tmp_path / "m.wf"


def test_what_is_loaded_is_what_was_saved(small, path):
    again = waterfill.load(path)
    assert list(again.entries) == list(small.entries)
    assert again.aliases == small.aliases and again.notes == small.notes
    for name, entry in small.entries.items():
        found = again.entries[name]
        assert (found.layout, found.parts, found.reason) == (entry.layout, entry.parts, entry.reason)
    restored = again.state_dict()
    assert all(same(restored[name], tensor) for name, tensor in small.state_dict().items())
    assert again.size == small.size == path.stat().st_size
    assert again.bits == small.bits


def test_a_loaded_model_can_be_saved_again_to_the_same_bytes(path, tmp_path):
    waterfill.load(path).save(tmp_path / "again.wf")
    assert (tmp_path / "again.wf").read_bytes() == path.read_bytes()


def test_the_file_is_as_large_as_its_parts_promise(small):
    promised = sum(part.bits for entry in small.entries.values() for part in entry.parts) / 8
    blobs = sum(len(entry.blob) for entry in small.entries.values())
    assert abs(blobs - promised) <= 0.01 * blobs + 64 + len(small.entries) / 2
    assert small.size - blobs < 1000


def test_one_tensor_is_read_alone(small, path):
    restored = small.state_dict()
    for name in ("experts", "conv2.weight", "head.weight", "mask", "empty", "scalar"):
        assert same(waterfill.load_tensor(path, name), restored[name])
    with pytest.raises(BadInput, match="conv2.weight"):
        waterfill.load_tensor(path, "conv2.wieght")


def test_one_tensor_is_read_though_another_is_damaged(small, path):
    data = bytearray(path.read_bytes())
    data[8] ^= 1  # inside the first chunk
    path.write_bytes(data)
    with pytest.raises(CorruptFile):
        waterfill.load(path)
    last = list(small.entries)[-1]
    assert same(waterfill.load_tensor(path, last), small.state_dict()[last])


def test_install_gives_the_module_back_with_its_weights(small, path):
    module = mixed()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert waterfill.load(path).install(module) is module
    restored = small.state_dict()
    assert all(same(tensor, restored[name]) for name, tensor in module.state_dict().items())
    x = torch.randn(3, 40)
    assert torch.equal(module.linear(x), x @ restored["linear.weight"].T + restored["linear.bias"])


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (nn.Linear(40, 30), ["does not fit a Linear", "Linear lacks", "the file lacks: bias, weight"]),
        (nn.Sequential(), ["does not fit a Sequential", "lacks: attention.in_proj_bias", " more. Build the module"]),
    ],
)
def test_another_class_is_refused_by_name(small, module, told):
    with pytest.raises(Mismatch) as refused:
        small.install(module)
    assert all(words in str(refused.value) for words in told)


def test_a_different_shape_and_a_missing_layer_are_named(small):
    module = mixed()
    module.linear = nn.Linear(40, 31)
    with pytest.raises(Mismatch, match=r"shapes differ: linear.weight: module \[31, 40\], file \[30, 40\]"):
        small.install(module)
    module = mixed()
    del module.conv2
    module.extra = nn.Linear(2, 2)
    told = "the file lacks: extra.bias, extra.weight; Mixed lacks: conv2.bias, conv2.weight"
    with pytest.raises(Mismatch, match=told):
        small.install(module)


def test_a_refused_module_is_left_as_it_was(small):
    module = mixed()
    module.linear = nn.Linear(40, 31)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(Mismatch):
        small.install(module)
    assert all(same(module.state_dict()[name], tensor) for name, tensor in before.items())


def test_saving_does_not_overwrite_unless_asked(small, path):
    before = path.read_bytes()
    with pytest.raises(OutputExists, match="m.wf exists"):
        waterfill.compress(state(), bits=4).save(path)
    assert path.read_bytes() == before
    waterfill.compress(state(), bits=4).save(path, force=True)
    assert sorted(waterfill.load(path).entries) == sorted(state())


def test_notes_say_how_it_was_made(small):
    assert small.notes == {"recipe": "Quantize()", "original": small.notes["original"]}
    tensors = {t.data_ptr(): t for t in mixed().state_dict().values() if t.numel()}
    assert small.notes["original"] == sum(t.numel() * t.element_size() for t in tensors.values())


def test_an_empty_model_has_a_file(tmp_path):
    waterfill.compress({}, price=1e-3).save(tmp_path / "none.wf")
    assert waterfill.load(tmp_path / "none.wf").state_dict() == {}


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    """A hundred constant matrices whose blobs lack the padding that earns their memory."""
    shape, part = (1024, 1024), b"\x02\x00\x00"  # dense, float32, the constant zero
    rows = [manifest.Row(shape, "float32", manifest.MATRIX, "constant 0", "")] * 100
    packed = {"tensors": manifest.pack(rows), "aliases": {}, "notes": {}}
    padding = (1 << 20) - (1 << 14) - 3 * 4096
    for earned, padded in ((False, part), (True, part + bytes(-(-padding // 4096)))):
        with FileWriter(tmp_path / "m.wf", force=True) as out:
            for i in range(100):
                out.add(f"w{i}", padded)
            out.finish(packed)
        if earned:
            found = waterfill.load(tmp_path / "m.wf").state_dict().values()
            assert all(not bool(t.any()) and t.shape == shape for t in found)
        else:
            with pytest.raises(CorruptFile, match="3 bytes claim to hold 1048576 entries"):
                waterfill.load(tmp_path / "m.wf")


def test_a_model_of_constant_matrices_is_kept(tmp_path):
    tensors = {f"w{i}": torch.full((700, 900), float(i)) for i in range(4)}
    waterfill.compress(tensors, lossless=True).save(tmp_path / "m.wf")
    assert (tmp_path / "m.wf").stat().st_size < 4 * 200
    assert all(same(t, tensors[name]) for name, t in waterfill.load(tmp_path / "m.wf").state_dict().items())


def test_what_is_shown_is_a_line_without_tensors(small):
    assert repr(small) == f"CompressedModel({len(small.entries)} tensors, {small.weights} weights, recipe 'Quantize()')"
    parts = [part for entry in small.entries.values() for part in entry.parts]
    assert f"QuantizedPart({list(parts[0].shape)}, {parts[0].describe()})" in map(repr, parts)
    gram = waterfill.Importance(torch.ones(4), torch.ones(9), torch.eye(9), (3, 3))
    assert repr(gram) == "Importance(rows [4], diagonal [9], gram [9, 9], kernel (3, 3))"
    assert repr(waterfill.Importance()) == "Importance(uniform)"
    spec = waterfill.parse("Quantize() + Prune(keep=0.1) | LowRank() | Codebook(levels=4) | Sampled() | Dense()")
    for term in spec.terms:
        part = term.fit(torch.randn(32, 32), waterfill.Importance(), 1e-3)
        assert "tensor(" not in repr(part) and len(repr(part)) < 120


def test_a_notebook_shows_totals_and_the_largest_tensors_and_no_markup_of_a_name():
    random = torch.Generator().manual_seed(1)
    state = {f"layer{i}.weight": torch.randn(8 + i, 16, generator=random) for i in range(14)}
    made = waterfill.compress(state | {"<b>&\u202e": torch.randn(40, 40, generator=random)}, price=1e-3)
    shown = made._repr_html_()
    assert f"{made.size:,} bytes" in shown and "15" not in shown[:20] and "and 3 tensors more" in shown
    assert (
        "<b>" not in shown and "&lt;b&gt;&amp;\\u202e" in shown and shown.index("&lt;b") < shown.index("layer13.weight")
    )
    assert shown.count("<tr>") == 13 and ">error<" in shown
    assert "Compressed" in repr(made) and len(repr(made)) < 200
