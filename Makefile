# make lab    the main job: a secured MN/HA pair, a handover behind a NAT, a report
# make test   unit tests, kernel tests inside a guest kernel, faults, every lab (25 minutes);
#             test-all: whole daemons, every restart and move, strongSwan 6, too (an hour and more)
# make lint   ruff and mypy strict
#
# Everything these need is installed first, where it is missing: Debian packages by apt-get (as
# root or by sudo), Python packages into .venv. Nothing is installed or downloaded twice.

SHELL := /bin/bash
PYTHON ?= $(if $(wildcard /usr/bin/python3),/usr/bin/python3,python3)
VENV := .venv
BIN := $(VENV)/bin
OUT ?= lab-out
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

PACKAGES := python3-venv user-mode-linux kmod iproute2 iptables iputils-ping strongswan-swanctl \
            charon-systemd libstrongswan-standard-plugins libcharon-extra-plugins openssl tshark \
            tcpdump

# Tests of whole daemons with charon and some other long ones, and of every restart and mobility mode,
# have guests of their own, and are `make test-all`'s.
# Labs that are measured, or look for anything left behind, have nothing beside them.
DAEMONS := $(wildcard tests/kernel/test_daemon_*.py) \
           $(foreach name,rendered_deployment inventory_fuzz plan_commands plain_tunnels, \
             tests/kernel/test_$(name).py)
LIFECYCLES := $(foreach name,key_management charon_shortfalls mobility_modes, \
                tests/kernel/test_$(name).py)
MOVES := $(foreach name,handover_interruption handover_matrix home_agent_restart, \
           tests/kernel/test_$(name).py)
# A guest's /tmp is its memory, and captures are large: those of tests that passed go at once.
TIDY := -o tmp_path_retention_policy=failed
STRONGSWAN6 := tests/kernel/test_strongswan6.py
SESSIONS := $(foreach name,session lab_verbs pytest_plugin,tests/lab/test_$(name).py)
ALONE := $(foreach name,nat_handover qemu faults userspace userspace_labs,tests/lab/test_$(name).py)

# What tests need beyond that: a browser that judges the HTML report and a sandbox for guests (unit
# tests, too), routers that advertise, and Debian's stock kernel under QEMU.
TEST_PACKAGES := chromium bubblewrap radvd dnsmasq-base qemu-system-x86 linux-image-amd64 busybox-static

.PHONY: lab test test-all test-unit test-labs test-sessions test-daemons test-userspace test-kernel test-handover test-qemu test-faults test-strongswan6 test-examples test-mutations bench lint install packages clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^# \?//p' Makefile | sed '/^$$/q'

lab: install
	$(BIN)/dsmip-ipsec lab run labs/nat-handover.toml --out $(OUT) --export-keys --html

# The handover is run alone, since it is measured, and so is QEMU, which needs all that there is;
# kernel tests have a guest and a core, and beside them is room for faults and user space; of labs
# there are two at a time. What make runs side by side is printed when it is done.
test: install
	$(MAKE) test-unit
	$(MAKE) test-handover
	$(MAKE) test-qemu
	@echo "Now kernel tests, and beside them faults and user space: ten minutes."
	$(MAKE) -j2 --output-sync=target test-kernel test-beside-kernel
	$(MAKE) test-labs

# And what takes longer: sessions, whole daemons, every restart and move. An hour and more.
test-all: test
	$(MAKE) test-sessions
	$(MAKE) test-strongswan6
	$(MAKE) -j2 --output-sync=target test-daemons test-lifecycles

.PHONY: test-beside-kernel
test-beside-kernel: install
	$(MAKE) test-faults
	$(MAKE) test-userspace

test-unit: PACKAGES += chromium bubblewrap
test-labs test-sessions test-daemons test-qemu: PACKAGES += $(TEST_PACKAGES)
test-unit: install
	$(BIN)/pytest -q -n 2 tests/unit tests/conformance tests/mutations \
	  --ignore tests/unit/test_qemu_boot.py

test-handover: install
	$(BIN)/pytest -q tests/lab/test_nat_handover.py

# The same lab on a stock kernel; without KVM it takes a minute.
test-qemu: install
	$(BIN)/pytest -q tests/lab/test_qemu.py

