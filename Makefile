# make demo    install, reproduce the row `digits` on this machine's CPU, print the verdict and where the report lies
# make test    every test
# make check   format, lint, types and tests: what CI runs
# make references   train the reference runs of `digits` anew and publish their logs; about an hour
# make soak    kill the trainer at 50 random moments and hold what is left against a run left alone; some minutes
# make slurm-up, slurm-down   start and stop a SLURM cluster on loopback for the tests marked `slurm`; needs root
# make format  rewrite the code in the house format
# make clean   remove the environment and caches; runs/ and reports/ stay

PYTHON ?= python3
VENV := .venv
JOBS ?= 3
INSTALLED := $(VENV)/.installed

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help demo test lint check references soak slurm-up slurm-down format clean

help:
	@sed -n 's/^# //p' Makefile

# One environment of exactly the versions that were tested; made again where either file changes.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	dvc repro digits
	@reproduce report digits

test: $(INSTALLED)
	pytest -n $(JOBS) --dist worksteal

lint: $(INSTALLED)
	ruff format --check
	ruff check
	mypy

check: lint test

references: $(INSTALLED)
	for seed in $$(seq 20); do \
	    reproduce train digits --seed $$seed && reproduce evaluate digits --seed $$seed && \
	    reproduce publish runs/digits@1/seed=$$seed logfiles/digits/seed-$$seed || exit; \
	done

soak: $(INSTALLED)
	python tests/soak.py

slurm-up:
	@tests/slurm/up

slurm-down:
	@tests/slurm/down --wipe

format: $(INSTALLED)
	ruff format
	ruff check --fix

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .dvc/tmp .dvc/cache
