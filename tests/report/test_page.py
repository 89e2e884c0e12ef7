"""A report: its numbers are those of the file and of the original, and its page needs nothing and obeys no name."""

import base64
import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import waterfill
from waterfill import report
from waterfill.channels import shrink  # noqa: F401 - the sizes of pruned layers are noted by it
from waterfill.errors import BadInput, OutputExists, VerifyError
from waterfill.report.listing import Item, Listing
from waterfill.report.page.facts import Facts, Row
from waterfill.report.page.page import html, shown_rows

HOSTILE = '</script><img src=x onerror=alert(1)>"&.weight'


@pytest.fixture(scope="session")
def described(place):
    return report.describe(place.plain, against=place.model)


def rows_of(described) -> dict:
    return {row["name"]: row for row in described.as_json()["tensors"]}


def test_the_numbers_are_those_of_the_file(described, place) -> None:
    loaded, found = waterfill.load(place.plain), described.as_json()
    assert (found["bytes"], found["bits_per_weight"]) == (loaded.size, pytest.approx(loaded.bits))
    assert {row["name"]: row["bytes"] for row in found["tensors"]} == {r["name"]: r["bytes"] for r in loaded.table()}


def test_errors_zeros_and_dead_channels_are_those_of_the_weights(described, place) -> None:
    original, restored = place.model.state_dict(), waterfill.load(place.plain).state_dict()
    for name, row in rows_of(described).items():
        if original[name].is_floating_point() and original[name].any():
            error = (restored[name] - original[name]).norm() / original[name].norm()
            assert row["error"] == pytest.approx(float(error), rel=1e-5)
            assert row["zeros"] == pytest.approx(float((restored[name] == 0).double().mean()))
    dead = restored["conv1.weight"].clone()
    dead[3] = dead[:, 1] = 0
    made = waterfill.compress({"conv1.weight": dead}, lossless=True)
    (row,) = report.describe(made).as_json()["tensors"]
    assert (row["dead_outputs"], row["dead_inputs"]) == (1, 1)


def test_a_file_lies_above_the_bound_and_below_rounding(described) -> None:
    found = described.as_json()
    file, *rounding = found["points"]
    bound = [(point["rate"], point["nats"]) for point in found["bound"]]
    assert bound == sorted(bound) and [nats for _, nats in bound] == sorted((n for _, n in bound), reverse=True)
    below = [nats for rate, nats in bound if rate >= file["rate"]]
    assert file["nats"] > below[0] and len(rounding) == 4
    assert sum(row.get("nats", 0) for row in found["tensors"]) == pytest.approx(file["nats"])
    for bits, point in zip((2, 3, 4, 8), rounding, strict=True):
        assert point["nats"] == pytest.approx(sum(r.get("sensitivity", {}).get(f"{bits}", 0) for r in found["tensors"]))


def test_a_checkpoint_a_state_dict_and_a_module_are_the_same_original(described, place) -> None:
    for original in (place.checkpoint, place.model.state_dict()):
        other = report.describe(place.plain, against=original).as_json()
        assert other["error"] == pytest.approx(described.as_json()["error"])


def test_folded_norms_are_folded_in_the_original_too(place) -> None:
    found = report.describe(place.folded, against=place.checkpoint).as_json()
    assert found["folded"] and found["error"] < 0.1


def test_with_inputs_costs_are_measured_and_quality_is_too(place) -> None:
    held = list(zip(place.inputs.split(24), place.labels.split(24), strict=True))
    found = report.describe(place.folded, against=place.model, batches=place.inputs.split(24), held_out=held).as_json()
    quality = {one["metric"]: one for one in found["quality"]}
    assert found["costs"] == "measured" and quality["accuracy"]["original"] == 1.0
    assert quality["divergence"]["original"] == 0 < quality["divergence"]["file"]
    network = waterfill.load(place.folded).install(type(place.model)()).eval()
    with torch.no_grad():
        right = (network(place.inputs).argmax(1) == place.labels).double().mean()
    assert quality["accuracy"]["file"] == pytest.approx(float(right))
    outputs = [row["output_error"] for row in found["tensors"] if "output_error" in row]
    assert outputs and all(0 < error < 1 for error in outputs)


