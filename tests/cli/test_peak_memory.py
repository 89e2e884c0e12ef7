"""Peak memory of the commands that go through a whole file, in processes of their own."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

SIZE = 4 * 4096 * 4096  # bytes of the matrix in float32
MOST = 4
PROGRAM = """
import resource, sys
import torch
from waterfill.cli import main
import waterfill.compression.file, waterfill.export.safetensors, waterfill.report.differences
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert main(sys.argv[1:]) == 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)
"""


def peak(*arguments: object) -> int:
    """Bytes above those that imports take."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return 1024 * int(ran.stderr.split("peak ")[1])


@pytest.mark.slow  # of a size beside which the coder's own tables are small
def test_no_command_takes_more_than_four_times_the_largest_matrix(tmp_path):
    source, made, back = tmp_path / "m.safetensors", tmp_path / "m.wf", tmp_path / "back.safetensors"
    save_file({"w": torch.randn(4096, 4096) * torch.rand(4096, 1)}, source)
    assert peak("compress", source, "--bits", "3", "-o", made, "--quiet") < MOST * SIZE
    assert peak("verify", made, "--against", source) < MOST * SIZE
    assert peak("decompress", made, "-o", back, "--quiet") < MOST * SIZE
    assert peak("compress", source, "--lossless", "-o", made, "--force", "--quiet") < MOST * SIZE
