# The tasks of this repository; `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= out
EXTRAS := build,cpu,rtx,bench,dev

# What demo, engines, generate and bench work on. Exported, so that a prompt may hold any character.
# Nothing that is current is made again. Only the demo's own bundle is replaced by one of another
# checkpoint.
export CHECKPOINT ?= examples/shapes/checkpoints
DEMO_BUNDLE := $(OUT)/demo/bundle
export BUNDLE ?= $(DEMO_BUNDLE)
EXPORT := $(BIN)/sana-rt export $(if $(filter $(DEMO_BUNDLE),$(BUNDLE)),--overwrite)
export PROMPT ?= a red circle moving slowly to the right on a grey background
# What bench plays, one a line.
export PROMPTS ?= examples/shapes/prompts.txt
# What engines builds: a recipe of `sana-rt quantize` (nothing is quantized if empty), a
# workload's name or .toml file (the model's defaults if empty), and the card.
export RECIPE ?=
export WORKLOAD ?=
export TARGET ?= sm120
SECONDS ?= 300
JOBS ?= 2
VARIANT := $(if $(RECIPE),$(basename $(notdir $(RECIPE))),bf16)

# Where the native library finds ONNX Runtime: headers of Debian's libonnxruntime-dev, and the
# library of the wheel, unless ONNXRUNTIME_ROOT has both.
NATIVE := build/native
ONNXRUNTIME_ROOT ?= build/onnxruntime
CONFIGURE = cmake -S runtime/native --log-level WARNING \
  -DONNXRUNTIME_ROOT="$(abspath $(ONNXRUNTIME_ROOT))" \
  -DONNXRUNTIME_LIBRARY="$$(ls $(abspath $(VENV))/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.1.*)"
COMPILERS ?= g++ clang++
SANITIZERS ?= address thread

.PHONY: help setup demo engines generate native native-if-possible native-dependencies native-sanitize native-fuzz check test test-everywhere fuzz faults simulate lint types sbom bench gpu-checks clean

help: ## List the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 20

setup: $(VENV)/.ready ## Make .venv with all that the other tasks need (again when pyproject.toml changes)

# .installing stays behind when an installation is interrupted; the next one then starts clean.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import ensurepip, sys, venv; assert sys.version_info >= (3, 11)' 2>/dev/null || \
	  { echo "setup needs Python 3.11 or newer with venv, and $(PYTHON) is not that; say make PYTHON=..." >&2; exit 1; }
	@if [ -e $(VENV)/.installing ]; then rm -rf $(VENV); fi
	$(PYTHON) -m venv $(VENV)
	@touch $(VENV)/.installing
	$(PIP) install --quiet --upgrade "pip>=25"
	$(PIP) install --quiet --editable ".[$(EXTRAS)]"
	@rm $(VENV)/.installing
	@touch $@

demo: setup ## PROMPT="..." -> small checkpoint -> bundle -> mp4 in out/demo, on the CPU
	$(BIN)/sana-rt demo --output $(OUT)/demo --checkpoint "$$CHECKPOINT" --overwrite "$$PROMPT"

engines: setup ## CHECKPOINT=dir RECIPE= WORKLOAD= TARGET=sm120 -> graphs and plans in BUNDLE=dir
	$(EXPORT) "$$CHECKPOINT" "$$BUNDLE"
	$(EXPORT) "$$CHECKPOINT" "$$BUNDLE" --dtype bf16
ifneq ($(RECIPE),)
	$(BIN)/sana-rt quantize "$$BUNDLE" --recipe "$$RECIPE"
endif
	$(BIN)/sana-rt build "$$BUNDLE" --variant $(VARIANT) --target "$$TARGET" $(if $(WORKLOAD),--workload "$$WORKLOAD")

generate: setup ## BUNDLE=dir (made of CHECKPOINT if it is not there) PROMPT="..." -> out/video.mp4
	@[ -e "$$BUNDLE" ] || $(BIN)/sana-rt export "$$CHECKPOINT" "$$BUNDLE"
	$(BIN)/sana-rt generate "$$BUNDLE" "$$PROMPT" --output $(OUT)/video.mp4 --overwrite

native: native-dependencies ## Build the C library and its tests in build/native; says which Debian packages it needs
	$(CONFIGURE) -B $(NATIVE) -DCMAKE_COMPILE_WARNING_AS_ERROR=$(if $(CI),ON,OFF)
	cmake --build $(NATIVE) --parallel $(JOBS)

