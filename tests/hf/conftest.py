"""Tests of transformers need it, and no network: `make test-hf` installs it; elsewhere they are skipped."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