def test_histograms_hold_every_entry(described) -> None:
    shown = described.as_json()["weights_shown"]
    assert shown
    for weight in shown:
        assert sum(weight["before"]) == pytest.approx(1) == sum(weight["after"])
        assert not weight["found"] or 0.98 < sum(weight["found"]) <= 1.0001


def test_the_page_needs_no_other_file(described) -> None:
    page = described.html()
    urls = set(re.findall(r"https?://[^\"' <)]+", page))
    assert urls <= {"http://www.w3.org/2000/svg"} and len(page.encode()) < 400_000
    assert not re.findall(r"\b(?:src=|srcset|@import|url\()", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1].replace("&#x27;", "'")
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        text = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert 'style="' not in page  # the policy would forbid it


def test_every_picture_is_told_in_words(described) -> None:
    page = described.html()
    pictures = re.findall(r'<svg[^>]*role="img"[^>]*><title>([^<]+)</title>', page)
    assert len(pictures) >= 5 and page.count("<svg") == page.count('role="img"') + page.count('aria-hidden="true"')
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and {name[1:] for name in re.findall(r'href="(#[^"]+)"', page)} <= set(ids)


def test_names_from_a_file_are_only_text(tmp_path) -> None:
    made = waterfill.compress({HOSTILE: torch.randn(24, 24), "a.weight": torch.randn(16, 24)}, bits=4)
    described = report.describe(made, against={HOSTILE: torch.zeros(24, 24)} | made.state_dict())
    page = described.html()
    assert "<img" not in page and page.count("</script>") == 1 and "&lt;img src=x" in page
    assert "<img" not in json.dumps(described._repr_html_())


def test_another_network_is_refused(place) -> None:
    other = {name: value + 1 for name, value in place.model.state_dict().items()}
    with pytest.raises(VerifyError):
        report.describe(place.plain, against=other)
    with pytest.raises(BadInput, match="against= a module"):
        report.describe(place.plain, batches=place.inputs.split(24))
    with pytest.raises(BadInput, match="go with batches"):
        report.describe(place.plain, against=place.model, held_out=[])


def test_a_page_and_its_numbers_are_saved_side_by_side(described, tmp_path) -> None:
    page, numbers = described.save(tmp_path / "net.html")
    assert page.read_text("utf-8") == described.html()
    assert json.loads(numbers.read_text()) == json.loads(json.dumps(described.as_json()))
    with pytest.raises(OutputExists):
        described.save(tmp_path / "net.html")
    page.unlink()
    with pytest.raises(OutputExists):  # the numbers are still there, and nothing is written beside them
        described.save(tmp_path / "net.html")
    assert not page.exists()
    with pytest.raises(BadInput, match="name the page"):
        described.save(tmp_path / "net.json")


def many(count: int) -> Facts:
    """Facts of so many tensors, in blocks alike."""
    names = [f"model.layers.{i // 8}.{'qkvogudn'[i % 8]}_proj.weight" for i in range(count)]
    items = [Item(name, (64, 64 + 8 * (i % 8)), "float32", "quantized", 900 + i % 8) for i, name in enumerate(names)]
    rows = [Row(item, 0.1, nats=0.5, sensitivity={2: 1.0, 8: i / count}) for i, item in enumerate(items)]
    return Facts("many.wf", Listing(tuple(items), {}, {}, 900 * count), rows)


def test_thousands_of_tensors_share_rows_and_the_page_stays_small() -> None:
    facts = many(2400)
    rows = shown_rows(facts.rows)
    assert len(rows) == 8 and sum(row.item.count for row in rows) == 2400
    assert rows[0].nats == pytest.approx(150) and rows[0].sensitivity[8] == pytest.approx(2392 / 2400)
    assert len(html(facts).encode()) < 300_000
    unlike = [replace(row, item=replace(row.item, shape=(3, 5 + i))) for i, row in enumerate(facts.rows)]
    assert len(shown_rows(unlike)) == 400
    assert len(html(replace(facts, rows=unlike)).encode()) < 1_000_000