native-dependencies: setup
	@runtime/native/dependencies.sh check
	@[ -d "$(ONNXRUNTIME_ROOT)" ] || runtime/native/dependencies.sh headers "$(ONNXRUNTIME_ROOT)"

# A build with each compiler and each sanitizer; warnings are errors in all of them. The simulated
# device has no memory under ThreadSanitizer.
native-sanitize: native-dependencies ## COMPILERS="g++ clang++" SANITIZERS="address thread": the native tests under sanitizers
	for compiler in $(COMPILERS); do for sanitizer in $(SANITIZERS); do \
	  echo "== $$compiler, $$sanitizer"; build=$(NATIVE)-$$compiler-$$sanitizer; \
	  $(CONFIGURE) -B $$build -DCMAKE_COMPILE_WARNING_AS_ERROR=ON -DCMAKE_CXX_COMPILER=$$compiler \
	    -DSANA_RT_SANITIZE=$${sanitizer/address/address,undefined} && \
	  cmake --build $$build --parallel $(JOBS) && \
	  SANA_RT_BUILD=$$build $(BIN)/pytest tests/native/test_programs.py tests/native/test_tokens.py \
	    $$([ $$sanitizer = thread ] || echo tests/native/test_devices.py::test_memory_of_a_gpu) || exit 1; \
	done; done

native-fuzz: native-dependencies ## SECONDS=300 JOBS=2: spoil what the native library reads (clang, libFuzzer) -> out/native-fuzz
	$(CONFIGURE) -B $(NATIVE)-fuzz -DCMAKE_CXX_COMPILER=clang++ \
	  -DSANA_RT_FUZZERS=ON -DSANA_RT_SANITIZE=address,undefined
	cmake --build $(NATIVE)-fuzz --parallel $(JOBS)
	$(BIN)/python -m tests.native.fuzz --build $(NATIVE)-fuzz --seconds $(SECONDS) --jobs $(JOBS) \
	  --output $(OUT)/native-fuzz

check: lint types native-if-possible test ## Lint, types and all tests

# Without the Debian packages, a line says which; continuous integration has to have them.
native-if-possible: setup
	@if runtime/native/dependencies.sh check; then $(MAKE) native; elif [ -n "$${CI-}" ]; then exit 1; fi

lint: setup ## ruff and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup ## mypy, strict
	$(BIN)/mypy

# Two processes of one thread each: with two threads in one, most tests leave a core idle. They
# take files in the order of tests/conftest.py.
test: setup ## All tests
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# A verdict must not hang on the machine: other kernels of OpenBLAS and of PyTorch sum in other
# orders, and so do other numbers of threads.
test-everywhere: setup ## All tests five times: as on other processors, with one thread and with four
	@for setting in OPENBLAS_CORETYPE=SkylakeX OPENBLAS_CORETYPE=Haswell \
	    ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 OMP_NUM_THREADS=4; do \
	  echo "== $$setting"; env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $$setting $(MAKE) test; \
	done

fuzz: setup ## SECONDS=300 JOBS=2: spoil what users are given and read it, looking for tracebacks
	$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS) --jobs $(JOBS) --output $(OUT)/fuzz

faults: setup ## JOBS=2: let each write, fsync, rename and allocation of commands fail, one at a time
	$(BIN)/python -m tests.faults.run --jobs $(JOBS) --output $(OUT)/faults

simulate: setup ## JOBS=2: let every call and operation fail on the simulated device; 20 schedules of all that it plays
	SIMULATE=all OMP_NUM_THREADS=1 $(BIN)/pytest tests/simulator/test_{faults,shapes}.py \
	  --numprocesses $(JOBS) --dist load -rP --verbose

sbom: setup ## Write the software bill of materials that wheels carry
	$(BIN)/python release/sbom.py

bench: setup ## CHECKPOINT=dir RECIPE=max -> float32, emulation and diffusers timed, in out/bench
	$(EXPORT) "$$CHECKPOINT" "$$BUNDLE"
	$(BIN)/sana-rt quantize "$$BUNDLE" --recipe $(or $(RECIPE),max) --prompts "$$PROMPTS"
	$(BIN)/sana-rt bench "$$BUNDLE" --against diffusers --checkpoint "$$CHECKPOINT" \
	  --prompts "$$PROMPTS" --output $(OUT)/bench --overwrite

gpu-checks: setup ## All that only a machine with an NVIDIA card can tell -> out/gpu-checks
	$(BIN)/python -m tests.gpu.checks --output $(OUT)/gpu-checks

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) $(OUT) build dist src/*.egg-info .hypothesis
	rm -rf .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
