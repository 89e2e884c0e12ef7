# Every target works from a bare clone with nothing but Python 3.11, a C++ compiler and a package registry.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILD_TOOLS := scikit-build-core nanobind cmake ninja
# The oldest releases that pyproject.toml allows. Where this PyTorch has no small build, `make test-oldest
# OLDEST_TORCH=2.13.0` still tests the others.
OLDEST_TORCH ?= 2.4.1
OLDEST := .venv-oldest-$(OLDEST_TORCH)
OLDEST_READY := $(OLDEST)/.ready
SMOKE := tests/coding/test_exact_product.py tests/coding/test_golden_codes.py tests/model tests/parts/test_contract.py \
	tests/parts/test_format_parts.py tests/compression/test_compress.py tests/compression/test_choice.py
# In this order: the last two write what the others found into the documents.
BENCHMARKS := coding lossless large_file step_rule prior probes data_free rate_distortion feedback_speed whole_speed ablation decisions \
	sensitivity post_training calibrations choice combinations families learning channels resume kernels packed int8 packed_budget exports \
	end_to_end decoder workers scale language_model llama_cpp depth report summary
# The machines are small and the tests run two at a time: one thread each.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: demo test test-hf test-export test-all test-oldest smoke-oldest check format bench docs wheels native clean
.DEFAULT_GOAL := test

# torch comes first and exactly, so that nothing else chooses a bigger build. An installation in place knows the folders of
# the day it was made: where one is new, it is made again.
$(READY): pyproject.toml $(shell find src/waterfill -name __init__.py)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet $(BUILD_TOOLS)
	$(BIN)/pip install --quiet --no-build-isolation --editable .[dev,demo]
	touch $@

demo: native
	$(BIN)/waterfill demo

test: native
	$(BIN)/pytest -m "not slow" -n 2

# The tests that need transformers, which the others skip. They need no network.
test-hf: native
	$(BIN)/pip install --quiet --no-build-isolation --editable .[hf]
	$(BIN)/pytest -n 2 tests/hf tests/test_examples.py

# The tests that need the runtimes of other formats, which the others skip. They need no network.
test-export: native
	$(BIN)/pip install --quiet --no-build-isolation --editable .[export]
	$(BIN)/pytest -n 2 tests/export

# The fuzzer has no release for some Pythons; its tests say so and are skipped there.
test-all: native
	-$(BIN)/pip install --quiet --only-binary atheris --no-build-isolation --editable .[fuzz]
	$(BIN)/pip install --quiet --no-build-isolation --editable .[distributed,docs]
	$(BIN)/pytest --hypothesis-profile=thorough -n 2

# The core is that of the first environment: it knows neither NumPy nor PyTorch, only how arrays lie in memory.
$(OLDEST_READY): pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet torch==$(OLDEST_TORCH) 'numpy==1.26.*' 'safetensors==0.4.*'
	$(OLDEST)/bin/pip install --quiet scikit-build-core hypothesis pytest pytest-xdist scikit-learn
	$(OLDEST)/bin/pip install --quiet --no-build-isolation --no-deps --editable . \
		--config-settings=wheel.cmake=false --config-settings=wheel.py-api=py3 \
		--config-settings=editable.mode=inplace
	touch $@

test-oldest: native $(OLDEST_READY)
	$(OLDEST)/bin/pytest -m "not slow" -n 2

smoke-oldest: native $(OLDEST_READY)
	$(OLDEST)/bin/pytest -m "not slow" -n 2 $(SMOKE)

check: native
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: native
	$(BIN)/pip install --quiet --no-build-isolation --editable .[bench,demo,distributed]
	set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

# The pages of docs/, the README and the docstrings as a site in build/site. A broken link is an error.
docs: $(READY)
	$(BIN)/pip install --quiet --no-build-isolation --editable .[docs]
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# In dist/: the sources; and built from these alone a wheel for each Python here, where all from 3.12 on share one.
wheels:
	rm -rf dist build/wheels
	$(PYTHON) -m venv build/wheels
	build/wheels/bin/pip install --quiet build
	build/wheels/bin/python -m build --sdist --outdir dist
	set -e; for python in $(PYTHON) $(shell command -v python3.12); do \
		$$python -m pip wheel --quiet --no-deps --wheel-dir dist dist/waterfill-*.tar.gz; done

# Brings the compiled core up to date; nothing to do without a C++ compiler.
native: $(READY)
	@$(BIN)/ninja --quiet -C build/editable-*

clean:
	rm -rf build $(READY) .venv-oldest-*/.ready src/waterfill/_native*.so