def test_a_comparison_and_a_sensitivity_are_drawn_in(place, described) -> None:
    fixed = [f"Quantize(bits={b}, group=32)" for b in (4, 6)]
    table = report.compare(place.model.state_dict(), recipes=fixed)
    losses = report.sensitivity(place.model.state_dict(), bits=[2, 5])
    found = report.describe(place.plain, against=place.model, comparison=table, sensitivity=losses).as_json()
    assert [p["series"] for p in found["points"] if p["series"] in fixed] == fixed
    assert all("nats" in point for point in found["points"])
    apart = replace(table, measured=True)  # costs that were measured are not drawn beside assumed ones
    found = report.describe(place.plain, against=place.model, comparison=apart, sensitivity=losses).as_json()
    assert not any("nats" in point for point in found["points"] if point["series"] in fixed)
    assert set(found["tensors"][0].get("sensitivity", {"2": 0, "5": 0})) == {"2", "5"}
    other = report.Sensitivity([replace(losses.rows[0], name="elsewhere")], "nats")
    with pytest.raises(BadInput, match="another network"):
        report.describe(place.plain, against=place.model, sensitivity=other)


def test_a_damaged_file_is_told(place, tmp_path) -> None:
    data = bytearray(place.plain.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.wf").write_bytes(data)
    with pytest.raises(waterfill.errors.CorruptFile):
        report.describe(tmp_path / "bad.wf")


def test_removed_channels_are_named(place) -> None:
    made = waterfill.load(place.plain)
    noted = replace(made, notes=made.notes | {"channels": {"conv1": {"out": 7}, "<b>": {"in": 3}, "odd": "text"}})
    described = report.describe(noted)
    assert described.as_json()["removed_channels"] == {"conv1": {"out": 7}, "<b>": {"in": 3}}
    assert "out 7" in described.html() and "<b>" not in described.html()


def test_a_checkpoint_of_other_types_has_a_report(tmp_path) -> None:
    state = {
        "half": torch.randn(16, 16).half(),
        "count": torch.arange(5),
        "complex": torch.randn(8, 8, dtype=torch.complex64),
        "empty": torch.zeros(0, 4),
        "inf": torch.full((4, 4), float("inf")),
    }
    made = waterfill.compress(state, bits=8)
    described = report.describe(made, against=state)
    assert set(rows_of(described)) == set(state) and json.dumps(described.as_json(), allow_nan=False)
    assert described.html()


def test_the_bits_of_a_state_dict_are_kept(place) -> None:
    """What a report looks at, it leaves as it was."""
    before = {name: value.clone() for name, value in load_file(place.checkpoint).items()}
    after = place.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("state", "given"),
    [
        ({"zeros": torch.zeros(20, 30), "ones": torch.ones(4, 4)}, {"price": 1e-3}),
        ({"vector": torch.randn(50)}, {"price": 1e-3}),
        ({"numbers": torch.arange(6).reshape(2, 3)}, {"lossless": True}),
        ({"experts": torch.randn(3, 20, 30)}, {"spec": "Quantize(bits=4, group=16)"}),
        ({"sum": torch.randn(24, 30)}, {"spec": "Codebook(levels=2) + Prune(keep=0.05)", "price": 1e-2}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_odd_files_have_a_report_too(state, given) -> None:
    described = report.describe(waterfill.compress(state, **given), against=state)
    assert json.dumps(described.as_json(), allow_nan=False) and "<h1>" in described.html()
    assert set(rows_of(described)) == set(state)


def test_inputs_may_need_a_forward_of_their_own(place) -> None:
    batches = [{"images": part} for part in place.inputs.split(24)]
    given = {"against": place.model, "forward": lambda model, batch: model(batch["images"])}
    found = report.describe(place.folded, batches=batches, **given).as_json()
    assert {one["metric"] for one in found["quality"]} == {"divergence", "agreement", "output_error"}
    assert any("output_error" in row for row in found["tensors"])
    with pytest.raises(BadInput):
        report.describe(place.folded, against=place.model, batches=batches)
