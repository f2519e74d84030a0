# Two commands matter: `make demo` (install, then a first figure on bundled data) and `make test` (install, then all tests).
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
DEMO_METHODS = random,cluster_lite0,cluster_lite0_inv
DEMO_RATIOS  = 0.5,0.9
DEMO_SEEDS   = 0,1
# What `make figures` makes, of what, and where: make figures DATASET=openmoji PRESET=gpu SEEDS=0,1,2 ARGS="-p force True"
# A published figure stays if the new one has fewer seeds, methods or ratios, or is not of committed code; the new one then goes to
# .diffprune/figures, as does everything with PLACE=.diffprune/figures.
PLACE   ?= $(CURDIR)/papers_figures
DATASET ?= digits
PRESET  ?= cpu
SEEDS   ?= 0,1
ARGS    ?=
FIGURES  = fig1_fid_curves fig2_qualitative fig3_class_samples fig4_cluster_regions fig5_imagenet_curves fig6_inverse_pairs \
	fig7_balanced_samples fig8_cluster_maps table1_memorization table2_balance supp_precision_recall supp_vae_gan claims errata \
	lfm_likeness lfm_two_models
EXECUTED = .diffprune/notebooks/$(subst :,_,$(subst /,_,$(DATASET)))/$(PRESET)

.PHONY: evidence demo figures check-figures redraw redraw-digits redraw-openmoji redraw-avatars test gpu gpu-wheels fuzz lint docs readme lab export clean
.DEFAULT_GOAL := demo

# An install is repeated only when the requirements change.
$(VENV)/.installed-%: settings.ini setup.py
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "diffprune needs Python 3.10 or newer"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[$*]"
	touch $@

demo: $(VENV)/.installed-bundled
	$(BIN)/diffprune study --dataset digits --preset cpu --methods $(DEMO_METHODS) --ratios $(DEMO_RATIOS) --seeds $(DEMO_SEEDS)
	mkdir -p .diffprune/notebooks
	$(BIN)/papermill --no-progress-bar nbs/fig1_fid_curves.ipynb .diffprune/notebooks/fig1_fid_curves.ipynb \
		-p dataset digits -p preset cpu -p methods $(DEMO_METHODS) -p ratios $(DEMO_RATIOS) -p seeds $(DEMO_SEEDS)
	@echo
	@echo "Done. Look at:"
	@echo "  .diffprune/figures/digits/cpu/fig1_fid_curves.png   the figure (also .pdf)"
	@echo "  .diffprune/figures/digits/cpu/fig1_samples.png      what the models draw"
	@echo "  .diffprune/figures/digits/cpu/fig1_fid_curves.csv   the numbers; .json says where they come from"
	@echo "  .diffprune/notebooks/fig1_fid_curves.ipynb          the executed notebook"
	@echo "The published figure, with more methods and seeds, is papers_figures/digits/cpu/fig1_fid_curves.png."

# One notebook that fails does not stop the others; the exit status tells. Samples by class are for conditional models only.
figures: $(VENV)/.installed-bundled
	@mkdir -p $(EXECUTED); start=$$(date +%s); failed=; \
	without=$$($(BIN)/python -c "from diffprune.study.presets import load_preset; print('' if load_preset('$(PRESET)', '$(DATASET)').conditional else 'fig3_class_samples')"); \
	for name in $(FIGURES); do begin=$$(date +%s); \
		if [ "$$name" = "$$without" ]; then echo "$$name: left out, the models of $(DATASET) know no classes"; continue; fi; \
		DIFFPRUNE_FIGURES="$(PLACE)" $(BIN)/papermill --no-progress-bar nbs/$$name.ipynb $(EXECUTED)/$$name.ipynb \
			-p dataset "$(DATASET)" -p preset $(PRESET) -p seeds "[$(SEEDS)]" -p stale recompute $(ARGS) || failed="$$failed $$name"; \
		echo "$$name: $$(( $$(date +%s) - begin )) s"; \
	done; \
	DIFFPRUNE_FIGURES="$(PLACE)" $(BIN)/python -c "from diffprune.report.tables import figures_index; print('index:', figures_index())"; \
	echo "all: $$(( $$(date +%s) - start )) s"; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

# What notebooks and tests leave in the folder for temporary files, killed processes included, goes with one folder of their own.
SCRATCH = scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && TMPDIR=$$scratch

# Published figures and tables whose numbers or drawing cannot be traced to committed code; exit status 1 if there are any.
check-figures: $(VENV)/.installed-bundled
	$(BIN)/python -c "from diffprune.report.tables import untraceable; found = untraceable(); \
	print(found.to_string(index=False) if len(found) else 'all figures can be traced'); raise SystemExit(bool(len(found)))"

# All published figures anew: `make redraw`, or `make redraw-digits` for one data set. What is in the store is not computed again.
SCORED   = monotonicity,monotonicity_inv,el2n,el2n_inv,grand,grand_inv,moso,moso_inv
NEAR_FAR = -p methods random,cluster_lite0,cluster_lite0_inv
redraw: redraw-digits redraw-openmoji redraw-avatars

