# Two commands matter: `make quickstart` (see new images and numbers in minutes) and `make test` (run every test).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
.PHONY: help setup quickstart test lab chapters export assets bench readme clean

help:            ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(STAMP)  ## the environment in .venv, with the course and the tests

$(STAMP): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no virtual environment could be made: sudo apt-get install python3-venv, then the same command"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(STAMP)  ## train class-only and class + text on phantoms, compare them: runs/quickstart/report.html
	$(BIN)/vap-diffusion quickstart

test: $(STAMP)   ## every test: export in step, notebooks clean, each chapter top to bottom, command line, faults
	$(BIN)/python -m pytest -rs -n 2 --dist loadgroup --no-loadscope-reorder tests

lab: $(STAMP)    ## open the course
	$(BIN)/jupyter lab nbs

export: $(STAMP) ## notebooks -> vap_diffusion/
	$(BIN)/nbdev_export

chapters: $(STAMP) ## execute all chapters and keep their outputs (one: make chapters ONLY=05)
	$(BIN)/python tests/chapters.py $(ONLY)

bench: $(STAMP)  ## speed, side by side, against targets: results/bench.json (about 10 minutes, on a quiet machine)
	$(BIN)/python tests/bench.py

readme: $(STAMP) ## draw the tables of README.md and results/README.md again
	$(BIN)/python tests/readme.py

# one thread, as on their cards
assets: export OMP_NUM_THREADS = 1
assets: $(STAMP) ## train the shipped weights again, in this order, by the commands on their cards (about three hours)
	$(BIN)/python -m vap_diffusion.measuring --out assets/describer
	$(BIN)/python -m vap_diffusion.autoencoder --out assets/autoencoder
	$(BIN)/python -m vap_diffusion.text --out assets/text --n 12000 --steps 900
	rm -rf assets/features runs/course      # what is there would be judged, or kept, instead of trained
	$(BIN)/python -m vap_diffusion.metrics --out assets/features --steps 1083
	$(BIN)/python -m vap_diffusion.pipeline --out assets/course
	$(BIN)/python -m vap_diffusion.quickstart assets/course runs/course
	$(BIN)/python tests/readme.py --picture

clean:           ## remove the environment and the runs
	rm -rf $(VENV) runs build dist *.egg-info
