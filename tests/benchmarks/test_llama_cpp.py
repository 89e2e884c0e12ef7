"""llama.cpp beside us: bytes at equal perplexity, tables of two results, and files as llama.cpp lays them out."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.scripts import script

MEASURES = ("bytes", "perplexity", "divergence")


def write(folder: Path, name: str, tables: dict[str, list[list[object]]]) -> None:
    named = ("format", "rows", "embedding") if name == "llama_cpp" else ("method", "blocks", "bits")
    columns = dict.fromkeys((*named, *MEASURES), "")
    made = {table: {"title": table, "columns": columns, "rows": rows} for table, rows in tables.items()}
    (folder / f"{name}.json").write_text(json.dumps({"machine": {}, "tables": made}), "utf-8")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    ours = [
        ["waterfill by blocks", 30, 3.0, 90, 30.0, 0.2],
        ["waterfill by blocks", 30, 1.0, 10, 900.0, 9.0],
        ["waterfill by blocks", 4, 3.0, 5, 20.0, 0.1],
        ["GPTQ g128", 30, 3.0, 100, 40.0, 0.5],
    ]
    theirs = [
        ["Q8", "as it is", "", 400, 10.0, 0.01],
        ["Q4", "as it is", "", 200, 40.0, 0.4],
        ["Q3", "4 rows as one", "Q3", 50, 40.0, 0.4],
    ]
    later = [["waterfill by blocks", 30, 3.0, 100, 20.0, 0.1]]
    write(tmp_path, "language_model", {"methods": ours, "rates": later})
    write(tmp_path, "llama_cpp", {"formats": theirs})
    return tmp_path


def test_bytes_at_a_perplexity_lie_between_the_best_files() -> None:
    bytes_at = script("lib.equal_perplexity").bytes_at
    files = [(200, 10.0), (100, 40.0), (150, 50.0), (220, 10.0)]
    assert bytes_at(files, 20.0) == pytest.approx(150)  # half of the logarithm of 4
    assert bytes_at(files, 40.0) == 100
    assert bytes_at(files, 10.0) == 200
    assert bytes_at(files, 41.0) is None
    assert bytes_at(files, 9.9) is None
    assert bytes_at([], 20.0) is None


def test_ours_are_compared_with_what_runs_and_with_the_best(results: Path) -> None:
    rows = script("lib.equal_perplexity").equal(results).rows
    assert [row[0] for row in rows] == ["3 bits, by blocks", "1 bits, by blocks"]
    assert rows[0][3:] == pytest.approx([300, 3.0, 225, 2.25])
    assert rows[1][3:] == [None] * 4


def test_the_page_has_all_files_and_the_claims_follow_them(results: Path) -> None:
    beside, report = script("lib.equal_perplexity"), script("report")
    assert [row[2] for row in beside.both(results).rows] == [400, 200, 100, 50, 10]
    assert [row[1:] for row in beside.claims(results).rows] == [["0.44", "at most 1.00", True]]
    page = report.render("<!-- results: llama_cpp both -->\n<!-- end -->\n<!-- claims -->\n<!-- end -->", results)
    assert "Q3, embedding Q3, 4 rows as one" in page
    assert "SmolLM2-135M at 3 bits, by blocks: bytes, of llama.cpp's at equal perplexity" in page
    assert "llama.cpp as it is" in beside.picture(results)


def test_without_ours_there_is_nothing_beside(tmp_path: Path) -> None:
    write(tmp_path, "llama_cpp", {"formats": [["Q8", "as it is", "", 400, 10.0, 0.01]]})
    page = script("report").render("<!-- results: llama_cpp equal -->\n<!-- end -->", tmp_path)
    assert "Not measured yet." in page


def test_the_benchmark_says_why_it_is_left_out(tmp_path: Path) -> None:
    llama_cpp = script("llama_cpp")
    for tools in (None, tmp_path):
        assert "llama-quantize" in llama_cpp.missing(tools) or "gguf" in llama_cpp.missing(tools)


def test_no_two_cases_are_the_same() -> None:
    llama_cpp = script("llama_cpp")
    cases = llama_cpp.CASES + llama_cpp.MORE
    assert len({tuple(case.key) for case in cases}) == len(cases)


@pytest.mark.parametrize(("columns", "rows"), [(576, 4), (1536, 1), (32, 8), (256, 1)])
def test_rows_together_fill_blocks(columns: int, rows: int) -> None:
    together = script("opponents.gguf_files").rows_together(columns)
    assert together == rows
    assert columns * together % 256 == 0


def test_the_importance_of_a_column_is_the_mean_square_of_what_it_reads() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = torch.nn.Module()
            layer.mlp = torch.nn.Module()
            layer.mlp.up_proj = torch.nn.Linear(3, 2)
            self.model = torch.nn.Module()
            self.model.layers = torch.nn.ModuleList([layer])

        def forward(self, tokens: torch.Tensor, use_cache: bool) -> None:
            self.model.layers[0].mlp.up_proj(tokens[..., None] * torch.tensor([1.0, 2.0, 0.0]))

    found = script("opponents.gguf_files").mean_squares(Net(), torch.tensor([[1, 2], [3, 0]]))
    assert {name: values.tolist() for name, values in found.items()} == {"blk.0.ffn_up.weight": [3.5, 14.0, 0.0]}


def test_weights_come_back_from_rows_laid_together(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the formats of llama.cpp need the package gguf")
    files, heads, width = script("opponents.gguf_files"), 2, 96
    sizes = {"model_type": "llama", "hidden_size": width, "num_attention_heads": heads}
    (tmp_path / "config.json").write_text(json.dumps(sizes), "utf-8")
    names = ("self_attn.q_proj", "self_attn.v_proj")
    state = {f"model.layers.0.{name}.weight": torch.randn(width, width) for name in names}
    state["model.norm.weight"] = torch.randn(width)
    order = np.arange(width).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    writer = gguf.GGUFWriter(tmp_path / "plain.gguf", "llama")
    writer.add_token_list(["a", "b"])
    query, value, norm = (tensor.numpy() for tensor in state.values())
    for name, array in (("blk.0.attn_q", query[order]), ("blk.0.attn_v", value), ("output_norm", norm)):
        writer.add_tensor(f"{name}.weight", array)
    files._finish(writer)
    files.laid_together(tmp_path / "plain.gguf", tmp_path / "laid.gguf")
    laid = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "laid.gguf").tensors}
    assert laid["blk.0.attn_q.weight"].data.shape == (width // 8, 8 * width)
    assert gguf.GGUFReader(tmp_path / "laid.gguf").fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    for path in ("plain.gguf", "laid.gguf"):
        back = files.restored(tmp_path / path, tmp_path, state)
        assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    size, shares = files.contents(tmp_path / "laid.gguf")
    assert (size, shares) == (4 * (2 * width * width + width), "F32 100 %")
    assert math.prod(laid["output_norm.weight"].data.shape) == width