# Every lab file, and mistakes that a lab must see: two at a time.
test-labs: install
	$(BIN)/pytest -q -n 2 --dist loadgroup \
	  $(filter-out $(ALONE) $(SESSIONS),$(wildcard tests/lab/test_*.py))

# Labs that stand, under a program's or a person's control; docs/examples with the package installed
# from its wheel; QEMU guests.
test-sessions: install
	$(BIN)/pytest -q -n 2 --dist loadgroup tests/unit/test_qemu_boot.py $(SESSIONS)

# Mistakes made in copies of the package: each must be seen, on paper (seconds) and by a lab (a few
# minutes).
test-mutations: install
	$(BIN)/pytest -q tests/mutations tests/lab/test_live_mutations.py

# On this machine's own kernel, which needs no ESP for it, but root; else in a guest.
test-userspace: install
	$(if $(filter 0,$(shell id -u)),$(BIN)/pytest,$(BIN)/python -m dsmip_ipsec.lab.guest_pytest) \
	  -q tests/lab/test_userspace.py tests/lab/test_userspace_labs.py

test-kernel: install
	$(BIN)/python -m dsmip_ipsec.lab.guest_pytest -q \
	  $(filter-out $(DAEMONS) $(LIFECYCLES) $(MOVES) $(STRONGSWAN6),$(wildcard tests/kernel/test_*.py))

# Whole daemons and charons in the guest, standing and falling.
test-daemons: install
	$(BIN)/python -m dsmip_ipsec.lab.guest_pytest -q $(TIDY) $(DAEMONS)

# Charons and daemons killed and started, rekeyed, reauthenticated; every mobility mode; what stock
# charon lacks still; then every ordered pair of places, and a restart under load. Forty minutes.
test-lifecycles: install
	$(BIN)/python -m dsmip_ipsec.lab.guest_pytest -q $(TIDY) $(LIFECYCLES)
	$(BIN)/python -m dsmip_ipsec.lab.guest_pytest -q $(TIDY) -s $(MOVES)

# docs/examples as somebody else's CI runs them, in a Debian of their own; root, a mirror, ten minutes.
test-examples: PACKAGES += debootstrap
test-examples: install
	$(BIN)/pytest -q tests/examples

# The strongSwan of Debian's next release, fetched once and unpacked below build/.
test-strongswan6: install
	root=$$($(BIN)/python tests/strongswan6.py build/strongswan6) && \
	DSMIP_STRONGSWAN6=$$root $(BIN)/python -m dsmip_ipsec.lab.guest_pytest -q $(STRONGSWAN6)

test-faults: install
	$(BIN)/pytest -q tests/lab/test_faults.py

# Ratios of one run, judged by what the issues ask for; noisy on a busy machine.
bench: install
	status=0; \
	$(BIN)/pytest -q -s tests/bench || status=1; \
	$(BIN)/python tests/bench/bench_esp.py || status=1; \
	$(BIN)/python -m dsmip_ipsec.lab.guest_pytest -q -s tests/kernel/bench_reconciler.py \
	  tests/kernel/bench_home_agent.py tests/kernel/bench_data_path.py \
	  tests/kernel/test_handover_interruption.py || status=1; \
	exit $$status

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: packages $(VENV)/.installed

# Only what dpkg doesn't know as installed is asked of apt-get, in one call.
packages:
	@missing=; for package in $(PACKAGES); do \
	  [ "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null)" = installed ] \
	    || missing="$$missing $$package"; \
	done; \
	[ -z "$$missing" ] && exit 0; \
	echo "installing:$$missing"; \
	command -v apt-get >/dev/null || { \
	  echo "no apt-get here: install the counterparts of$$missing by hand" >&2; exit 1; }; \
	export DEBIAN_FRONTEND=noninteractive; \
	$(SUDO) apt-get -qq update && \
	$(SUDO) apt-get -qq install -y --no-install-recommends $$missing >/dev/null || { \
	  echo "apt-get could not install$$missing: run it as root once" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m compileall -q dsmip_ipsec
	touch $@

clean:
	rm -rf $(VENV) $(OUT) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
