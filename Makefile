# Needs python3 (3.10 or later), make and pip. Everything is installed into .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
MINUTES ?= 20
# A process for each core up to four, each with torch, Triton and numba of its own, that take tests from each other.
TOGETHER := --durations=10 -n auto --maxprocesses 4 --dist worksteal
CLIENTS := .venv-clients
QUICK := torch_geometric torchrl
.PHONY: help demo warm peers fuzz fuzz-files emulate mutants soak test test-interpreted test-compiled test-bits \
	test-bits-interpreted test-bits-compiled test-gpu lint wheel format clean clients clients-quick \
	bench bench-quick bench-cpu bench-order bench-tried bench-keras3 bench-report bench-regression rehearse tune-verify

help:
	@echo "make demo    train on the Japanese Vowels recordings, then compare every backend with the oracle"
	@echo "make test    all tests; the Triton kernels run in Triton's interpreter"
	@echo "make test-bits  what equal bits depend on once more, with the products of an AVX2 processor"
	@echo "make fuzz    draw GRU calls at random and compare every backend with the oracle, MINUTES=20 twice"
	@echo "make emulate draw GRU calls, run the compiled kernels on an emulated GPU that checks every access, MINUTES=20"
	@echo "make mutants apply known bugs to a copy, one by one: tests must catch each"
	@echo "make soak    train and stream for MINUTES=20 and watch memory, caches and compilations"
	@echo "make peers   also install Keras 3 and onnxruntime, which some tests compare with"
	@echo "make clients run six libraries with their nn.GRU swapped for ours; installs them into .venv-clients"
	@echo "make lint    ruff, pyright, import-linter"
	@echo "make wheel   build the sdist and the wheel, and run the README's example with the wheel alone"
	@echo "make format  rewrite the code in the house style"
	@echo "make bench   time every backend side by side; bench/README.md lists the other bench- targets"
	@echo "make clean   remove .venv and build outputs"

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -e '.[all,test]'
	@touch $@

$(VENV)/.linters: $(VENV)/.installed
	$(INSTALL) -e '.[lint]'
	@touch $@

$(VENV)/.peers: $(VENV)/.installed
	$(INSTALL) -e '.[peers]'
	@touch $@

$(VENV)/.runtimes: $(VENV)/.peers
	$(INSTALL) -e '.[runtimes]'
	@touch $@

# Keras 3 and onnxruntime, so that the tests that compare with them run instead of being skipped.
peers: $(VENV)/.peers

demo: $(VENV)/.installed
	$(BIN)/python -m tritongru demo

# The interpreter is chosen when triton is imported, so its tests need processes of their own.
test: test-interpreted test-compiled

# Else each process of the tests would compile the CPU's kernels for itself. Without a folder to keep them in they do.
warm: $(VENV)/.installed
	-$(BIN)/python -m tritongru warm --dtype float32 float64

test-interpreted: warm
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(TOGETHER) \
		tests/interpreted tests/layers/test_keras_goldens.py

test-compiled: warm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(TOGETHER)

# In which order a product sums, and so its last bits, depends on the processor: NumPy's product, which is the
# interpreter's, and torch's own are told to be those of a processor with AVX2 and without AVX-512.
test-bits: test-bits-interpreted test-bits-compiled

test-bits-interpreted: $(VENV)/.installed
	OPENBLAS_CORETYPE=Haswell TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(TOGETHER) -m bits \
		tests/interpreted

test-bits-compiled: $(VENV)/.installed
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -q $(TOGETHER) -m bits

# The deep profile of the property tests: MINUTES for the CPU backends and layers, MINUTES for the interpreted kernels.
fuzz: $(VENV)/.installed
	$(BIN)/python tests/long/fuzz.py --minutes $(MINUTES)
	TRITON_INTERPRET=1 $(BIN)/python tests/long/fuzz.py --minutes $(MINUTES)

# Damaged weight files, for MINUTES: each is read, or refused with a ValueError.
fuzz-files: $(VENV)/.installed
	$(BIN)/python tests/long/fuzz_files.py --seconds $$(( $(MINUTES) * 60 ))

