"""Loaded by the pair's Python processes through PYTHONPATH; changes no installed file.

NIXL 1.5.1's Python API hard-codes pthrDelay = 0, so the progress thread of every agent spins: one
whole core per vLLM worker, four workers in a DP=2 pair. With a delay > 0 the same thread sleeps in
poll(2) on UCX's event descriptor and still wakes at once on traffic. KVGATE_TEST_NIXL_DELAY_US=0 turns
this off.

KVGATE_TEST_NIXL_HIDE=nixl_cu13 makes that build of NIXL look as if it were not installed, so that another one on
PYTHONPATH is taken.
"""
import importlib.util
import os
import sys

DELAY = int(os.environ.get("KVGATE_TEST_NIXL_DELAY_US", "0"))
HIDDEN = os.environ.get("KVGATE_TEST_NIXL_HIDE", "")


class Hider:
    """Refuses the build that is not to be taken."""

    def find_spec(self, name, path, target=None):
        if name == HIDDEN:
            raise ModuleNotFoundError(f"{name} is hidden for a test", name=name)
        return None


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


if HIDDEN:
    sys.meta_path.insert(0, Hider())
if DELAY > 0:
    sys.meta_path.insert(0, Finder())
