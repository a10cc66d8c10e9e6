# Everything runs in .venv, which `make` sets up once from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEACHERS := .cache/teachers

.PHONY: help setup teachers benchmark-teachers test slow coverage quality complexity floors format docs demo bench families clean

help:
	@echo "make test     set up what is needed and run the fast tests"
	@echo "make slow     run the long tests too"
	@echo "make demo     halve a sentence encoder in a few minutes and show what came out"
	@echo "make bench    measure training steps beside the bare student's; ARGS=--small for a quick look"
	@echo "make benchmark-teachers  fetch the other teachers of benchmarks and train two small ones"
	@echo "make families try every family of transformers and write docs/coverage.md; goes on where it stopped"
	@echo "make coverage run the fast tests and show which lines of src/ none of them runs"
	@echo "make quality  lint, format and types"
	@echo "make complexity  fail on a function of the core above cyclomatic complexity $(COMPLEXITY)"
	@echo "make docs     build the documentation into site/"
	@echo "make floors   test the oldest versions that pyproject.toml allows, in an environment of their own"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

teachers: $(TEACHERS)/reaction-bert $(TEACHERS)/minilm

$(TEACHERS)/%: | $(READY)
	$(BIN)/python examples/fetch_teacher.py $* $(TEACHERS)

# Teachers of benchmarks: others to fetch, and two that are trained here in some minutes each.
benchmark-teachers: teachers $(addprefix $(TEACHERS)/,smollm2 tagger reaction-classifier whisper small-gpt2 small-vit)

$(TEACHERS)/small-%: | $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/calibration/small_teachers.py small-$* $(TEACHERS)

# One process for each core, each with one torch thread.
PYTEST := $(BIN)/python -m pytest -n auto

test: setup teachers
	$(PYTEST)

slow: setup teachers $(TEACHERS)/smollm2
	$(PYTEST) -m "slow or not slow"

coverage: setup teachers
	$(PYTEST) --cov=wid_hf --cov-report=term-missing:skip-covered --cov-report=json --cov-report=xml

quality: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

COMPLEXITY := 12
complexity: setup
	$(BIN)/radon cc --show-complexity --total-average --exclude 'src/wid_hf/tools/*' src/wid_hf | awk '/^src/ {file = $$0} /^Average/ {print} \
		match($$0, /\([0-9]+\)$$/) && substr($$0, RSTART + 1) + 0 > $(COMPLEXITY) {print file $$0; high = 1} END {exit high}'

# The old torch comes with its CUDA libraries: some gigabytes. Left out: what torch 2.8 has no CPU kernel for, and model
# classes that transformers 5.10 lacks or does not run.
FLOORS := .cache/floors
floors:
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint floors.txt \
		--editable ".[cli,eval]" pytest pytest-xdist hypothesis
	$(FLOORS)/bin/python -m pytest -n auto -o filterwarnings=default tests/coupling tests/planning tests/layers tests/calibration \
		tests/adapter tests/training/test_trainer.py \
		--deselect tests/coupling/test_ops.py::test_experts_keep_their_number_and_share_the_width_that_they_read \
		--deselect tests/coupling/test_ops.py::test_a_fused_rms_norm_lies_along_the_width \
		--deselect tests/planning/sizes/test_requests.py::test_heads_of_single_layers_drop_with_the_others \
		--deselect tests/planning/sizes/test_requests.py::test_an_attention_that_reads_two_streams_follows_them \
		--deselect tests/planning/test_student_plan.py::test_a_single_layer_shrinks_where_the_config_has_sizes_by_layer \
		--deselect tests/planning/test_student_plan.py::test_a_size_that_a_layer_cannot_have_is_refused

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

demo: setup
	$(BIN)/python examples/demo.py

bench: setup
	$(BIN)/python benchmarks/speed $(ARGS)

families: setup
	$(BIN)/python benchmarks/architectures $(ARGS)

clean:
	rm -rf $(VENV) .cache demo site
