import subprocess
import sys
import time

from flamingo_jax.train.watchdog import EXIT_STATUS, Watchdog

STUCK = """
import time
from flamingo_jax.train.watchdog import Watchdog

def wait_for_a_dead_peer():
    time.sleep(60)

with Watchdog(0.3, "process 1") as watchdog:
    watchdog.beat("step 7")
    wait_for_a_dead_peer()
"""


def test_a_step_that_does_not_end_prints_the_stacks_and_ends_the_process():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=50)
    assert done.returncode == EXIT_STATUS
    assert "process 1: step 7 has taken more than 0.3 s; its threads are at:" in done.stderr
    assert "in wait_for_a_dead_peer" in done.stderr
    assert "process 1: step 7 has taken more than 0.6 s: giving up" in done.stderr


def test_it_is_silent_before_the_first_step_between_steps_and_in_pauses(capfd):
    with Watchdog(0.2) as watchdog:
        time.sleep(0.5)
        for step in range(5):
            watchdog.beat(f"step {step}")
            time.sleep(0.05)
        with watchdog.paused():
            time.sleep(0.5)
    with Watchdog(0) as never:
        never.beat("step 1")
        time.sleep(0.1)
    assert capfd.readouterr().err == ""
