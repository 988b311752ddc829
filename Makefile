# Two commands set everything up: `make demo` walks the whole road, `make test` runs the tests.
# Each makes its own venv from Python >= 3.11 alone. TORCH_INDEX=<url> picks PyTorch's CPU or CUDA index.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_QUIET = -q --disable-pip-version-check
TORCH = torch==2.13.0
TRITON = triton==3.8.0  # what the kernels are compiled and interpreted with in the tests
SHELL = /bin/bash

.PHONY: demo test soak gpu clean

demo: .venv/ready
	.venv/bin/edgewam demo $(ARGS)

test: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	.venv-test/bin/python -m pytest -m "not soak and not alone and not wide" -n logical --maxprocesses 8 --dist loadfile $(ARGS) || [ $$? = 5 ]
	.venv-test/bin/python -m pytest -m "alone and not soak and not wide" $(ARGS) || [ $$? = 5 ]  # 5: ARGS left none

# The whole fault matrix and the long fuzz runs: real processes in real time, so a quiet machine.
soak: .venv-test/ready
	.venv-test/bin/python -m pytest -m soak $(ARGS)

# Everything that needs a GPU, with whatever Python is active: `make gpu ARGS=--list` works without one.
gpu:
	$(or $(GPU_PYTHON),python3) -m benchmarks.gpu $(ARGS)

.venv/ready: EXTRAS = train,onnx,sim,quant,serve,telemetry
.venv-test/ready: EXTRAS = train,onnx,sim,quant,rtx,serve,ros2,telemetry,text,kernels,dev
%/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "edgewam needs Python >= 3.11. Install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install $(PIP_QUIET) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$*/bin/python -m pip install $(PIP_QUIET) -e '.[$(EXTRAS)]' $(if $(findstring test,$*),$(TRITON))
	# only the MuJoCo assets are needed, not the 500 MB that gym-aloha would pull in
	$*/bin/python -m pip install $(PIP_QUIET) --no-deps gym-aloha==0.1.5
	# the client that strangers will use: unmodified, without its old NumPy
	$(if $(findstring test,$*),$*/bin/python -m pip install $(PIP_QUIET) dm-tree && $*/bin/python -m pip install $(PIP_QUIET) --no-deps openpi-client==0.1.2)
	touch $@

clean:
	rm -rf .venv .venv-test build dist *.egg-info
