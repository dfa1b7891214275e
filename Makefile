# `make train-ldm` alone is a full run on a fresh machine: environment, data, VAE, UNet, pictures, judgement.
#
#   CONFIG=configs/medium.yaml   which experiment            (trainings: configs/demo.yaml)
#   DATA=path/to/folder          a folder of images per user (default: the config's, which is the built-in data set)
#   RECORDING='^(day\d+)_'       what in a file's name tells the recording (default: the config's: each file is its own)
#   OUT=runs/mine                where results go            (default: runs/<name of the config>)
#   VAE=other/vae/final_model    a VAE that is there already (default: OUT's own, trained where there is none)
#   ARGS="--num_epochs 10"       more flags for the named command only, not for what has to be made before it
#   VENV=                        empty: use the Python that is there, with the torch that it has
#
# `~` and `$NAME` in CONFIG, DATA, OUT and VAE mean what they mean to a shell: in OUT the shell replaces them, in the
# others, which are handed on in the environment, the commands do.

CONFIG ?= configs/demo.yaml
MEMORY := $(if $(filter file,$(origin CONFIG)),configs/medium.yaml)
override export CONFIG := $(value CONFIG)
override export DATA := $(value DATA)
override export RECORDING := $(value RECORDING)
NAME   := $(basename $(notdir $(CONFIG)))
ifdef OUT
override OUT := $(patsubst ~/%,$(HOME)/%,$(shell set -u; printf %s "$(value OUT)"))
else
OUT    := runs/$(NAME)
endif
ARGS   ?=
VENV   ?= .venv
TORCH  ?= torch==2.13.0

PYTHON  := $(if $(VENV),$(VENV)/bin/python,python3)
READY   := $(if $(VENV),$(VENV)/.installed)
TOOLS   := $(if $(VENV),$(VENV)/.installed-tests)
# None is trained where another is named, or for a run that begins from another one's weights: it needs that one's.
OWN     := $(OUT)/vae/final_model/config.json
ifdef VAE
override export VAE := $(value VAE)
else
export VAE := $(dir $(OWN))
OWN_VAE := $(if $(findstring --init,$(ARGS)),,$(OWN))
endif
MODEL   := $(OUT)/ldm/final_model
# What is not given is the config's matter and not passed on. The built-in data set is made where DATA or the config
# means it; made for nothing, for a config that has its data.dir from a base of its own, it does no harm.
OTHER   := $(if $(DATA),,$(shell grep -sE '(^|[ {])dir:' "$(patsubst ~/%,$(HOME)/%,$(CONFIG))" | grep -v data/simulated))
IMAGES  := $(if $(OTHER)$(filter-out $(abspath data/simulated),$(abspath $(DATA))),,data/simulated)
GIVEN   = $(if $(DATA),--data_dir "$$DATA") $(if $(RECORDING),--set "data.recording_pattern=$$RECORDING")
COMMON  = --config "$$CONFIG" $(GIVEN)
# A VAE that has been begun goes on as it was begun, whatever ARGS it had then.
BEGUN   = --config "$(or $(wildcard $(OUT)/vae/config.yaml),$$CONFIG)" $(GIVEN)

ifneq ($(words $(OUT)),1)
$(error OUT is "$(OUT)", where Make can make nothing: give an OUT=folder without spaces)
endif

.PHONY: help setup data check memcheck train-vae train-ldm sample evaluate augment bench test test-portable lint clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo; sed -n '3,9s/^# //p' Makefile

setup: $(READY)  ## make .venv with torch and this project's packages

$(VENV)/.installed: pyproject.toml
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet $(TORCH)
	$(PYTHON) -m pip install --quiet --editable '.[safetensors]'
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed
	$(PYTHON) -m pip install --quiet --editable '.[test]'
	@touch $@

data: data/simulated  ## simulate the built-in data set: 31 people walking, seen by a radar

data/simulated: | $(READY)
	$(PYTHON) -m train.simulate --output_dir $@

check: $(READY) $(IMAGES)  ## do VAE, UNet, data and device fit together? one line each
	$(PYTHON) -m train.check $(COMMON) --vae_path "$$VAE" --output_dir $(OUT)/ldm $(ARGS)

memcheck: $(READY)  ## the memory of a training step, by component (configs/medium.yaml; no GPU needed)
	$(PYTHON) -m train.memcheck --config "$(or $(MEMORY),$$CONFIG)" $(ARGS)

train-vae: $(READY) $(IMAGES)  ## train the VAE, or go on training it
	$(PYTHON) -m train.vae $(COMMON) --output_dir $(OUT)/vae $(ARGS)

$(OWN): | $(READY) $(IMAGES)
	$(PYTHON) -m train.vae $(BEGUN) --output_dir $(OUT)/vae

# Both are there at once or not at all: what a Ctrl-C or an error behind them leaves is whole, and not to be deleted.
.PRECIOUS: $(OWN) data/simulated

train-ldm: $(READY) $(IMAGES) $(OWN_VAE)  ## train the UNet (and first the VAE, if there is none), generate images, judge them
	$(PYTHON) -m train.ldm $(COMMON) --vae_path "$$VAE" --output_dir $(OUT)/ldm $(ARGS)
	$(PYTHON) -m train.sample --model $(MODEL) --purpose augment --per_training_image 1
	$(PYTHON) -m train.evaluate --model $(MODEL) --quick

sample: $(READY)  ## generate images with the trained model (ARGS="--users ID1 ID5 --num_images 5 --seed 42")
	$(PYTHON) -m train.sample --model $(MODEL) $(ARGS)

evaluate: $(READY)  ## generate four images for each training image (where they are not there yet), and judge them
	$(PYTHON) -m train.sample --model $(MODEL) --purpose augment --per_training_image 4
	$(PYTHON) -m train.evaluate --model $(MODEL) $(ARGS)

augment: $(READY)  ## real training images and generated ones in one folder, for any classifier (ARGS="--per_user 20")
	$(PYTHON) -m train.augment --model $(MODEL) $(ARGS)

bench: $(TOOLS)  ## time and memory of all parts of a training beside diffusers, in turns (configs/medium.yaml)
	$(PYTHON) -m train.bench --config "$(or $(MEMORY),$$CONFIG)" $(ARGS)

test: $(TOOLS)  ## run the tests
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n 2 $(ARGS)

# torch takes ATEN_CPU_CAPABILITY's word for it: a processor without AVX-512 needs VECTORS="default avx2".
# Threads that wait for each other sleep: on a busy machine they would spin away whole minutes.
test-portable: VECTORS ?= default avx2 avx512
test-portable: $(TOOLS)  ## run the tests as other processors would: 1 and 2 threads, three widths of vectors
	@for threads in 1 2; do for vectors in $(VECTORS); do \
		echo "$$threads thread(s), $$vectors"; \
		OMP_NUM_THREADS=$$threads OMP_WAIT_POLICY=passive ATEN_CPU_CAPABILITY=$$vectors \
			$(PYTHON) -m pytest -q $(ARGS) || exit 1; \
	done; done

lint: $(TOOLS)  ## run ruff
	$(PYTHON) -m ruff check .

clean:  ## remove the environment and caches (never data or runs)
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