# Draws calls for MINUTES and runs the compiled kernels, instruction by instruction, on an emulated GPU; then deletes
# each of their barriers in turn, to see that it is missed.
emulate: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/long/emulate.py --minutes $(MINUTES)
	OMP_NUM_THREADS=1 $(BIN)/python tests/long/emulate.py --barriers

# Applies each bug of tests/long/mutant_list.py to a copy and requires that a test catches it.
mutants: $(VENV)/.peers
	$(BIN)/python tests/long/mutants.py

# Trains and streams with changing shapes for MINUTES, while memory, caches and compilations are watched.
soak: $(VENV)/.installed
	$(BIN)/python tests/long/soak.py --minutes $(MINUTES)

# An environment that sees the packages of .venv, torch among them, and holds the rest. What cannot be installed is named,
# and the run skips it.
$(CLIENTS)/.created: $(VENV)/.peers
	$(BIN)/python -m venv $(CLIENTS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $$(echo $(CLIENTS)/lib/python*/site-packages)/base.pth
	@touch $@

define install_clients
for package in $$($(BIN)/python clients/run.py $(1) --packages); do \
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-c clients/constraints.txt $$package || echo "not installed: $$package"; \
done
endef

$(CLIENTS)/.quick: $(CLIENTS)/.created clients/constraints.txt
	$(call install_clients,$(QUICK))
	@touch $@

$(CLIENTS)/.all: $(CLIENTS)/.created clients/constraints.txt
	$(call install_clients,)
	@touch $@

# Six libraries with torch.nn.GRU swapped, compared with what they give otherwise; writes the table in docs/torch.md.
clients: $(CLIENTS)/.all
	$(CLIENTS)/bin/python clients/run.py

clients-quick: $(CLIENTS)/.quick
	$(CLIENTS)/bin/python clients/run.py $(QUICK) --no-page

test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m gpu

# Compiles every entry of the shipped tables: minutes. For after a change of the kernels or of Triton.
tune-verify: $(VENV)/.installed
	for table in tritongru/data/tuning/*.json; do $(BIN)/python -m tritongru tune --verify $$table || exit 1; done

bench: $(VENV)/.installed
	$(BIN)/python -m tritongru bench

bench-quick: $(VENV)/.installed
	$(BIN)/python -m tritongru bench --quick

bench-cpu: $(VENV)/.runtimes
	$(BIN)/python bench/cpu.py

# What the choice of a backend on a CPU is made by, and what was tried beside the scan in numba. Ten and five minutes.
bench-order: $(VENV)/.installed
	for threads in 1 2; do \
		$(BIN)/python bench/dispatch.py --threads $$threads || exit 1; \
		$(BIN)/python bench/dispatch.py --threads $$threads --doubtful || exit 1; \
	done

bench-tried: $(VENV)/.peers
	$(BIN)/python bench/tried.py

# fit and predict of Keras 3 with its layer and with ours; 1 if a goal is missed. Five minutes on two quiet cores.
bench-keras3: $(VENV)/.peers
	KERAS_BACKEND=torch $(BIN)/python -W ignore bench/keras3.py

bench-report: $(VENV)/.installed
	$(BIN)/python -m tritongru bench --report

bench-regression: $(VENV)/.installed
	$(BIN)/python -m pytest -q bench/test_speed.py --benchmark-autosave --benchmark-storage=out/benchmarks \
		$$(ls out/benchmarks/*/*.json >/dev/null 2>&1 && echo --benchmark-compare --benchmark-compare-fail=median:25%)

# Every GPU command, on a CPU with the kernels interpreted and tiny sizes.
rehearse: $(VENV)/.installed
	for step in tests exchange grid features layers tune auto demo; do \
		$(BIN)/python bench/gpu.py $$step --rehearse --out out/rehearsal || exit 1; \
	done

lint: $(VENV)/.linters $(VENV)/.peers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

# The wheel alone, in an empty environment beside torch, runs the README's first example.
wheel: $(VENV)/.linters
	$(BIN)/python scripts/try_wheel.py --keep dist

format: $(VENV)/.linters
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(CLIENTS) build dist out .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
