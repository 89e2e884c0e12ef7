"""The folder of a transformers model: its config, what lies beside the weights, how one that is compressed says so."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from waterfill.dtypes import dtype_name
from waterfill.errors import BadInput, CorruptFile
from waterfill.network.checkpoint import Checkpoint

WEIGHTS = "model.wf"
"""The weights of a compressed folder. No name that transformers looks for: without us it finds nothing to load, and
says so, instead of starting from random weights."""
CONFIG = "config.json"
CARD = "README.md"
METHOD = "waterfill"
"""The `quant_method` in the config of a compressed folder."""
_WEIGHTS = (
    *(".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".wf", ".h5"),
    *(".msgpack", ".gguf", ".onnx", ".onnx_data", ".ot", ".npz", ".tflite", ".mlmodel"),
)
_NOTE = """
## Compressed with waterfill

The weights are in `{weights}`, {bytes:,} bytes. To load them:

```python
import waterfill.hf

model = waterfill.hf.load("{name}")  # or packed=True, to run from the compressed weights
```

After this import, `from_pretrained` of transformers reads the folder too; without it, it finds no weights.
"""


def read_config(folder: "str | Path") -> dict[str, Any]:
    """The config of a model's folder. Raises BadInput for what is no such folder, CorruptFile for damaged JSON."""
    path = Path(folder)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise BadInput(f"{path} {what}; give the folder of a transformers model, with its {CONFIG}")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            f"{path} holds no {CONFIG}, so it is no folder of a transformers model; for weights alone, compress their "
            "file with compress_file, or name an output that ends in .wf"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path / CONFIG} is no JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise CorruptFile(f"{path / CONFIG} holds no JSON object; fetch it again")
    return config


def is_compressed(folder: "str | Path") -> bool:
    """Whether a folder's config says that its weights are in our format. False for what is no folder of a model."""
    try:
        return _method(read_config(folder)) == METHOD
    except (BadInput, CorruptFile, OSError):
        return False


def check_compressed(folder: "str | Path") -> Path:
    """The path of a compressed folder. Raises BadInput, naming what it lacks, for any other."""
    path, method = Path(folder), _method(read_config(folder))
    if method != METHOD:
        found = f"its quant_method is {method!r}" if method else "it is not compressed"
        raise BadInput(f"{path} is no folder of ours: {found}; make one with `waterfill compress {path} -o OUT`")
    if not (path / WEIGHTS).is_file():
        raise BadInput(f"{path} holds no {WEIGHTS}, which its {CONFIG} promises; fetch it again")
    return path


def check_plain(folder: "str | Path") -> dict[str, Any]:
    """The config of a folder whose weights can be compressed. Raises BadInput for one that is quantized already."""
    config = read_config(folder)
    if "quantization_config" in config:
        raise BadInput(
            f"{folder} is quantized already (quant_method {_method(config)!r}); compress the folder of the original"
        )
    return config


def copy_beside(source: Path, target: Path) -> None:
    """Copy what lies in a folder, weights of any format and hidden files left out; links become files."""
    for path in _beside(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def write_config(config: dict[str, Any], checkpoint: Checkpoint, target: Path) -> None:
    """The config of a compressed folder: that of the original, the loader's name, and a dtype if there was none, since
    transformers would look for it in the weights."""
    kept = {key: value for key, value in config.items() if key != "transformers_weights"}
    if not (config.get("dtype") or config.get("torch_dtype")):
        kept["dtype"] = _common_dtype(checkpoint)
    text = json.dumps(kept | {"quantization_config": {"quant_method": METHOD}}, indent=2, ensure_ascii=False)
    (target / CONFIG).write_text(text + "\n", encoding="utf-8")


def write_card(target: Path, name: str) -> None:
    """Add to the card, or begin one, how the folder is loaded."""
    card = target / CARD
    before = card.read_text(encoding="utf-8", errors="replace").rstrip() + "\n" if card.exists() else f"# {name}\n"
    note = _NOTE.format(weights=WEIGHTS, bytes=(target / WEIGHTS).stat().st_size, name=name)
    card.write_text(before + note, encoding="utf-8")


def _beside(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _beside(path)
        elif path.is_file() and not path.name.endswith(_WEIGHTS):
            yield path


def _method(config: dict[str, Any]) -> str:
    """The quant_method of a config, or empty."""
    found = config.get("quantization_config")
    return str(found.get("quant_method", "")) if isinstance(found, dict) else ""


def _common_dtype(checkpoint: Checkpoint) -> str:
    """The floating-point type that most entries of a checkpoint have."""
    entries: Counter[str] = Counter()
    for stored in checkpoint.tensors.values():
        if stored.dtype.is_floating_point:
            entries[dtype_name(stored.dtype)] += stored.size
    return entries.most_common(1)[0][0] if entries else "float32"
