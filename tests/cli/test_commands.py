"""What the commands do when all goes well."""

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.cli.conftest import tensors
from tests.support.networks import same

import waterfill
from waterfill.cli.exit_codes import Exit
from waterfill.network.checkpoint import open_checkpoint
from waterfill.storage import FileReader, FileWriter

ORIGINAL = 4 * (16 * 8 * 9 + 24 * 40) + 2 * 24 + 8  # bytes of the checkpoint's tensors, the tied one once
WEIGHTS = 16 * 8 * 9 + 24 * 40 + 24


@pytest.mark.parametrize(
    ("budget", "most"), [(("--bits", 3), 3 * WEIGHTS / 8), (("--size", "1.2kB"), 1200), (("--ratio", 8), ORIGINAL / 8)]
)
def test_compress_meets_the_budget_with_the_bytes_on_disk(run, checkpoint, tmp_path, budget, most):
    out = tmp_path / "small.wf"
    ran = run("compress", checkpoint, *budget, "-o", out, "--json")
    assert ran.code == 0 and ran.err == ""
    assert ran.json["bytes"] == out.stat().st_size <= most
    assert ran.json["bytes"] > 0.9 * most
    assert ran.json["original_bytes"] == ORIGINAL
    assert [path.name for path in tmp_path.iterdir()] == ["small.wf"]


def test_compress_writes_beside_the_model_unless_told_where(run, checkpoint, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(checkpoint.read_bytes())
    assert run("compress", folder / "model.safetensors", "--price", "0.01").code == 0
    assert run("compress", folder, "--price", "0.01").code == 0
    assert (folder / "model.wf").read_bytes() == (tmp_path / "folder.wf").read_bytes()


def test_the_table_names_every_tensor_and_says_what_was_kept_and_why(run, checkpoint, tmp_path):
    ran = run("compress", checkpoint, "--bits", 3, "-o", tmp_path / "small.wf", "--recipe", "Quantize() + Prune()")
    assert all(name in ran.out for name in ("conv.weight", "head.weight", "head.bias", "norm.num_batches_tracked"))
    assert "not by the recipe: one-dimensional" in ran.out
    assert f"{(tmp_path / 'small.wf').stat().st_size} bytes" in ran.out


def test_a_budget_that_cannot_be_spent_is_remarked(run, checkpoint, tmp_path):
    many, few = (run("compress", checkpoint, "--bits", bits, "-o", tmp_path / f"{bits}.wf") for bits in (40, 3))
    assert many.code == few.code == 0
    assert "10680 bytes were allowed" in many.out and "--lossless keeps every bit" in many.out
    assert "were allowed" not in few.out and "were allowed" in run("info", tmp_path / "40.wf").out


def test_lossless_gives_every_bit_back(run, checkpoint, tmp_path):
    small, again = tmp_path / "small.wf", tmp_path / "again.safetensors"
    assert run("compress", checkpoint, "--lossless", "-o", small).code == 0
    assert "bit for bit" in run("verify", small, "--against", checkpoint).out
    assert run("decompress", small, "-o", again).code == 0
    original, restored = load_file(checkpoint), load_file(again)
    assert original.keys() == restored.keys()
    for name, tensor in original.items():
        assert restored[name].dtype == tensor.dtype and restored[name].equal(tensor)


def test_lossless_keeps_what_is_not_finite(run, tmp_path):
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.tensor([[float("nan"), float("inf")], [-0.0, 1.0]])}, path)
    assert run("compress", path, "--lossless").code == 0
    compared = run("verify", tmp_path / "odd.wf", "--against", path, "--json")
    assert compared.code == 0 and compared.json["errors"] == {"weight": 0}


def test_plan_predicts_the_size_and_writes_nothing(run, checkpoint):
    before = sorted(checkpoint.parent.iterdir())
    ran = run("plan", checkpoint, "--bits", 3, "--json")
    assert ran.code == 0 and sorted(checkpoint.parent.iterdir()) == before
    assert ran.json["bits_per_weight"] == pytest.approx(3, rel=0.05)
    assert {row["name"] for row in ran.json["tensors"]} >= {"conv.weight", "head.twin"}
    assert "predicted: " in run("plan", checkpoint, "--bits", 3).out


def test_info_tells_what_the_library_tells(run, compressed):
    told, model = run("info", compressed, "--json").json, waterfill.load(compressed)
    assert told["bytes"] == model.size == compressed.stat().st_size
    assert told["bits_per_weight"] == pytest.approx(model.bits)
    assert told["aliases"] == model.aliases == {"head.weight": "head.twin"}
    table = {row["name"]: (row["shape"], row["dtype"], row["part"], row["bytes"]) for row in told["tensors"]}
    assert table == {row["name"]: (row["shape"], row["dtype"], row["part"], row["bytes"]) for row in model.table()}
    text = run("info", compressed).out
    assert "recipe Quantize()" in text and "tied tensor" in text and max(map(len, text.splitlines())) <= 100


def test_verify_looks_as_deep_as_it_is_told(run, compressed, checkpoint):
    assert "every checksum matches" in run("verify", compressed).out
    assert "every tensor decodes" in run("verify", compressed, "--deep").out
    compared = run("verify", compressed, "--against", checkpoint, "--json").json
    model, original = waterfill.load(compressed).state_dict(), load_file(checkpoint)
    for name in ("conv.weight", "head.bias"):
        error = (model[name].double() - original[name].double()).norm() / original[name].double().norm()
        assert compared["errors"][name] == pytest.approx(float(error))
    assert compared["errors"]["norm.num_batches_tracked"] == 0
    assert 0 < compared["error"] < 0.5


