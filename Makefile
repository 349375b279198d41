# Two commands: `make demo` trains, asks and reloads a vision-language model; `make test` runs the checks.
# Both set up all they need in .venv first, on any machine with Python >= 3.11, pip and make.

PYTHON ?= python3
BIN := .venv/bin
TORCH := 2.13.0
# PyTorch's own index; PyPI's builds for Linux bring gigabytes of CUDA, which a machine without a GPU cannot use.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
OUT ?= out/demo

.PHONY: demo test lint types format clean

demo: .venv/ready
	$(BIN)/hf-mm train vlm --preset demo --output_dir $(OUT)
	$(BIN)/python examples/ask.py $(OUT)

test: .venv/ready
	$(BIN)/python -m pytest -n auto

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/ty check --python .venv

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv out build

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hf-mm needs Python >= 3.11, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		echo "installing torch $(TORCH) for the CPU"; \
		$(BIN)/python -m pip install --quiet --no-deps --retries 1 --timeout 15 \
			--extra-index-url $(TORCH_CPU_INDEX) "torch==$(TORCH)+cpu" || \
		$(BIN)/python -m pip install --quiet --no-deps "torch==$(TORCH)"; \
	else \
		$(BIN)/python -m pip install --quiet "torch==$(TORCH)"; \
	fi
	@echo "installing hf-mm and what it needs"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
