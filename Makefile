# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each target sets up what it needs; nothing outside this folder is changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
ORACLES := $(wildcard ../shared/oracles)
export EMOTRACE_ORACLES ?= $(abspath $(ORACLES))
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
# What is compiled once is kept, whatever the caller says: tests and ranks start dozens of processes that import the package.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo fetch real real-study study confirm sweep test contract benchmarks browser fuzz soak oracles worlds wheel docs lint clean setup

setup: $(TOOLS)

# pip compiles one file after the other, for a minute: here two at a time. Some packages ship files that are no Python of this version.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m compileall -qq -j 2 $(VENV)/lib || true
	touch $@

$(TOOLS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# What the demo is held against; the study has all arms.
DEMO_ARMS := prefill_1,prefill_4,random_steer,random_circuit,wrong_emotion,wrong_payload,random_tuned,ablate,random_ablate

# The main job on a part of the data: 20 of the 160 skeletons of each file.
demo: $(READY)
	$(BIN)/python experiments/emotion_circuits.py --limit 20 --sweep-limit 4 --finalists 2 --dose-step 3 --draws 1 --refits 2 --arms $(DEMO_ARMS) --attn-implementation eager --out runs/demo

# The main job with every arm on 40 of the 160 skeletons of each file, at most 60,000 replies; LIMIT=160 takes all.
LIMIT ?= 40
study: $(READY)
	$(BIN)/python experiments/emotion_circuits.py --limit $(LIMIT) --draws 2 --refits 4 --curve-draws 20 --attn-implementation eager --out runs/study

# What a study chose, answered once a model on scenarios that nothing was chosen on; refused with uncommitted changes, and a second
# time. Its record is to be committed. Of the other model: make confirm STUDY=runs/real-study/smollm2 OF=smollm2
STUDY ?= runs/study
OF ?= data/tiny_model
confirm: $(READY)
	$(BIN)/python experiments/confirm.py --study $(STUDY) --model $(OF)

# A pretrained model into the user's cache, by its short name or hub id: the only target that asks the hub for one.
MODEL ?= smollm2
fetch: $(READY)
	$(BIN)/emotrace fetch $(MODEL)

# The main job on a pretrained model, within half an hour on two cores: fetched first, asked as it takes best.
real: fetch
	$(BIN)/python experiments/emotion_circuits.py --model $(MODEL) --limit 6 --budget 25 --max-new-tokens 24 --batch-size 24 --draws 1 --refits 2 --curve-draws 1 --heads-per-layer 1 --arms prefill_1,wrong_payload,random_tuned --out runs/real/$(MODEL)

# The same with every arm and two draws on LIMIT skeletons, a night's work: stopped at any time, it goes on where it was. Where
# comments that people labelled lie, a judge fitted on them tests what the lexicon chose; without, TESTER names one, or no claim is made.
PEOPLE := $(wildcard $(EMOTRACE_ORACLES)/goemotions)
TESTER ?= $(if $(PEOPLE),fitted:runs/judges/people_and_replies)
real-study: fetch $(if $(PEOPLE),runs/judges/people_and_replies/judge.json)
	$(BIN)/python experiments/emotion_circuits.py --model $(MODEL) --limit $(LIMIT) --sweep-limit 4 --finalists 2 --frontier-limit 10 --dose-step 2 --max-new-tokens 24 --batch-size 24 --draws 2 --heads-per-layer 1 $(if $(TESTER),--second-judge $(TESTER)) --out runs/real-study/$(MODEL)

runs/judges/people_and_replies/judge.json: | $(READY)
	$(BIN)/emotrace fetch smollm2
	$(BIN)/python experiments/measure_judge.py --fit --embeddings smollm2 --out runs/judges

# Every causal and masked class of the installed transformers against plain hooks (half an hour on one core).
sweep: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python experiments/sweep_families.py --jobs 2 --out runs/sweep

# Two workers with one torch thread each: more threads than cores stand in each other's way.
# Files run in the order of tests/conftest.py: by the number of their tests, the slowest (a whole study) would come last, on one worker.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 15

# NDIF's own sandbox in the place of the loopback server's: of the release that is pinned, or of a checkout of its code that
# EMOTRACE_NDIF_SRC names (docs/ndif.md). Its metadata ask for a newer Python than its sandbox does, so it
# is unpacked, not installed.
contract: export EMOTRACE_NDIF_SRC ?= $(abspath build/ndif)
contract: $(READY)
	test -n "$(filter-out $(abspath build/ndif),$(EMOTRACE_NDIF_SRC))" || { $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --python-version 3.12 --only-binary=:all: --dest build ndif==0.1.2 && $(BIN)/python -m zipfile --extract build/ndif-0.1.2-py3-none-any.whl build/ndif; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/remote/test_contract.py

# The benchmarks from end to end on tiny sizes: that they run, not how fast (they themselves: experiments/benchmarks/README.md).
benchmarks: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m benchmark tests/experiments

# The property tests with other random inputs than `make test`, which tries the same ones every time.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m hypothesis --hypothesis-profile=fuzz

# Captures, ranks and Dask workers (extra `dask`) killed dozens of times at random moments, each to end with the bytes of one that was not, and what follows from the
# sites of a family for the families that `make test` leaves out (minutes).
soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m soak

# What is compared with published artefacts ($EMOTRACE_ORACLES), alone; `make test` compares it too, where they lie.
oracles: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m oracle

# What an ordinary key and a trusted one give on a server, family by family, and the main job with either, against here (an hour).
worlds: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python experiments/remote_worlds.py --main-job --limit 4 --out runs/worlds

# The page of a report in a real browser: a chromium or chrome on the PATH (Debian: chromium), driven by playwright.
browser: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --target build/browser playwright
	PYTHONPATH=build/browser $(BIN)/python -m pytest -q -m browser tests/report/test_browser.py

# One file that holds everything: package, studies, example data, tiny model. Its description is checked as the index would.
wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target build/twine twine
	PYTHONPATH=build/twine $(BIN)/python -m twine check --strict dist/*.whl

# The site: what its pages tell a reader to run is run and its printed lines compared, notebooks are executed, figures made of small runs
# of the studies, and pages written to build/site. A warning is an error; nothing is fetched once the tools are there, nor by a page.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m docs tests/test_documented.py
	$(BIN)/python docs/gallery.py
	$(BIN)/python -m sphinx -b html --fail-on-warning --keep-going docs build/site
	$(BIN)/python docs/offline.py build/site

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache runs