def test_decompress_writes_what_the_library_loads(run, compressed, tmp_path):
    out = tmp_path / "restored.safetensors"
    assert run("decompress", compressed, "-o", out).code == 0
    state, restored = waterfill.load(compressed).state_dict(), load_file(out)
    assert state.keys() == restored.keys()
    assert all(restored[name].dtype == t.dtype and restored[name].equal(t) for name, t in state.items())
    assert run("decompress", compressed, "-o", out, "--dtype", "float16", "--force", "--json").json["tensors"] == 5
    halves = load_file(out)
    assert halves["head.bias"].dtype == torch.float16 and halves["norm.num_batches_tracked"].dtype == torch.int64
    assert halves["conv.weight"].equal(state["conv.weight"].half())


def test_help_info_and_verify_import_no_torch(compressed):
    program = (
        "import sys\nfrom waterfill.cli import main\n"
        f"codes = [main(['--help']), main(['compress', '--help']), main(['info', {str(compressed)!r}])]\n"
        f"codes.append(main(['verify', {str(compressed)!r}]))\n"
        "assert codes == [0, 0, 0, 0] and 'torch' not in sys.modules, codes"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_a_reader_that_leaves_early_is_no_error(compressed):
    command = f"{sys.executable} -m waterfill info {compressed} | true; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_version_is_that_of_the_package(run):
    ran = run("--version")
    assert ran.code == 0 and ran.out == f"waterfill {waterfill.__version__}\n"


def test_hostile_names_and_notes_reach_the_terminal_as_escapes(run, tmp_path):
    path, name = tmp_path / "hostile.wf", "w\u202eight\u200b"
    columns: dict = {key: [[value], []] for key, value in {"shapes": "2", "dtypes": "\x1b[2J", "words": "a\rb"}.items()}
    manifest = {"tensors": columns | {"roles": "v", "reasons": [["\x07"], []]}, "notes": {"recipe": "x\n\x1b]0;y"}}
    with FileWriter(path) as out:
        out.add(name, b"")
        out.finish(manifest)
    for arguments in (("info", path), ("info", path, "--json")):
        ran = run(*arguments)
        assert ran.code == 0
        assert all(c.isprintable() or c == "\n" for c in ran.out)
    assert r"w\u202eight\u200b" in run("info", path).out
    with FileReader(path) as src:
        assert src.names == (name,)


def test_texts_of_the_header_come_back(run, tmp_path):
    texts = {"format": "pt", "ss_network_dim": "8", "note": "ü"}
    save_file(tensors(), tmp_path / "lora.safetensors", texts)
    for arguments in (["--lossless"], ["--bits", "4", "--force"]):
        assert run("compress", tmp_path / "lora.safetensors", "-o", tmp_path / "m.wf", "--quiet", *arguments).code == 0
        assert run("decompress", tmp_path / "m.wf", "-o", tmp_path / "back.safetensors", "--force").code == 0
        with safe_open(tmp_path / "back.safetensors", framework="pt") as src:
            assert src.metadata() == texts


def test_decompress_refuses_what_the_format_or_the_type_cannot_hold(run, tmp_path):
    waterfill.compress({"__metadata__": torch.randn(9, 9)}, lossless=True).save(tmp_path / "odd.wf")
    ran = run("decompress", tmp_path / "odd.wf")
    assert ran.code == Exit.CORRUPT_INPUT and "'__metadata__' has the name that .safetensors needs" in ran.err
    waterfill.compress({"w": torch.full((9, 9), 1e6)}, lossless=True).save(tmp_path / "large.wf")
    ran = run("decompress", tmp_path / "large.wf", "--dtype", "float16")
    assert ran.code == Exit.CORRUPT_INPUT and "'w' holds 81 values, such as 1e+06, that float16 cannot hold" in ran.err
    assert not list(tmp_path.glob("*.safetensors"))


def test_all_number_types_come_back(run, tmp_path):
    kept = {
        "pairs": torch.randn(9, 9, dtype=torch.complex64),
        "eight": torch.randn(9, 9).to(torch.float8_e4m3fn),
        "four": torch.randint(256, (4, 8), dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    }
    save_file(kept, tmp_path / "m.safetensors")
    assert run("compress", tmp_path / "m.safetensors", "--lossless", "--quiet").code == 0
    assert run("decompress", tmp_path / "m.wf", "-o", tmp_path / "back.safetensors").code == 0
    back = open_checkpoint(tmp_path / "back.safetensors").tensors
    assert all(same(back[name].load(), value) for name, value in kept.items())
    assert run("verify", tmp_path / "m.wf", "--against", tmp_path / "m.safetensors").code == 0


def test_verify_counts_no_difference_where_a_mask_hides_it(run, tmp_path):
    mask = (torch.rand(40, 40) < 0.5).float()
    save_file({"w_orig": torch.randn(40, 40), "w_mask": mask}, tmp_path / "m.safetensors")
    assert run("compress", tmp_path / "m.safetensors", "--bits", "6", "--quiet").code == 0
    compared = run("verify", tmp_path / "m.wf", "--against", tmp_path / "m.safetensors", "--json").json
    assert 0 < compared["errors"]["w_orig"] < 0.05
    assert compared["errors"]["w_mask"] == 0
