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
DRAWN := $(OUT)/photographs$(if $(filter-out 0,$(SEED)),-$(SEED))
DATA ?= $(DRAWN)
SMALL ?= out/reproduce-small
# real photographs where they lie beside the checkout, else drawn ones
PHOTOGRAPHS ?= $(if $(wildcard ../shared/data),../shared/data,$(SMALL)/photographs)
# the last digit of a name stands in for the view, which none of these photographs has; your own need a pattern of their own
VIEW_PATTERN ?= $(if $(filter file,$(origin PHOTOGRAPHS)),([0-9])[.][A-Za-z]+$$)

.PHONY: quickstart plan FORCE test test-transformers quality style docs reproduce-small benchmark clean
.PRECIOUS: $(OUT)/detector/config.json

# torch first and pinned: an open range may bring a build with gigabytes of CUDA
# open_clip aside, for the tests that run it in a process of its own: its torchvision must be out of transformers' sight
$(VENV)/ready: pyproject.toml tests/hub/open_clip_requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/open_clip --requirement tests/hub/open_clip_requirements.txt
	touch $@

# goes on where it was stopped; with other settings, photographs or code it begins anew
quickstart: plan $(VENV)/ready $(OUT)/evaluated
	@echo "Detector: $(OUT)/detector   Gallery: $(OUT)/gallery/index.html   Figures: $(OUT)/evaluation.json"

plan:
	@echo "installation  $(if $(wildcard $(VENV)/ready),done,some minutes and 2 GB, once)"
	@echo "fit           $(STEPS) steps of 1 to 2 seconds on two cores, and half a minute for memory and lines"
	@echo "evaluation    half a second for each test photograph, and the gallery"
	@echo "Ctrl-C loses nothing: make quickstart goes on."

ifeq ($(DATA),$(DRAWN))
$(DRAWN): | $(VENV)/ready
	rm -rf "$@.part"
	$(BIN)/anople draw "$@.part" --seed $(SEED)
	mv "$@.part" "$@"

$(OUT)/settings: | $(DRAWN)
endif

$(OUT)/settings: FORCE
	@mkdir -p "$(OUT)"
	@{ echo "DATA=$(abspath $(DATA)) SHOTS=$(SHOTS) SEED=$(SEED) STEPS=$(STEPS)"; \
	find "$(DATA)" -type f -exec ls -l {} + | sort | cksum; \
	find modeling_anople -name '*.py' -exec cksum {} + | sort | cksum; } > "$@.new"
	@if cmp -s "$@.new" "$@"; then rm "$@.new"; \
	elif test -e "$(OUT)/detector" && ! test -e "$@"; then rm "$@.new"; \
	echo "$(OUT)/detector is of another hand, or of an earlier version: remove it, or add OUT=FOLDER."; exit 1; \
	else rm -rf "$(OUT)/detector" "$(OUT)/evaluated"; mv "$@.new" "$@"; fi

$(OUT)/detector/config.json: $(OUT)/settings | $(VENV)/ready
	$(BIN)/anople fit "$(DATA)" --shots $(SHOTS) --seed $(SEED) --max_steps $(STEPS) --batch_size 4 --output_dir $(OUT)/detector --resume

$(OUT)/evaluated: $(OUT)/detector/config.json
	@rm -rf $(addprefix $(OUT)/,gallery heat_maps evaluation.json images.csv)
	$(BIN)/anople evaluate $(OUT)/detector "$(DATA)" --json $(OUT)/evaluation.json --csv $(OUT)/images.csv --gallery $(OUT)/gallery \
	|| { test $$? -eq 2 && echo "Nothing to measure; heat maps of all photographs go to $(OUT)/heat_maps." \
	&& $(BIN)/anople predict $(OUT)/detector "$(DATA)" --output $(OUT)/heat_maps; }
	@touch "$@"

# a process for each core, of one thread: the tests' models are so small that a second one only gets in the way; compiled
# code is kept, whatever the user's settings: tests start many processes that need the same
test: $(VENV)/ready
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

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
