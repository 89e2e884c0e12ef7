"""The benchmarks at toy size: their arithmetic, their tables, and that the document shows what the results say."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from tests.support.scripts import script

import waterfill


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {"weight": 0.1 * torch.randn(20, 30), "bias": torch.randn(20), "steps": torch.tensor([7])}


@pytest.mark.parametrize("width", [2, 4, 8])
def test_rounding_is_to_the_nearest_level_of_its_group(state: dict[str, torch.Tensor], width: int) -> None:
    rounding = script("opponents.rounding")
    back = rounding.rounded(state, width)
    largest = torch.stack([g.abs().max() for g in state["weight"].flatten().split(64)]).repeat_interleave(64)[:600]
    step = largest / (2 ** (width - 1) - 1)
    error = (back["weight"] - state["weight"]).flatten().abs()
    assert bool((error <= 0.5 * step + 1e-3 * largest).all())
    groups = back["weight"].flatten().split(64)
    assert max(len(group.unique()) for group in groups) <= 2**width - 1
    assert torch.equal(back["steps"], state["steps"])
    assert torch.equal(back["bias"], state["bias"].half().float())


def test_bytes_of_rounding(state: dict[str, torch.Tensor]) -> None:
    codes, scales, bias, steps = 600 * 3 // 8, 2 * 10, 2 * 20, 8
    assert script("opponents.rounding").size(state, 3) == codes + scales + bias + steps


def test_rounding_keeps_a_group_of_zeros() -> None:
    assert torch.equal(script("opponents.rounding").rounded({"w": torch.zeros(4, 64)}, 4)["w"], torch.zeros(4, 64))


def test_a_result_passes_through_its_file(state: dict[str, torch.Tensor]) -> None:
    size, back, tally, seconds = script("data_free").through_a_file(state, "Quantize()", 900)
    assert size <= 900
    assert abs(size - tally) <= 0.01 * tally + 64
    assert seconds > 0
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in state.items()}
    assert (back["weight"] - state["weight"]).norm() < 0.2 * state["weight"].norm()


def test_the_breakdown_sums_to_the_file(state: dict[str, torch.Tensor]) -> None:
    compressed = script("data_free").waterfill.compress(state, spec="Quantize()", bits=12.0)
    rows = script("lib.data_free_tables").breakdown_table(compressed).rows
    assert sum(row[1] for row in rows if not row[0].startswith("of these")) == compressed.size
    assert all(row[1] >= 0 for row in rows)


def test_tables_of_a_toy_run() -> None:
    data_free, tables = script("data_free"), script("lib.data_free_tables")
    original = tables.Run("toy", "float32", None, None, quality=90.0, divergence=0.0, metric="accuracy, %")
    plain = [
        tables.Run(
            "toy", "", None, width, size=100 * width, file_bits=width + 0.25, quality=80.0 + width, divergence=0.5
        )
        for width in (2, 3, 4)
    ]
    ours = tables.Run(
        "toy", "Quantize()", 3.5, None, size=350, file_bits=3.5, tally=349.0, quality=89.0, divergence=0.1
    )
    equal = tables.Run(
        "toy", "Quantize()", None, 3, size=300, file_bits=3.25, tally=200.0, quality=82.0, divergence=0.6
    )
    found = data_free.tables([original, *plain, ours, equal], None)
    assert found["quality"].rows == [["toy", "accuracy, %", 90.0, 3.5, 89.0, *[None] * 3, 3.25, 83.0, 4.25, 84.0]]
    assert [row[-1] for row in found["equal_bytes"].rows] == ["WORSE"]
    assert found["sizes"].rows[0][-1] is False
    assert [row[-1] for row in found["claims"].rows] == [True, False, True, False]
    assert "NO" in found["claims"].markdown()


@pytest.mark.parametrize(
    ("quality", "divergence", "word"),
    [(91.0, 0.9, "better"), (90.05, 0.1, "better"), (90.0, 0.9, "equal"), (89.95, 0.1, "equal"), (89.95, 0.9, "WORSE")],
)
def test_who_is_better_at_equal_bytes(quality: float, divergence: float, word: str) -> None:
    tables = script("lib.data_free_tables")
    plain = tables.Run("toy", "", None, 3, quality=90.0, divergence=0.5, resolution=0.1)
    ours = tables.Run("toy", "Quantize()", None, 3, quality=quality, divergence=divergence, resolution=0.1)
    assert tables.verdict(ours, plain) == word


def test_equal_bits_are_better_only_beyond_chance() -> None:
    tables, equal = script("lib.data_free_tables"), script("lib.equal_bits_tables")
    runs = [tables.Run("toy", "float32", None, None, metric="accuracy, %")]
    for bits, ours, theirs in ((4.0, 0.10, 0.095), (3.0, 0.2, 0.1), (2.0, 0.5, 1.0)):
        runs += [tables.Run("toy", name, bits, None, divergence=d) for name, d in (("a", ours), ("b", theirs))]
    shares = equal.shares_table(runs, "a", "b")
    assert [row[2] for row in shares.rows] == [4.0, 3.0, 2.0]
    assert [row[2] for row in equal.lost_to_equal_bits(shares)] == [3.0]


def test_equal_bits_are_equal(state: dict[str, torch.Tensor]) -> None:
    matrices = {"a": torch.randn(100, 64), "b": torch.randn(10, 64), "c": torch.randn(16, 8, 3, 3), **state}
    importance = script("lib.equal_bits").equal_bits(matrices)
    table = script("data_free").waterfill.compress(matrices, spec="Quantize()", bits=5.0, importance=importance).table()
    spent = {row["name"]: row["bits"] for row in table}
    assert abs(spent["a"] - spent["b"]) < 0.4


def test_the_language_model_says_why_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    language = script("lib.language")
    monkeypatch.delenv(language.FOLDER, raising=False)
    assert language.language_models() == {}
    assert language.FOLDER in language.missing() or "package" in language.missing()


def test_every_measurement_is_planned_once() -> None:
    data_free, networks = script("data_free"), script("lib.networks").networks()
    jobs = data_free.plan(list(networks), list(data_free.RATES), list(data_free.RECIPES), False)
    assert len(set(jobs)) == len(jobs)
    assert {job.network for job in jobs if job.bits == 2.6} == {"ResNet-20"}


def test_coding_weights_at_toy_size() -> None:
    pytest.importorskip("zstandard", reason="the benchmarks' peers are installed by the extra `bench` only")
    state = {"conv": torch.randn(8, 4, 3, 3), "norm": torch.randn(8)}
    name, step, entropy, _, _, bits, *_, over = script("lib.coding_weights").code_network("toy", state, 0.5, None)
    assert (name, step) == ("toy", 0.5)
    assert 2.5 < entropy < 3.2
    assert entropy - 0.5 < bits < entropy + 1.5
    assert abs(over) < 5


def test_a_checkpoint_written_in_pieces_is_read_back(tmp_path: Path) -> None:
    load_file = importlib.import_module("safetensors.torch").load_file
    script("large_file").write_checkpoint(tmp_path / "large.safetensors", layers=3, width=300)
    found = load_file(tmp_path / "large.safetensors")
    assert {name: tuple(t.shape) for name, t in found.items()} == {f"layers.{i}.weight": (300, 300) for i in range(3)}
    assert all(0.01 < float(t.std()) < 0.04 for t in found.values())


def test_reading_back_a_large_file(tmp_path: Path) -> None:
    large = script("large_file")
    source, target = tmp_path / "large.safetensors", tmp_path / "large.wf"
    large.write_checkpoint(source, layers=2, width=64)
    packed, restored = large.compress(source, target), large.in_a_process("read_back", source, target)
    assert packed["bytes"] == target.stat().st_size
    assert restored["entries"] == 2 * 64 * 64
    assert 0 < restored["error"] < 0.1


def test_a_table_is_the_same_after_json_and_in_a_document(tmp_path: Path) -> None:
    report, table = script("report"), script("lib.common").Table
    made = table("Toy", {"what": "", "found": ".1f", "met": ""}, [["a", 1.25, True], ["b", None, False]])
    (tmp_path / "toy.partial.json").write_text(json.dumps({"tables": {"one": vars(made)}}), "utf-8")
    marked = "before\n<!-- results: toy one -->\nold\n<!-- end -->\nafter\n"
    text = report.render(marked, tmp_path)
    assert "old" not in text
    assert "| a | 1.2 | yes |" in text
    assert "| b | - | NO |" in text
    assert report.render(text, tmp_path) == text
    assert "Not measured yet." in report.render(marked.replace("toy", "other"), tmp_path)
    empty = {"tables": {"one": vars(made) | {"rows": []}}}
    (tmp_path / "toy.partial.json").write_text(json.dumps(empty), "utf-8")
    assert "Not measured yet." in report.render(marked, tmp_path)


def test_the_document_shows_the_results() -> None:
    report = script("report")
    pages = sorted(report.PAGES.glob("*.md"))
    assert len(pages) > 9
    for page in pages:
        text = page.read_text("utf-8")
        assert report.render(text, report.RESULTS) == text, f"{page.name}: run python benchmarks/report.py"


def test_decisions_are_undone_and_only_there() -> None:
    decisions = script("decisions")
    model, one = torch.nn.Linear(12, 8), [torch.randn(1, 12)]

    def rank() -> int:
        gram = waterfill.calibrate(model, one)["weight"].gram
        return int(torch.linalg.matrix_rank(gram, rtol=1e-3))

    with decisions.only_seen():
        assert rank() == 1
    assert rank() == 12


def test_bits_are_those_of_the_matrices_below_a_name() -> None:
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(64, 32) for name in ("a", "ab")})
    made = waterfill.compress(layers, bits=4)
    size = next(row["bytes"] for row in made.table() if row["name"] == "a.weight")
    assert script("decisions").spent(made, "a.") == 8 * size / (64 * 32)
