"""`--runs packed`: budgets that count what a network takes in memory."""


def test_files_for_packed_networks_say_what_they_take(run, checkpoint, tmp_path) -> None:
    out, given = tmp_path / "small.wf", ("--runs", "packed", "--price", "1e-4")
    made = run("compress", checkpoint, *given, "-o", out)
    assert made.code == 0, made.err
    line = next(line for line in made.out.splitlines() if "bytes in memory" in line)
    assert int(line.split()[0]) > out.stat().st_size / 4
    said = run("info", out)
    assert line in said.out and "recipe Quantize(packed=True)" in said.out
    planned = run("plan", checkpoint, *given, "--json").json
    assert planned["recipe"] == "Quantize(packed=True)"


def test_a_way_to_run_that_has_no_meaning_is_refused(run, checkpoint) -> None:
    ran = run("compress", checkpoint, "--runs", "packed", "--lossless")
    assert ran.code == 2 and "leave runs='packed' out" in ran.err
    assert run("plan", checkpoint, "--runs", "fast").code == 2