redraw-digits:
	rm -rf papers_figures/digits/cpu
	$(MAKE) figures SEEDS=0,1,2 FIGURES="fig1_fid_curves fig5_imagenet_curves supp_precision_recall" \
		ARGS="-p methods random,$(SCORED),cluster_lite0,cluster_lite0_mid,cluster_lite0_inv"
	$(MAKE) figures SEEDS=0,1,2 FIGURES="claims fig6_inverse_pairs fig8_cluster_maps table2_balance supp_vae_gan errata"
	$(MAKE) figures SEEDS=0,1,2 FIGURES=table1_memorization ARGS="$(NEAR_FAR)"
	$(MAKE) figures SEEDS=0,1 FIGURES="fig2_qualitative fig3_class_samples fig4_cluster_regions fig7_balanced_samples"

redraw-openmoji:
	rm -rf papers_figures/openmoji/cpu
	$(MAKE) figures DATASET=openmoji SEEDS=0 ARGS="$(NEAR_FAR) -p ratios 0.5,0.9" \
		FIGURES="fig1_fid_curves fig2_qualitative fig3_class_samples fig5_imagenet_curves supp_precision_recall"
	$(MAKE) figures DATASET=openmoji SEEDS=0 ARGS="-p ratios 0.5,0.9" FIGURES="supp_vae_gan errata"
	$(MAKE) figures DATASET=openmoji SEEDS=0 ARGS="$(NEAR_FAR) -p ratios 0.5,0.9,0.95" FIGURES=table1_memorization
	$(MAKE) figures DATASET=openmoji SEEDS=0 \
		FIGURES="fig4_cluster_regions fig6_inverse_pairs fig7_balanced_samples fig8_cluster_maps table2_balance"

redraw-avatars:
	rm -rf papers_figures/avatars/cpu
	$(MAKE) figures DATASET=avatars SEEDS=0 ARGS="$(NEAR_FAR) -p ratios 0.5,0.9" FIGURES="fig1_fid_curves fig2_qualitative supp_precision_recall"
	$(MAKE) figures DATASET=avatars SEEDS=0,1 ARGS="$(NEAR_FAR) -p ratios 0.75" FIGURES=claims
	$(MAKE) figures DATASET=avatars SEEDS=0,1 ARGS="-p ratios 0.532" FIGURES="fig7_balanced_samples fig8_cluster_maps table2_balance"

# What `diffprune suggest` knows, from the published figures.
evidence: $(VENV)/.installed-bundled
	$(BIN)/python -c "from diffprune.report.suggest import collect_evidence; \
	collect_evidence('papers_figures').to_csv('diffprune/assets/evidence.csv', index=False)"

test: $(VENV)/.installed-bundled,dev
	$(BIN)/ruff check .
	$(BIN)/nbdev_export
	git diff --exit-code --stat -- diffprune || { echo "nbs/ and diffprune/ differ: run nbdev_export and commit"; exit 1; }
	$(BIN)/nbdev_clean
	git diff --exit-code --stat -- nbs || { echo "notebooks are not clean: run nbdev_clean and commit"; exit 1; }
	$(SCRATCH) OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --do_print
	$(SCRATCH) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -n 2 --dist loadfile --durations=15

# The drill on one GPU (benchmarks/gpu): is the paper-scale path right, and how fast is it? DRILL="--device cpu --quick" tries every part without one.
# Without a network: `make gpu-wheels` on another machine, then `make gpu PYTHON=python3 WHEELS=.diffprune/wheels` beside the torch that is there.
DRILL  ?=
WHEELS ?=
FOR    ?= 3.12
gpu: $(if $(WHEELS),,$(VENV)/.installed-bundled,dev)
	$(if $(WHEELS),$(PYTHON),$(BIN)/python) benchmarks/gpu/drill.py $(if $(WHEELS),--wheels $(WHEELS)) $(DRILL)

gpu-wheels:
	rm -rf .diffprune/wheels
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version $(FOR) \
		$(patsubst %,--platform %,manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64) \
		--dest .diffprune/wheels --requirement benchmarks/gpu/wheels.txt
	du -sh .diffprune/wheels

# The tests on random inputs, with many more of them than in `make test`.
FUZZ ?= 4000
fuzz: $(VENV)/.installed-bundled,dev
	$(SCRATCH) DIFFPRUNE_FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $$(grep -l DIFFPRUNE_FUZZ tests/test_*.py)

lint: $(VENV)/.installed-bundled,dev
	$(BIN)/ruff check .

# README.md from the front page, which is executed first so that its map of the modules is that of today.
readme: $(VENV)/.installed-bundled,dev
	PYTHONWARNINGS=ignore $(BIN)/jupyter execute --inplace nbs/index.ipynb
	$(BIN)/nbdev_clean --fname nbs/index.ipynb
	$(BIN)/python tools/pages.py

# A searchable site of the notebooks, the figures and the reference, from this folder alone; any warning fails it. Needs Python 3.11 or newer.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Done. To look at it: $(BIN)/python -m http.server -d _docs/site"

lab: $(VENV)/.installed-bundled,lab
	$(BIN)/jupyter lab --notebook-dir nbs

export:
	$(BIN)/nbdev_export && $(BIN)/nbdev_clean

clean:
	rm -rf $(VENV) .diffprune _docs build dist *.egg-info
