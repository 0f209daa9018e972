"""XLA's options, kept programs and kept memory: what a process of a run does to be quick."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from afa_jax import compilation, memory


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


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_used_again_without_the_system():
    """Pages that the system hands out for 128 MB, the third time that they are wanted."""

    def faults(how):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True, text=True)
        return int(done.stdout)

    assert faults("give") > 1000
    assert faults("keep") < 100


PIECES = """
import ctypes, random, sys
from afa_jax import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
assert memory.keep_freed()
blocks = [libc.malloc(random.randrange(1 << 10, 1 << 18)) for _ in range(4000)]
large, kept = libc.malloc(64 << 20), libc.malloc(1 << 20)
for block in [*blocks[::2], large]:
    libc.free(block)

def pieces():
    return sum(count for size, count in memory.free_pieces(libc))

libc.fdopen.restype = ctypes.c_void_p
before, taken, after = pieces(), memory.set_aside_fragments(), pieces()
print(before, taken, after, libc.malloc(64 << 20) == large)
"""


ARENAS = """
import ctypes, threading
from afa_jax import memory
libc = ctypes.CDLL(None)
libc.fdopen.restype = libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(5000) for _ in range(4000)]
threading.Thread(target=lambda: libc.malloc(100)).start()
for block in blocks[::2]:
    libc.free(block)
print(memory.set_aside_fragments())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_nothing_is_set_aside_where_threads_have_pieces_of_their_own():
    """There they would be counted, but never be found."""
    done = subprocess.run([sys.executable, "-c", ARENAS], capture_output=True, check=True, text=True)
    assert done.stdout == "0\n"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_free_pieces_are_set_aside_and_large_blocks_are_used_again():
    """Every second of 4,000 blocks of all sizes is free: what a search for a little memory goes through."""
    done = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, check=True, text=True)
    before, taken, after, again = done.stdout.split()
    assert int(before) > 1500
    assert int(taken) >= int(before)
    assert int(after) <= 100
    assert again == "True"


def test_pieces_are_set_aside_when_a_compiler_has_taken_long(monkeypatch):
    """JAX's own name of the time that it took."""
    told, done = [], []
    monkeypatch.setattr(memory, "set_aside_fragments", lambda: done.append(1))
    jax.monitoring.register_event_duration_secs_listener(
        listener := lambda event, duration_secs, **_: told.append(event)
    )
    try:
        jax.jit(lambda x: x * 3.25 + 1)(1.0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert memory.COMPILED in told
    memory._after(memory.COMPILED, 0.9)
    memory._after("/jax/another", 9.0)
    assert not done
    memory._after(memory.COMPILED, 1.1)
    assert done


def test_a_c_library_without_the_call_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed() is False
    assert memory.set_aside_fragments() == 0


def test_another_system_is_left_as_it_is(monkeypatch):
    """Windows has no library without a name: asking for it is an error there."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("asked"))
    assert memory.keep_freed() is False
