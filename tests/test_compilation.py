"""XLA's options, kept programs, kept memory and garbage: what a process of a run does to be quick."""

import gc
import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from afa_jax import compilation, memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's")


@pytest.fixture(autouse=True)
def forgotten():
    compilation.compiler_options.cache_clear()
    yield
    compilation.compiler_options.cache_clear()


def test_convolutions_stay_with_eigen_on_a_cpu():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    arrays = jnp.ones((8, 28, 28, 32)), jnp.ones((3, 3, 32, 32))
    assert "ynn" not in compilation.jit(convolve).lower(*arrays).compile().as_text()
    assert " convolution(" in compilation.jit(convolve).lower(*arrays).compile().as_text()


def test_an_xla_without_the_option_compiles_without_it(monkeypatch):
    monkeypatch.setattr(compilation, "_ON_CPU", {"xla_cpu_option_of_another_version": "1"})
    assert compilation.compiler_options() is None
    assert compilation.jit(lambda x: x + 1)(1.0) == 2


def test_another_device_has_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.compiler_options() is None


@pytest.fixture
def settings():
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_where_the_user_says_or_in_the_cache(settings, tmp_path, monkeypatch):
    own = jax.config.jax_compilation_cache_dir
    compilation.keep_programs(tmp_path / "programs")
    assert jax.config.jax_compilation_cache_dir == own
    jax.config.update("jax_compilation_cache_dir", None)
    compilation.keep_programs(tmp_path / "programs")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "programs")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.3  # from the environment
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    jax.config.update("jax_compilation_cache_dir", None)
    compilation.keep_programs(tmp_path / "programs")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


@pytest.fixture
def thresholds():
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_garbage_is_looked_for_less_often(thresholds):
    def looks():
        before = gc.get_stats()[0]["collections"]
        kept = [[] for _ in range(20_000)]
        looked = gc.get_stats()[0]["collections"] - before
        del kept
        return looked

    assert looks() > 0
    memory.collect_seldom()
    assert looks() <= 1  # the first one may have been due


FAULTS = """
import resource, sys
from afa_jax import memory
if sys.argv[1] == "keep":
    memory.keep_freed()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(128 << 20)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@glibc
def test_freed_memory_is_used_again_without_the_system():
    """Pages that the system hands out for 128 MB, the third time that they are wanted."""

    def faults(how):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True, text=True)
        return int(done.stdout)

    assert faults("give") > 1000
    assert faults("keep") < 100


FRAGMENTS = """
import ctypes, random
import jax
from afa_jax import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
assert memory.keep_freed() and memory.keep_freed() and jax.default_backend() == "cpu"
random = random.Random(0)
blocks = [libc.malloc(random.randrange(1 << 14, 1 << 18)) for _ in range(4000)]
large, kept = libc.malloc(64 << 20), libc.malloc(1 << 20)
for block in [*blocks[::2], large]:
    libc.free(block)
for event, seconds in (memory._COMPILED, 0.9), ("/jax/another", 9.0), (memory._COMPILED, 1.1):
    before = memory.fragments().total()
    jax.monitoring.record_event_duration_secs(event, seconds)
    print(before, memory.fragments().total())
print(libc.malloc(64 << 20) == large)
"""


def _printed(program):
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, env=environment)
    return done.stdout.splitlines()


@glibc
def test_fragments_are_set_aside_when_a_compiler_took_long_and_a_large_block_is_used_again():
    """Every second of 4,000 blocks of all sizes is free: what a search for some memory goes through."""
    *rows, again = _printed(FRAGMENTS)
    quick, another, long = (tuple(map(int, row.split())) for row in rows)
    assert min(*quick, *another, long[0]) > 1500
    assert long[1] < 100
    assert again == "True"


ARENAS = """
import ctypes, threading
from afa_jax import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(20000) for _ in range(4000)]
for block in blocks[::2]:
    libc.free(block)
(thread := threading.Thread(target=lambda: libc.malloc(100))).start()
thread.join()
before = memory.fragments().total()
memory.set_aside_fragments()
print(before, memory.fragments().total())
"""


@glibc
def test_nothing_is_set_aside_where_threads_have_arenas_of_their_own():
    """There fragments of others would be counted, but never be given."""
    ((before, after),) = (map(int, row.split()) for row in _printed(ARENAS))
    assert min(before, after) > 1500


def test_nothing_is_set_aside_where_no_cpu_computes(monkeypatch):
    done = []
    monkeypatch.setattr(memory, "set_aside_fragments", lambda: done.append(1))
    for backend in ("gpu", "cpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        memory._compiled(memory._COMPILED, 2.0)
        assert len(done) == (backend == "cpu")


def test_jax_tells_what_is_listened_to():
    told = []

    def listener(event, duration_secs, **_):
        told.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        jax.jit(lambda x: x * 3.25 + 1)(1.0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert memory._COMPILED in told


def test_a_c_library_without_the_call_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "PyDLL", lambda name: object())
    assert memory.keep_freed() is False
    memory.set_aside_fragments()
    assert not memory.fragments()


def test_another_system_is_left_as_it_is(monkeypatch):
    """Windows has no library without a name: asking for it is an error there."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(memory.ctypes, "PyDLL", lambda name: pytest.fail("asked"))
    assert memory.keep_freed() is False
