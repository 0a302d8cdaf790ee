"""Loaded by the pair's Python processes through PYTHONPATH; changes no installed file.

NIXL 1.5.1's Python API hard-codes pthrDelay = 0, so the progress thread of every agent spins: one
whole core per vLLM worker, four workers in a DP=2 pair. With a delay > 0 the same thread sleeps in
poll(2) on UCX's event descriptor and still wakes at once on traffic. KVGATE_TEST_NIXL_DELAY_US=0 turns
this off.

KVGATE_TEST_NIXL_BUILD=nixl_cu12 has that build of NIXL, which must be on PYTHONPATH, taken where NIXL's own choice, by
torch's CUDA version, is nixl_cu13 (through the package `nixl`, which asks for the modules by the name of what it got).
"""
import importlib
import importlib.util
import os
import sys

DELAY = int(os.environ.get("KVGATE_TEST_NIXL_DELAY_US", "0"))
BUILD = os.environ.get("KVGATE_TEST_NIXL_BUILD", "")


class Other:
    """Gives BUILD's package to who asks for nixl_cu13."""

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "nixl_cu13" else None

    def create_module(self, spec):
        self.found = importlib.import_module(BUILD)
        self.spec = self.found.__spec__
        return self.found

    def exec_module(self, module):
        module.__spec__ = self.spec  # The import system has put nixl_cu13's in its place.


class Finder:
    """Wraps nixl_cuXX._bindings.nixlAgentConfig after its import."""

    def find_spec(self, name, path, target=None):
        if not (name.startswith("nixl_cu") and name.endswith("._bindings")):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            base = module.nixlAgentConfig
            field = base.pthrDelay

            class nixlAgentConfig(base):
                pthrDelay = property(field.__get__, lambda self, us: field.__set__(self, us or DELAY))

            module.nixlAgentConfig = nixlAgentConfig

        spec.loader.exec_module = exec_module
        return spec


if BUILD:
    sys.meta_path.insert(0, Other())
if DELAY > 0:
    sys.meta_path.insert(0, Finder())
