PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench train-demo clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  \1\t/' | expand -t 16

install: $(VENV)/installed  ## make .venv with the pinned dependencies

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python found, install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=/path/to/python3.11 install")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: install  ## explain 16 avatars anew, with the weights in the repository (a minute on 2 cores)
	rm -rf outputs/demo
	$(RUN) explain.py generate --config configs/avatars/explain.yaml --output_dir outputs/demo

test: install  ## run the tests, in up to four processes
	$(RUN) -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: install  ## check style
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: install  ## format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: install  ## time and passes of a counterfactual beside a plain loop of the published algorithm (3 minutes on 2 cores)
	$(RUN) -m benchmarks.generate --slots 1 8 --iterations 2 --repeats 3 --docs docs

train-demo: install  ## train the weights of the demo anew (over three hours on 2 cores)
	$(RUN) train.py fit --config configs/avatars/classifier.yaml
	$(RUN) train.py fit --config configs/avatars/oracle.yaml
	$(RUN) train.py fit --config configs/avatars/ddpm.yaml
	$(RUN) train.py fit --config configs/avatars/ddpm.yaml --model.pretrained weights/avatars/ddpm --model.lr 4e-4 --trainer.max_steps 2000 --output_dir outputs/avatars/ddpm-more
	$(RUN) train.py fit --config configs/avatars/ddpm.yaml --model.pretrained weights/avatars/ddpm --model.lr 4e-4 --model.focus 250 --trainer.max_steps 2600 --output_dir outputs/avatars/ddpm-focus

clean:  ## remove the environment, the drawn avatars and the demo's run
	rm -rf $(VENV) data/avatars outputs/demo
