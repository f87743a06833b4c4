# make quickstart   fit, evaluate and show AnoPLe on a few products (DATA=folder for your own photographs)
# make test         run all tests
# make test-transformers  run transformers' own tests on a small detector; what may fail stands in tests/transformers_exceptions.md
# make quality      check style; make style mends it
# make docs         build the documentation site into out/site; a link to nothing ends it
# make reproduce-small  one cell of each of the paper's tables, in minutes (PHOTOGRAPHS=folder for your own)
# make benchmark    measure speed and memory as ratios, into hub/benchmarks/results/speed.md

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out/quickstart
SHOTS ?= 4
SEED ?= 0
STEPS ?= 80
DATA ?= $(OUT)/photographs
SMALL ?= out/reproduce-small
# real photographs where they lie beside the checkout, else drawn ones
PHOTOGRAPHS ?= $(if $(wildcard ../shared/data),../shared/data,$(SMALL)/photographs)
# the last digit of a name stands in for the view, which none of these photographs has; your own need a pattern of their own
VIEW_PATTERN ?= $(if $(filter file,$(origin PHOTOGRAPHS)),([0-9])[.][A-Za-z]+$$)

.PHONY: quickstart test test-transformers quality style docs reproduce-small benchmark clean

# torch first and pinned: an open range may bring a build with gigabytes of CUDA
# open_clip aside, for the tests that run it in a process of its own: its torchvision must be out of transformers' sight
$(VENV)/ready: pyproject.toml tests/hub/open_clip_requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/open_clip --requirement tests/hub/open_clip_requirements.txt
	touch $@

quickstart: $(VENV)/ready
ifeq ($(DATA),$(OUT)/photographs)
	test -d $(DATA) || $(BIN)/anople draw $(DATA) --seed $(SEED)
endif
	$(BIN)/anople fit "$(DATA)" --shots $(SHOTS) --seed $(SEED) --max_steps $(STEPS) --batch_size 4 --output_dir $(OUT)/detector --overwrite
	$(BIN)/anople evaluate $(OUT)/detector "$(DATA)" --json $(OUT)/evaluation.json --csv $(OUT)/images.csv --gallery $(OUT)/gallery \
	|| { test $$? -eq 2 && echo "Nothing to measure; heat maps of all photographs go to $(OUT)/heat_maps." \
	&& $(BIN)/anople predict $(OUT)/detector "$(DATA)" --output $(OUT)/heat_maps; }

# a process for each core, of one thread: the tests' models are so small that a second one only gets in the way
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# transformers' tests are in its source distribution alone, and are taken from that of the installed version
$(VENV)/transformers/ready: $(VENV)/ready
	rm -rf $(@D)
	mkdir -p $(@D)
	$(BIN)/python -m pip download --quiet --no-deps --no-binary transformers --dest $(@D) \
	transformers==$$($(BIN)/python -c "from importlib.metadata import version; print(version('transformers'))")
	tar -xzf $(@D)/transformers-*.tar.gz -C $(@D) --strip-components 1
	touch $@

test-transformers: $(VENV)/transformers/ready
	TRANSFORMERS_SOURCE=$(abspath $(VENV)/transformers) OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest tests/transformers_suite --numprocesses auto --dist loadfile --no-loadscope-reorder

quality: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/ready
	$(BIN)/python -m mkdocs build --strict

# few steps: this shows that every table runs, not what AnoPLe is worth; cells that are done are kept
reproduce-small: $(VENV)/ready
	test -d "$(PHOTOGRAPHS)" || $(BIN)/anople draw "$(PHOTOGRAPHS)" --seed 0
	test -d "$(SMALL)/others" || $(BIN)/anople draw "$(SMALL)/others" --seed 1
	$(BIN)/python -m hub.reproduce all --data_root "$(PHOTOGRAPHS)" --output_dir $(SMALL) --cells 1 --seeds 0 \
	--max_steps 5 --batch_size 2 --test_images 10 --transfer_root "$(SMALL)/others" \
	$(if $(VIEW_PATTERN),--view_pattern '$(VIEW_PATTERN)')

benchmark: $(VENV)/ready
	$(BIN)/python -m hub.benchmarks.speed

clean:
	rm -rf $(VENV) out build dist *.egg-info
